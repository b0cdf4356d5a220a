#!/usr/bin/env bash
# Fine-tunes DistilBERT to tell six emotions apart, registers it, serves it, asks it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/library.sh"
usage() {
  echo "Usage: emotion-detection.sh [options]
Runs the notebook emotion-detection as a job of Azure ML, registers its model, deploys it to an
online endpoint, asks it once, and deletes the endpoint and the cluster.
$(common_options "those of the notebook")"
}
read_options "$@"
fine_tune emotion-detection text-classification emotion-detection
