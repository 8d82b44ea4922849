#!/usr/bin/env bash
# Deletes the TPU $TPU_NAME with its disk, and in the queued modes the request.
#   tpu_scripts/delete.sh      # with the MODE that create.sh had
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
require TPU_NAME=my-pod ZONE=us-west4-a

if [[ $MODE == queued* ]]; then
  tpu queued-resources delete "$TPU_NAME" --force --quiet
else
  tpu tpu-vm delete "$TPU_NAME" --quiet
fi
