# shellcheck shell=bash
# What the six scripts share: options, the cluster, jobs, and a clean-up that is set before
# anything is created. Sourced, not run. Arrays are expanded as ${a[@]+"${a[@]}"}: to the bash
# 3.2 of macOS an empty one is an unset variable.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run=false keep=false parameter_set=embedded workspace='' group='' subscription=''
cluster=distilbert-cpu
values=()       # NAME=VALUE of -p and --checkpoint
created=()      # what the clean-up deletes, in the order of creation: KIND NAME
running=''      # the job that the clean-up cancels
invoked=''      # the batch endpoint whose jobs it cancels
suffix=$(date +%s | tail -c 7)$((RANDOM % 90 + 10))

# common_options PARAMETERS
common_options() { echo "  -p NAME=VALUE            one parameter; may be given again: $1
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
          --checkpoint) values+=("checkpoint=$2") ;;
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

# -- parameters, checked before anything is created -----------------------------------------------

# value_of FILE NAME: an entry of a YAML file without the comment after it.
value_of() { sed -n "/^$2: */{s///;s/ *#.*//;p;}" "$here/$1"; }

# The names in the parameters cell of a notebook.
parameters_of() {
  sed -n '/"parameters"$/,/^   \]/s/^ *"\([a-z_]*\) = .*/\1/p' "$here/../notebooks/$1.ipynb"
}

# setting NOTEBOOK NAME: what -p gives, else the notebook's file of parameters.
setting() {
  local pair value
  value=$(value_of "parameters/$parameter_set/$1.yml" "$2")
  for pair in ${values[@]+"${values[@]}"}; do
    if [[ ${pair%%=*} == "$2" ]]; then value=${pair#*=}; fi
  done
  echo "$value"
}

# check NOTEBOOK [NAME ...]: refuse names that are not the notebook's (or not among NAMEs), and
# values of the wrong kind. With Python at hand they are checked in full; the job does it anyway.
check() {
  local notebook=$1 known pair name value file dataset options=()
  shift
  known=$(if (($#)); then printf '%s\n' checkpoint "$@"; else parameters_of "$notebook"; fi)
  for pair in ${values[@]+"${values[@]}"}; do
    name=${pair%%=*} value=${pair#*=}
    grep -qxF -- "$name" <<< "$known" ||
      fail "-p $pair: no parameter $name; there are: $(tr '\n' ' ' <<< "$known")"
    case $value in
      '') fail "-p $name: give a value" ;;
      true|false) fail "-p $pair: write True or False" ;;
    esac
    options+=(-p "$name" "$value")
  done
  [[ $(setting "$notebook" precision) =~ ^(fp32|bf16)?$ ]] || fail "precision: give fp32 or bf16"
  [[ $(setting "$notebook" top_k) =~ ^([1-9][0-9]*)?$ ]] ||
    fail "top_k: give a whole number of at least 1"
  if (($#)); then return; fi
  dataset=$(setting "$notebook" dataset)
  if [[ $dataset =~ ^[^./~][^/]*/[^/@]+(@.*)?$ && ! -e $here/../$dataset ]] &&
    ! [[ $dataset =~ @[0-9a-f]{40}$ ]] &&
    ! grep -Eq "^ *\"$dataset\": \"[0-9a-f]{40}\"" "$here/../helpers/data.py"; then
    fail "dataset: ${dataset%@*} needs its full commit on the Hub;" \
      "give -p dataset=${dataset%@*}@COMMIT"
  fi
  for name in checkpoint dataset teacher other_checkpoint; do
    file=$(setting "$notebook" "$name")
    if [[ -z $file ]]; then continue; fi
    if [[ $file == [/~]* || $file == *..* ]] || [[ $file == .* && ! -e $here/../$file ]] ||
      { [[ -e $here/../$file ]] && is_ignored "${file#./}"; }; then
      fail "$name: $file is not uploaded with the job; put it into a folder of the project that" \
        ".amlignore does not name, and give its path from there"
    fi
  done
  local python=${PYTHON:-$here/../.venv/bin/python}
  if [[ -x $python ]]; then
    "$python" "$here/pipeline_steps.py" check --notebook "$notebook" \
      --parameters "$parameter_set" ${options[@]+"${options[@]}"} || exit 2
  fi
}

is_ignored() { grep -qxE "/?${1%%/*}" "$here/../.amlignore"; }

# -- az, and the clean-up -------------------------------------------------------------------------

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

# Runs on success, failure and interrupt: cancels the job that has not ended, then deletes the
# last created first. A creation under way (minutes) refuses to be deleted: it is tried again
# until CLEAN_UP_SECONDS are over.
clean_up() {
  local status=$? i pair kind name until
  trap '' INT TERM
  if [[ -n $invoked ]]; then
    running=$(az_ml batch-endpoint list-jobs --name "$invoked" --query '[].name' -o tsv || true)
  fi
  for name in $running; do
    echo "cancelling job $name, if it was made"
    az_ml job cancel --name "$name" > /dev/null 2>&1 || true
  done
  until=$((SECONDS + ${CLEAN_UP_SECONDS:-900}))
  for ((i = ${#created[@]} - 1; i >= 0; i--)); do
    pair=${created[i]} kind=${pair% *} name=${pair#* }
    if $keep; then
      echo "kept: $name; delete it with"
      echo "  az ml $kind delete --name $name --yes ${where[*]}"
      continue
    fi
    until az_ml "$kind" delete --name "$name" --yes > /dev/null; do
      if ((SECONDS >= until)); then
        echo "NOT DELETED and still billed: $name; delete it with" >&2
        echo "  az ml $kind delete --name $name --yes ${where[*]}" >&2
        status=1
        continue 2
      fi
      echo "$name is not deleted yet; trying again: it would cost money to stop now" >&2
      sleep "${RETRY_SECONDS:-20}"
    done
    echo "deleted: $name"
  done
  exit "$status"
}

# will_create KIND NAME before the creation: its answer may be lost.
will_create() { if ! $dry_run; then created+=("$1 $2"); fi; }

# will_run JOB before it is submitted, will_invoke ENDPOINT before the service names the job,
# has_run after its end.
will_run() { if ! $dry_run; then running=$1; fi; }
will_invoke() { if ! $dry_run; then invoked=$1; fi; }
has_run() { running='' invoked=''; }

# wait_for JOB: show its log until it ends; anything but success is a failure.
wait_for() {
  local status
  az_ml job stream --name "$1"
  status=$(az_ml job show --name "$1" --query status -o tsv)
  if [[ $status != Completed ]]; then
    if [[ $status == Failed || $status == Canceled ]]; then has_run; fi
    echo "job $1 ended as $status" >&2
    return 1
  fi
  has_run
}

# -- the plan, and the work -----------------------------------------------------------------------

# Lines of the plan, all printed before anything is created.
plan_cluster() {
  echo "cluster $cluster: $(value_of compute-cpu.yml min_instances) to" \
    "$(value_of compute-cpu.yml max_instances) x $(value_of compute-cpu.yml size)," \
    "billed while a job runs"
}
plan_job() { echo "job $1: 1 node of $cluster"; }
plan_endpoint() {
  echo "endpoint $1: $(value_of online-endpoint.yml auth_mode) authentication"
  echo "deployment demo of $1: $(value_of online-deployment.yml instance_count) x" \
    "$(value_of online-deployment.yml instance_type), billed until it is deleted"
}

# name_cluster: one of the plain name that is there is used and left; else the run makes its own,
# since two runs at once must not delete each other's.
name_cluster() {
  local found=''
  cluster=$(value_of compute-cpu.yml name)
  own_cluster=true
  if ! $dry_run; then
    found=$(az_ml compute list --query "[?name=='$cluster'].name" -o tsv)
  fi
  if [[ $found == "$cluster" ]]; then
    own_cluster=false
    echo "cluster $cluster is there; it is used and left"
  else
    cluster+="-${suffix}n"  # 24 characters at most, and no number at the end
    plan_cluster
  fi
}

create_cluster() {
  if ! $own_cluster; then return; fi
  will_create compute "$cluster"
  az_ml compute create --file "$here/compute-cpu.yml" --name "$cluster" > /dev/null
}

# The command of a job file with an option for every -p, put where helpers.workspace puts them.
command_with_values() {
  local text added='' pair name
  text=$(sed -n '/^command:/,/^inputs:/s/^  //p' "$here/$1" | tr '\n' ' ')
  for pair in ${values[@]+"${values[@]}"}; do
    name=${pair%%=*}
    added+="-p $name \"\${{inputs.$name}}\" "
  done
  text=${text//-p output_dir/${added}-p output_dir}
  echo "${text% }"
}

# run_notebook NAME: submit cli/notebook-job.yml as $job, show its log, fetch its outputs.
run_notebook() {
  local notebook=$1 pair settings
  settings=(--set "display_name=$notebook" --set "inputs.notebook=$notebook"
    --set "inputs.parameter_set=$parameter_set" --set "compute=azureml:$cluster")
  if ((${#values[@]})); then
    settings+=(--set "command=$(command_with_values notebook-job.yml)")
    for pair in ${values[@]+"${values[@]}"}; do
      settings+=(--set "inputs.${pair%%=*}=${pair#*=}")
    done
  fi
  will_run "$job"
  az_ml job create --file "$here/notebook-job.yml" --name "$job" "${settings[@]}" > /dev/null
  if $dry_run; then return; fi
  wait_for "$job"
  az_ml job download --name "$job" --all --download-path "$here/../runs/$job"
  echo "results: runs/$job"
}

# register_model NAME: the model of $job with its metrics as tags; sets $model.
register_model() {
  local metrics line arguments
  arguments=(--name "$1" --type custom_model --path "azureml://jobs/$job/outputs/model")
  if $dry_run; then az_ml model create "${arguments[@]}"; model="azureml:$1:1"; return; fi
  metrics=$(find "$here/../runs/$job" -name metrics.json | head -n 1)
  while read -r line; do arguments+=(--set "tags.$line"); done < <(
    sed -n '/"metrics": {/,/}/s/^ *"\([a-z0-9_@]*\)": \([-0-9.e]*\),\{0,1\}$/\1=\2/p' \
      "${metrics:-/dev/null}")
  model="azureml:$1:$(az_ml model create "${arguments[@]}" --query version -o tsv)"
  echo "registered: $model"
}

# serve TASK PRECISION [--set ...]: $endpoint with its deployment and all traffic.
serve() {
  local task=$1 precision=$2
  shift 2
  will_create online-endpoint "$endpoint"
  az_ml online-endpoint create --file "$here/online-endpoint.yml" --name "$endpoint" > /dev/null
  az_ml online-deployment create --file "$here/online-deployment.yml" \
    --endpoint-name "$endpoint" --all-traffic --set "environment_variables.TASK=$task" \
    --set "environment_variables.PRECISION=$precision" "$@" > /dev/null
}

# ask REQUEST: post cli/requests/REQUEST.json to $endpoint and print the answer.
ask() {
  az_ml online-endpoint invoke --name "$endpoint" --request-file "$here/requests/$1.json"
}

# evaluate NOTEBOOK: run it as a job and fetch its results.
evaluate() {
  check "$1"
  job="$1-$suffix"
  start
  name_cluster
  plan_job "$job"
  create_cluster
  run_notebook "$1"
}

# fine_tune NOTEBOOK TASK MODEL: train, register, serve, ask, delete.
fine_tune() {
  check "$1"
  job="$1-$suffix" endpoint="$2-$suffix"
  start
  name_cluster
  plan_job "$job"
  plan_endpoint "$endpoint"
  create_cluster
  run_notebook "$1"
  register_model "$3"
  serve "$2" "$(setting "$1" precision)" --set "model=$model"
  ask "$2"
}
