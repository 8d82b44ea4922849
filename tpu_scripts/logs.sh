#!/usr/bin/env bash
# Streams the log of one worker of $TPU_NAME, until Ctrl-C.
#   tpu_scripts/logs.sh        # worker 0
#   tpu_scripts/logs.sh 3
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
require TPU_NAME=my-pod ZONE=us-west4-a

tpu tpu-vm ssh "$TPU_NAME" --worker="${1:-0}" \
  --command='tail -n 100 -F ~/mmrl.log'
