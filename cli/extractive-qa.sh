#!/usr/bin/env bash
# Fine-tunes DistilBERT to answer from a passage, registers it, serves it, asks it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/library.sh"
usage() {
  echo "Usage: extractive-qa.sh [options]
Runs the notebook extractive-qa as a job of Azure ML, registers its model, deploys it to an
online endpoint, asks it once, and deletes the endpoint and the cluster.
$(common_options "those of the notebook")"
}
read_options "$@"
fine_tune extractive-qa question-answering extractive-qa
