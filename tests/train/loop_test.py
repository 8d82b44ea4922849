"""Whole runs: what a stopped run leaves, and that resuming changes nothing."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mmrl.errors import UserError
from mmrl.train import checkpoint, loop
from mmrl.train.step import State

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from mmrl.train import defaults

def get_config(arm="ral"):
  config = defaults.get_config()
  config.model.remat = False
  config.rollout.prompts = 4
  config.rollout.answers = 4
  config.train.steps = 5
  config.checkpoint.every = 2
  config.schedule.value = 1e-3
  config.shares.prompts = 2
  config.evaluation.questions = 8
  config.evaluation.batch = 8
  config.evaluation.shown = 2
  return defaults.add_ral(config)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs")
  (path / "config.py").write_text(CONFIG)
  return path


def command(folder, workdir, *arguments):
  return [
    sys.executable,
    "-m",
    "mmrl.train",
    f"--config={folder / 'config.py'}",
    f"--workdir={workdir}",
    *arguments,
  ]


def environment(folder):
  # The starts of this file compile the same programs: they share them.
  return os.environ | {
    "XLA_FLAGS": "",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def run(folder, workdir, *arguments):
  return subprocess.run(
    command(folder, workdir, *arguments),
    cwd=ROOT,
    env=environment(folder),
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.fixture(scope="module")
def finished(folder):
  workdir = folder / "whole"
  result = run(folder, workdir)
  assert result.returncode == 0, result.stderr
  return workdir, result


def rows(workdir):
  """metrics.jsonl without what a clock or a compiler has a hand in."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in lines
  ]


def test_a_run_leaves_what_it_says(finished):
  workdir, result = finished
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "model",
    "before.json",
    "after.json",
    "summary.json",
    "report.html",
  }
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["questions"] == 8
  for name in ("accuracy_before", "accuracy_after", "blind_baseline"):
    assert 0 <= summary[name] <= 1
  assert summary["wall_seconds"] > summary["compile_seconds"] > 0
  assert "before" in result.stdout and "after" in result.stdout
  for line in rows(workdir):
    assert {
      "reward/accuracy",
      "reward/format",
      "attention/region",
      "attention/jsd_mean",
      "gradient/share_attention",
      "rollout/sampler_scorer_gap",
    } <= set(line)
    assert all(np.isfinite(value) for value in line.values())
    assert line["rollout/sampler_scorer_gap"] < 1e-4
    assert line["rollout/sampler_scorer_outside_1_percent"] == 0
  assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_compilations_stay_constant_after_the_second_step(finished):
  workdir, _ = finished
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  counts = [json.loads(line)["time/compilations"] for line in lines]
  assert len(set(counts[1:])) == 1


def test_times_of_a_step(finished):
  """The device's are within the step's, of which they are the share."""
  workdir, _ = finished
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    values = json.loads(line)
    assert 0 < values["time/device_busy"] <= 1
    assert 0 <= values["time/data"] < values["time/step"]
    assert values["time/device"] == pytest.approx(
      values["time/device_busy"] * values["time/step"]
    )


def test_killed_and_resumed_equals_uninterrupted(folder, finished):
  """SIGKILL between two checkpoints; the steps after the last are redone."""
  whole, _ = finished
  workdir = folder / "killed"
  process = subprocess.Popen(
    command(folder, workdir),
    cwd=ROOT,
    env=environment(folder),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  metrics = workdir / "metrics.jsonl"
  deadline = time.time() + 300
  saved = workdir / "checkpoints" / "2"
  while time.time() < deadline and process.poll() is None:
    if saved.exists() and metrics.read_text().count("\n") >= 3:
      break
    time.sleep(0.01)
  assert process.poll() is None, "the run ended before it could be killed"
  process.send_signal(signal.SIGKILL)
  process.wait()
  result = run(folder, workdir)
  assert result.returncode == 0, result.stderr
  assert "resuming" in result.stdout
  ours, theirs = (
    safetensors.numpy.load_file(path / "model" / "model.safetensors")
    for path in (workdir, whole)
  )
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
  assert rows(workdir) == rows(whole)


class Broken:
  """An iterator whose next batch has a broken picture."""

  def get_state(self):
    return {"next_index": 3}

  def __next__(self):
    raise UserError("data.jsonl:7: expected a readable picture")


def test_a_broken_picture_loses_nothing(tmp_path):
  """The steps before it are saved, with the position of the bad batch."""
  state = State(
    step=jnp.asarray(3, jnp.int32),
    trainable={"text/a": jnp.arange(4.0)},
    frozen={},
    optimizer=(),
  )
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  with pytest.raises(UserError, match=r"data.jsonl:7"):
    loop._next(Broken(), state, saved)
  saved.wait()
  restored, position = saved.restore(state)
  assert int(restored.step) == 3 and position == {"next_index": 3}
  saved.close()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.train.stops=3"], "stops"),
    (["--config.losses.policy.name=clipped"], "valid names: .*clipped_ratio"),
    (["--config.model.path=nowhere"], "found none at nowhere"),
    (["--config.rollout.prompts=5"], "multiple of train.minibatches"),
    (["--config.rollout.answers=1"], "expected at least 2"),
    (["--config.data.lengths=(8,)"], "expected at most 8 tokens, found"),
    (["--config.data.train.path=x"], "path"),
    (["--config.train.steps=9"], "belongs to a run with another config"),
  ],
)
def test_a_mistake_is_one_line_and_status_2(
  folder, finished, arguments, message
):
  workdir = finished[0] if "steps=9" in arguments[0] else folder / "mistake"
  result = run(folder, workdir, *arguments)
  assert result.returncode == 2, result.stderr
  lines = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
  assert len(lines) == 1 and "Traceback" not in result.stderr
  assert re.search(message, lines[0]), lines[0]
