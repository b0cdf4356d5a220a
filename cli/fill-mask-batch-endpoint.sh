#!/usr/bin/env bash
# Deploys fill-mask behind a batch endpoint, scores a folder, fetches the results, deletes it all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/library.sh"
input=''
usage() {
  echo "Usage: fill-mask-batch-endpoint.sh INPUT [options]
Scores the .csv and .jsonl files of the folder INPUT with a batch endpoint of Azure ML, fetches
predictions/ and errors/ to runs/, and deletes the endpoint and the cluster.
$(common_options)"
}
if (($#)) && [[ $1 != -* ]]; then input=$1; shift; fi
read_options "$@"
((${#values[@]} == 0)) || fail "-p is for scripts that run a notebook; see --help"
[[ -n $input ]] || fail "no folder of inputs; see --help"
[[ -d $input ]] || fail "no folder $input"
[[ -n $checkpoint ]] || checkpoint=$(sed -n 's/^checkpoint: *//p' \
  "$here/parameters/$parameter_set/fill-mask-batch-endpoint.yml")

settings=()
if [[ -n $checkpoint && $checkpoint != embedded ]]; then  # a deployment needs a local folder
  folder=$("${PYTHON:-$here/../.venv/bin/python}" -c \
    'import sys; from helpers import checkpoints; print(checkpoints.find(sys.argv[1]))' \
    "$checkpoint") || fail "--checkpoint $checkpoint could not be had (make run sets up .venv)"
  settings=(--set "model.name=${checkpoint//\//-}" --set "model.path=$folder")
fi

start
create_cluster
endpoint="fill-mask-batch-$suffix"
echo "endpoint $endpoint: its jobs run on $cluster"
will_create batch-endpoint "$endpoint"
az_ml batch-endpoint create --file "$here/batch-endpoint.yml" --name "$endpoint" > /dev/null
az_ml batch-deployment create --file "$here/batch-deployment.yml" --endpoint-name "$endpoint" \
  --set-default "${settings[@]}" > /dev/null
if $dry_run; then
  az_ml batch-endpoint invoke --name "$endpoint" --input "$input"
  exit
fi
job=$(az_ml batch-endpoint invoke --name "$endpoint" --input "$input" --query name -o tsv)
trap 'az_ml job cancel --name "$job" > /dev/null 2>&1 || true; exit 130' INT
az_ml job stream --name "$job"
status=$(az_ml job show --name "$job" --query status -o tsv)
if [[ $status != Completed ]]; then
  echo "job $job ended as $status" >&2
  exit 1
fi
scoring=$(az_ml job list --parent-job-name "$job" --query '[0].name' -o tsv)
az_ml job download --name "$scoring" --output-name score --download-path "$here/../runs/$endpoint"
echo "results: runs/$endpoint"
