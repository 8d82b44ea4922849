#!/usr/bin/env bash
# What train.sh runs on each worker: the training, once nothing else trains
# there. A lost connection leaves a run behind, and it holds the TPU: it is told
# to stop, saves a checkpoint, and has STOP_SECONDS for that.
set -euo pipefail

old=$(cat ~/mmrl.pid 2>/dev/null || true)
if [[ -n $old ]] && grep -qas mmrl.train "/proc/$old/cmdline"; then
  echo "worker.sh: stopping an earlier run, process $old"
  kill "$old"
  timeout "$STOP_SECONDS" tail -s 0.2 --pid="$old" -f /dev/null ||
    kill -9 "$old" || true
fi
echo $$ >~/mmrl.pid
exec python -m mmrl.train --distributed "$@"
