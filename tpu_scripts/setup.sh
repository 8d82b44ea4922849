#!/usr/bin/env bash
# Copies this checkout's HEAD to ~/mmrl of every worker of $TPU_NAME, installed
# into ~/mmrl-venv. Once after create.sh, and again after a commit.
#   EXTRAS=tpu,examples tpu_scripts/setup.sh
# The images' own Python may be older than the library's: uv brings one.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
require TPU_NAME=my-pod ZONE=us-west4-a

project=$(dirname "$0")/..
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
git -C "$project" archive --format=tar.gz HEAD >"$scratch/mmrl.tar.gz" ||
  fail "expected a git checkout, found none; clone the project with git"
git -C "$project" diff --quiet HEAD ||
  echo "setup.sh: changes that aren't committed are not copied" >&2
tpu tpu-vm scp "$scratch/mmrl.tar.gz" "$TPU_NAME:mmrl.tar.gz" --worker=all
tpu tpu-vm ssh "$TPU_NAME" --worker=all --command="set -e
mkdir -p ~/mmrl
tar -xzf ~/mmrl.tar.gz -C ~/mmrl
uv=~/.local/bin/uv venv=~/mmrl-venv
[ -x \$uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -x \$venv/bin/python ] || \$uv venv --clear --python 3.11 \$venv
\$uv pip install --python \$venv/bin/python -e ~/mmrl'[${EXTRAS:-tpu}]'" \
  </dev/null
