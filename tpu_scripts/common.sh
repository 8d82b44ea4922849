# Shared by the scripts beside it: strictness, settings and their checks.
# shellcheck shell=bash
set -euo pipefail

# fail MESSAGE [STATUS]: one line, and the exit status (2: a user's mistake).
fail() {
  echo "${0##*/}: $1" >&2
  exit "${2:-2}"
}

# require NAME=EXAMPLE...: variables that the script can't do without.
require() {
  local pair
  for pair in "$@"; do
    local name=${pair%%=*}
    [[ -n ${!name:-} ]] ||
      fail "expected the variable $name, found none; run: export $pair"
  done
}

# tpu COMMAND...: gcloud compute tpus COMMAND, in $ZONE and $PROJECT.
tpu() {
  gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

case ${MODE:=on-demand} in
  on-demand | spot | queued | queued-spot) ;;
  *) fail "expected MODE on-demand, spot, queued or queued-spot, found $MODE" ;;
esac
command -v gcloud >/dev/null ||
  fail "expected gcloud, found none; see https://cloud.google.com/sdk"
