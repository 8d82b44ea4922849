#!/usr/bin/env bash
# Runs one command on all workers of $TPU_NAME at once, in ~/mmrl and with its
# environment. Output: here, and added to ~/mmrl.log of each worker.
#   tpu_scripts/run.sh python -c 'import jax; print(jax.local_devices())'
# Exit status: 0, or that of the first worker whose command failed; 255 where
# a worker can't be reached. The command goes on if the connection is lost.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
require TPU_NAME=my-pod ZONE=us-west4-a
(($#)) || fail "expected a command, found none; such as: run.sh df -h"

command=$(printf '%q ' "$@")
tpu tpu-vm ssh "$TPU_NAME" --worker=all --command="cd ~/mmrl &&
source ~/mmrl-venv/bin/activate && export PYTHONUNBUFFERED=1 &&
set -o pipefail && $command 2>&1 | tee -ap ~/mmrl.log" </dev/null
