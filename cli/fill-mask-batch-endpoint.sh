#!/usr/bin/env bash
# Deploys fill-mask behind a batch endpoint, scores a folder, fetches the results, deletes it all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/library.sh"
input=''
usage() {
  echo "Usage: fill-mask-batch-endpoint.sh INPUT [options]
Scores the .csv and .jsonl files of the folder INPUT with a batch endpoint of Azure ML, fetches
predictions/ and errors/ to runs/, and deletes the endpoint and the cluster.
$(common_options "precision, top_k")"
}
if (($#)) && [[ $1 != -* ]]; then input=$1; shift; fi
read_options "$@"
notebook=fill-mask-batch-endpoint
check $notebook precision top_k
[[ -n $input ]] || fail "no folder of inputs; see --help"
[[ -d $input ]] || fail "no folder $input"
checkpoint=$(setting $notebook checkpoint)

variables=settings.environment_variables
settings=(--set "$variables.PRECISION=$(setting $notebook precision)"
  --set "$variables.TOP_K=$(setting $notebook top_k)")
if [[ -n $checkpoint && $checkpoint != embedded ]]; then  # a deployment needs a local folder
  folder=$("${PYTHON:-$here/../.venv/bin/python}" -c \
    'import sys; from helpers import checkpoints; print(checkpoints.find(sys.argv[1]))' \
    "$checkpoint") || fail "--checkpoint $checkpoint could not be had (make run sets up .venv)"
  name=$(sed -E 's/[^A-Za-z0-9]+/-/g; s/^-//; s/-$//' <<< "$checkpoint")  # as workspace.model_name
  settings+=(--set "model.name=$name" --set "model.path=$folder")
fi

endpoint="fill-mask-batch-$suffix"
start
name_cluster
echo "endpoint $endpoint: its job runs on 1 node of $cluster"
create_cluster
will_create batch-endpoint "$endpoint"
az_ml batch-endpoint create --file "$here/batch-endpoint.yml" --name "$endpoint" > /dev/null
az_ml batch-deployment create --file "$here/batch-deployment.yml" --endpoint-name "$endpoint" \
  --set-default --set "compute=azureml:$cluster" "${settings[@]}" > /dev/null
will_invoke "$endpoint"
job=$(az_ml batch-endpoint invoke --name "$endpoint" --input "$input" --query name -o tsv)
if $dry_run; then exit; fi
wait_for "$job"
scoring=$(az_ml job list --parent-job-name "$job" --query '[0].name' -o tsv)
az_ml job download --name "$scoring" --output-name score --download-path "$here/../runs/$endpoint"
echo "results: runs/$endpoint"
