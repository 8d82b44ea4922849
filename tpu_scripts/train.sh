#!/usr/bin/env bash
# Trains on all workers of $TPU_NAME until it has finished: a training that was
# preempted or lost is started again, on a new TPU where the old one is gone,
# and goes on from its newest checkpoint; at most MAX_RESTARTS times.
#   tpu_scripts/train.sh --config experiments/quickstart.py --workdir gs://b/r
# Exit status: 0 finished; 2 a user's mistake, not repeated; else the last one.
# Ctrl-C ends this script; the training on the workers goes on.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
require TPU_NAME=my-pod ZONE=us-west4-a TYPE=v5litepod-16 \
  RUNTIME=v2-alpha-tpuv5-lite
(($#)) || fail "expected the flags of mmrl.train, found none; see README.md"

here=$(dirname "$0")
fresh=no
status=1
trap 'exit 130' INT
for ((restart = 0; restart <= ${MAX_RESTARTS:-20}; restart++)); do
  if ((restart)); then
    sleep "${RESTART_PAUSE:-30}"
    found=$(tpu tpu-vm describe "$TPU_NAME" --format='value(state)' 2>&1) ||
      true
    echo "train.sh: status $status, TPU $found; restart $restart" >&2
    case $found in
      *PREEMPTED* | *TERMINATED* | *NOT_FOUND*)
        "$here/delete.sh" || true
        "$here/create.sh" || continue
        fresh=yes ;;
    esac
    if [[ $fresh == yes ]]; then
      "$here/setup.sh" || continue
      fresh=no
    fi
  fi
  status=0
  "$here/run.sh" env "STOP_SECONDS=${STOP_SECONDS:-120}" \
    bash tpu_scripts/worker.sh "$@" || status=$?
  ((status != 0 && status != 2)) || exit "$status"
done
fail "gave up after $((restart - 1)) restarts; see logs.sh" "$status"
