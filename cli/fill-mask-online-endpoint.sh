#!/usr/bin/env bash
# Deploys fill-mask behind an online endpoint, sends the model card's request, deletes it all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/library.sh"
usage() {
  echo "Usage: fill-mask-online-endpoint.sh [options]
Deploys fill-mask to an online endpoint of Azure ML, asks it once, and deletes it.
$(common_options "precision")"
}
read_options "$@"
notebook=fill-mask-online-endpoint
check $notebook precision
checkpoint=$(setting $notebook checkpoint)
[[ ! $checkpoint =~ ^[./~] ]] || fail "checkpoint: a folder is not uploaded from here; give a" \
  "name on the Hub or embedded, or serve it from Python: helpers.workspace.online"

endpoint="fill-mask-$suffix"
start
plan_endpoint "$endpoint"
serve fill-mask "$(setting $notebook precision)" \
  --set "environment_variables.CHECKPOINT=$checkpoint"
ask fill-mask
