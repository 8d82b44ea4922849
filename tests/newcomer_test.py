"""The trial of what a new user does, in its short form."""

import os
import subprocess
import sys

import pytest
import runs


@pytest.mark.full
def test_a_newcomer_gets_through():
  done = subprocess.run(
    [sys.executable, "-m", "experiments.bench.newcomer", "--quick"],
    cwd=runs.ROOT,
    env=os.environ | {"XLA_FLAGS": runs.FLAGS},
    capture_output=True,
    text=True,
    timeout=runs.WHOLE_SECONDS,
  )
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
  for text in (
    "s  quick start\n",
    "s  own data, cold: third step\n",
    "s  own data, warm: third step\n",
    "s  export\n",
    "| wrote step 3 of",
    "error: expected --workdir, found none",
  ):
    assert text in done.stdout, text
  assert "WRONG" not in done.stdout
