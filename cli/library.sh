# shellcheck shell=bash
# What the six scripts share: options, the cluster, jobs, and a clean-up that is set before
# anything is created. Sourced, not run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run=false keep=false parameter_set=embedded checkpoint='' workspace='' group='' subscription=''
cluster=distilbert-cpu
values=()       # NAME=VALUE of -p
created=()      # what the clean-up deletes, in the order of creation: KIND NAME
suffix=$(date +%s | tail -c 7)$((RANDOM % 90 + 10))

common_options() { echo "  -p NAME=VALUE            one parameter of the notebook; may be given again
  --parameters SET         file of parameters: embedded (default) or hub
  --checkpoint NAME        model: embedded, or a name on the Hub
  --subscription ID, --resource-group NAME, --workspace NAME
                           where; by default what 'az configure --defaults' and 'az account set'
                           chose
  --dry-run                say what would be created, and create nothing
  --keep                   keep what was created, and say how to delete it
  --help                   this text"; }

fail() { echo "$(basename "$0"): $*" >&2; exit 2; }

read_options() {
  while (($#)); do
    case $1 in
      --help) usage; exit 0 ;;
      --dry-run) dry_run=true ;;
      --keep) keep=true ;;
      -p|--parameters|--checkpoint|--subscription|--resource-group|--workspace)
        (($# > 1)) || fail "$1 needs a value; see --help"
        case $1 in
          -p) [[ $2 =~ ^[a-z_]+= ]] || fail "-p $2: write NAME=VALUE"; values+=("$2") ;;
          --parameters) parameter_set=$2 ;;
          --checkpoint) checkpoint=$2 ;;
          --subscription) subscription=$2 ;;
          --resource-group) group=$2 ;;
          --workspace) workspace=$2 ;;
        esac
        shift ;;
      *) fail "unknown option $1; see --help" ;;
    esac
    shift
  done
  [[ $parameter_set == embedded || $parameter_set == hub ]] ||
    fail "--parameters $parameter_set: give embedded or hub"
}

# Every call of az goes through here. A dry run prints it.
az_ml() {
  if $dry_run; then
    { printf 'would run: az ml'; printf ' %q' "$@"; echo; } >&2  # callers may drop the output
    return
  fi
  az ml "$@" "${where[@]}"
}

start() {
  where=()
  if [[ -z $group ]]; then group=$(default_of group); fi
  if [[ -z $workspace ]]; then workspace=$(default_of workspace); fi
  if ! $dry_run; then
    command -v az > /dev/null || fail "no az; install the Azure CLI and 'az extension add -n ml'"
    [[ -n $group && -n $workspace ]] || fail "no workspace; give --resource-group and \
--workspace, or run: az configure --defaults group=GROUP workspace=WORKSPACE"
  fi
  where=(--resource-group "$group" --workspace-name "$workspace")
  if [[ -n $subscription ]]; then where+=(--subscription "$subscription"); fi
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

default_of() {
  if ! command -v az > /dev/null; then return; fi
  az config get "defaults.$1" --query value -o tsv 2> /dev/null || true
}

# Runs on success, failure and interrupt; deletes the last created first and tries three times.
clean_up() {
  local status=$? i pair kind name
  trap '' INT TERM
  for ((i = ${#created[@]} - 1; i >= 0; i--)); do
    pair=${created[i]} kind=${pair% *} name=${pair#* }
    if $keep; then
      echo "kept: $name; delete it with"
      echo "  az ml $kind delete --name $name --yes ${where[*]}"
      continue
    fi
    for _ in 1 2 3; do
      if az_ml "$kind" delete --name "$name" --yes > /dev/null; then
        echo "deleted: $name"
        continue 2
      fi
      sleep "${RETRY_SECONDS:-20}"  # it may still be being made
    done
    echo "NOT DELETED and still billed: $name; delete it with" >&2
    echo "  az ml $kind delete --name $name --yes ${where[*]}" >&2
    status=1
  done
  exit "$status"
}

# register KIND NAME before the creation: its answer may be lost.
will_create() { if ! $dry_run; then created+=("$1 $2"); fi; }

value_of() { sed -n "s/^$2: *//p" "$here/$1"; }

create_cluster() {
  cluster=$(value_of compute-cpu.yml name)
  echo "cluster $cluster: $(value_of compute-cpu.yml min_instances) to" \
    "$(value_of compute-cpu.yml max_instances) x $(value_of compute-cpu.yml size)," \
    "billed while a job runs"
  if ! $dry_run; then
    local found
    found=$(az_ml compute list --query "[?name=='$cluster'].name" -o tsv)
    if [[ $found == "$cluster" ]]; then echo "cluster $cluster is there; it is left"; return; fi
  fi
  will_create compute "$cluster"
  az_ml compute create --file "$here/compute-cpu.yml" > /dev/null
}

# The command of a job file with an option for every -p, put where helpers.workspace puts them.
command_with_values() {
  local text added='' pair name
  text=$(sed -n '/^command:/,/^inputs:/s/^  //p' "$here/$1" | tr '\n' ' ')
  for pair in "${values[@]}"; do
    name=${pair%%=*}
    added+="-p $name \"\${{inputs.$name}}\" "
  done
  text=${text/-p output_dir/${added}-p output_dir}
  echo "${text% }"
}

# run_notebook NAME: submit cli/notebook-job.yml, show its log, fetch its outputs, set $job.
run_notebook() {
  local notebook=$1 pair settings
  job="$notebook-$suffix"
  if [[ -n $checkpoint ]]; then values+=("checkpoint=$checkpoint"); fi
  settings=(--set "display_name=$notebook" --set "inputs.notebook=$notebook"
    --set "inputs.parameter_set=$parameter_set")
  if ((${#values[@]})); then
    settings+=(--set "command=$(command_with_values notebook-job.yml)")
    for pair in "${values[@]}"; do
      settings+=(--set "inputs.${pair%%=*}=${pair#*=}")
    done
  fi
  echo "job $job: 1 node of $cluster"
  az_ml job create --file "$here/notebook-job.yml" --name "$job" "${settings[@]}" > /dev/null
  if $dry_run; then return; fi
  trap 'az_ml job cancel --name "$job" > /dev/null 2>&1 || true; exit 130' INT
  az_ml job stream --name "$job"
  trap 'exit 130' INT
  local status
  status=$(az_ml job show --name "$job" --query status -o tsv)
  if [[ $status != Completed ]]; then
    echo "job $job ended as $status" >&2
    return 1
  fi
  az_ml job download --name "$job" --all --download-path "$here/../runs/$job"
  echo "results: runs/$job"
}

# register_model NAME: the model of $job with its metrics as tags; sets $model.
register_model() {
  local metrics line tags=()
  if ! $dry_run; then
    metrics=$(find "$here/../runs/$job" -name metrics.json | head -n 1)
    while read -r line; do tags+=(--set "tags.$line"); done < <(
      sed -n '/"metrics": {/,/}/s/^ *"\([a-z0-9_@]*\)": \([-0-9.e]*\),\{0,1\}$/\1=\2/p' \
        "${metrics:-/dev/null}")
  fi
  local arguments=(--name "$1" --type custom_model
    --path "azureml://jobs/$job/outputs/model" "${tags[@]}")
  if $dry_run; then az_ml model create "${arguments[@]}"; model="azureml:$1:1"; return; fi
  model="azureml:$1:$(az_ml model create "${arguments[@]}" --query version -o tsv)"
  echo "registered: $model"
}

# serve TASK [--set ...]: an endpoint with its deployment and all traffic; sets $endpoint.
serve() {
  local task=$1
  shift
  endpoint="$task-$suffix"
  echo "endpoint $endpoint: $(value_of online-endpoint.yml auth_mode) authentication"
  echo "deployment demo of $endpoint: $(value_of online-deployment.yml instance_count) x" \
    "$(value_of online-deployment.yml instance_type), billed until it is deleted"
  will_create online-endpoint "$endpoint"
  az_ml online-endpoint create --file "$here/online-endpoint.yml" --name "$endpoint" > /dev/null
  az_ml online-deployment create --file "$here/online-deployment.yml" \
    --endpoint-name "$endpoint" --all-traffic --set "environment_variables.TASK=$task" "$@" \
    > /dev/null
}

# ask REQUEST: post cli/requests/REQUEST.json to $endpoint and print the answer.
ask() {
  az_ml online-endpoint invoke --name "$endpoint" --request-file "$here/requests/$1.json"
}

# fine_tune NOTEBOOK TASK MODEL: train, register, serve, ask, delete.
fine_tune() {
  start
  create_cluster
  run_notebook "$1"
  register_model "$3"
  serve "$2" --set "model=$model"
  ask "$2"
}
