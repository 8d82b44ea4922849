#!/usr/bin/env bash
# Copies a run's directory into a directory here (default: runs).
#   tpu_scripts/fetch.sh gs://my-bucket/ral
#   tpu_scripts/fetch.sh runs/ral results     # of worker 0, below its ~/mmrl
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
workdir=${1:-}
[[ -n $workdir ]] ||
  fail "expected the --workdir of a run, found none; such as: fetch.sh runs/ral"

mkdir -p "${2:-runs}"
if [[ $workdir == gs://* ]]; then
  gcloud storage cp -r "$workdir" "${2:-runs}/"
  exit
fi
require TPU_NAME=my-pod ZONE=us-west4-a
[[ $workdir == /* ]] || workdir=mmrl/$workdir
tpu tpu-vm scp --recurse "$TPU_NAME:$workdir" "${2:-runs}/" --worker=0
