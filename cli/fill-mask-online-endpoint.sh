#!/usr/bin/env bash
# Deploys fill-mask behind an online endpoint, sends the model card's request, deletes it all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/library.sh"
usage() {
  echo "Usage: fill-mask-online-endpoint.sh [options]
Deploys fill-mask to an online endpoint of Azure ML, asks it once, and deletes it.
$(common_options)"
}
read_options "$@"
((${#values[@]} == 0)) || fail "-p is for scripts that run a notebook; see --help"
[[ -n $checkpoint ]] || checkpoint=$(sed -n 's/^checkpoint: *//p' \
  "$here/parameters/$parameter_set/fill-mask-online-endpoint.yml")

start
serve fill-mask --set "environment_variables.CHECKPOINT=$checkpoint"
ask fill-mask
