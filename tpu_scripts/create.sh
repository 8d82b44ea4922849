#!/usr/bin/env bash
# Creates the TPU $TPU_NAME of type $TYPE.
#   export TPU_NAME=my-pod ZONE=us-west4-a
#   export TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   MODE=spot tpu_scripts/create.sh
# MODE is on-demand, spot, queued or queued-spot. A queued TPU is waited for,
# QUEUE_POLLS times QUEUE_PAUSE seconds; the same command again waits on.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
require TPU_NAME=my-pod ZONE=us-west4-a TYPE=v5litepod-16 \
  RUNTIME=v2-alpha-tpuv5-lite

refused() {
  fail "no TPU; ask for quota at console.cloud.google.com/iam-admin/quotas, \
for capacity try another ZONE or TYPE, or MODE=queued" 1
}

state() {
  tpu queued-resources describe "$TPU_NAME" --format='value(state.state)' \
    2>/dev/null || true
}

flags=("$TPU_NAME" --accelerator-type="$TYPE")
[[ $MODE != *spot ]] || flags+=(--spot)
if [[ $MODE != queued* ]]; then
  tpu tpu-vm create "${flags[@]}" --version="$RUNTIME" || refused
  exit
fi
[[ -n $(state) ]] || tpu queued-resources create "${flags[@]}" \
  --node-id="$TPU_NAME" --runtime-version="$RUNTIME" || refused
for ((poll = 0; poll < ${QUEUE_POLLS:-720}; poll++)); do
  ((poll == 0)) || sleep "${QUEUE_PAUSE:-30}"
  found=$(state)
  case $found in
    ACTIVE) exit 0 ;;
    FAILED | SUSPEND* | DELETING)
      fail "the request is $found; run delete.sh, then create.sh again" 1 ;;
  esac
done
fail "still queued; run create.sh to wait on, delete.sh to give up" 1
