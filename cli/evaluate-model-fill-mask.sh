#!/usr/bin/env bash
# Evaluates fill-mask as a job and fetches the executed notebook with its metrics.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/library.sh"
usage() {
  echo "Usage: evaluate-model-fill-mask.sh [options]
Runs the notebook evaluate-model-fill-mask as a job of Azure ML, fetches its results to runs/,
and deletes the cluster.
$(common_options "those of the notebook")"
}
read_options "$@"
evaluate evaluate-model-fill-mask
