"""A run that is killed again and again ends as one that never was."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from mmrl import processes

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 6
CONFIG = f"""
from mmrl.train import defaults

def get_config():
  config = defaults.get_config()
  config.model.remat = False
  config.rollout.prompts = 8
  config.rollout.answers = 2
  config.rollout.length = 6
  config.train.steps = {STEPS}
  config.checkpoint.every = 1
  config.schedule.value = 1e-3
  config.shares.every = 0
  config.evaluation.questions = 8
  config.evaluation.batch = 8
  config.evaluation.shown = 2
  return config
"""
# Programs are compiled often and run little: their optimiser is off.
FLAGS = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")


def lines(workdir) -> int:
  metrics = workdir / "metrics.jsonl"
  return metrics.read_text().count("\n") if metrics.exists() else 0


def newest(workdir) -> int:
  """Step of the newest checkpoint that is whole; 0 without one."""
  return max(
    (int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()),
    default=0,
  )


# What a kill waits for, given the lines and the checkpoint at the start, and
# the longest time from there on, in seconds.
MOMENTS = {
  "start": (lambda workdir, before: True, 4.0),
  "claimed": (lambda workdir, before: (workdir / "config.json").exists(), 2.0),
  # Lines of steps that weren't saved are dropped before the first step.
  "step": (lambda workdir, before: lines(workdir) > before, 0.6),
  "saving": (
    lambda workdir, before: any(workdir.glob("checkpoints/*tmp*")),
    0.03,
  ),
  "saved": (lambda workdir, before: newest(workdir) > before, 0.1),
  "end": (lambda workdir, before: newest(workdir) == STEPS, 0.5),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("kills")
  (path / "config.py").write_text(CONFIG)
  return path


class Start:
  """One start of a run; ended when it is left."""

  def __init__(self, folder, workdir):
    self.workdir = workdir
    self.errors = folder / f"{workdir.name}.err"
    self.outputs = folder / f"{workdir.name}.out"
    with open(self.outputs, "w") as output, open(self.errors, "w") as error:
      self.process = subprocess.Popen(
        [
          sys.executable,
          "-m",
          "mmrl.train",
          f"--config={folder / 'config.py'}",
          f"--workdir={workdir}",
        ],
        cwd=ROOT,
        env=os.environ
        | {
          "XLA_FLAGS": FLAGS,
          "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        stdout=output,
        stderr=error,
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.process.poll() is None:
      self.process.kill()
    self.process.wait()

  def until(self, condition) -> bool:
    """Whether the condition came while the run went on."""
    deadline = time.monotonic() + 300
    while self.process.poll() is None:
      if condition():
        return True
      assert time.monotonic() < deadline
      time.sleep(0.002)
    return False

  def error(self) -> str:
    return self.errors.read_text()


def finish(folder, workdir):
  with Start(folder, workdir) as start:
    assert start.process.wait(400) == 0, start.error()
  return start


@pytest.fixture(scope="module")
def whole(folder):
  finish(folder, folder / "whole")
  return folder / "whole"


def rows(workdir):
  """metrics.jsonl without what a clock or a compiler has a hand in."""
  text = (workdir / "metrics.jsonl").read_text()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in text.splitlines()
  ]


def assert_same(workdir, other):
  """Bit by bit."""
  ours, theirs = (
    safetensors.numpy.load_file(path / "model" / "model.safetensors")
    for path in (workdir, other)
  )
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
  assert rows(workdir) == rows(other)
  for name in ("before.json", "after.json"):
    assert (workdir / name).read_text() == (other / name).read_text()
  left = [p.name for p in workdir.glob("checkpoints/*")]
  assert sorted(left) == [str(STEPS - 1), str(STEPS)], left


def kill_again_and_again(folder, workdir, moments, chance) -> int:
  """Kills a run at these moments, one a start; returns how often."""
  kills = 0
  for moment in moments:
    condition, longest = MOMENTS[moment]
    delay = chance.uniform(0, longest)
    before = newest(workdir)
    with Start(folder, workdir) as start:
      if not start.until(lambda: condition(workdir, before)):  # noqa: B023
        assert start.process.returncode == 0, (moment, start.error())
        break
      time.sleep(delay)
      if start.process.poll() is None:
        start.process.kill()
        kills += 1
      assert start.process.wait() in (0, -signal.SIGKILL), start.error()
    assert newest(workdir) >= before
  last = finish(folder, workdir)
  assert "Traceback" not in last.error() and "warning" not in last.error()
  return kills


@pytest.mark.slow
def test_four_kills(folder, whole):
  workdir = folder / "four"
  moments = ("claimed", "saving", "step", "end")
  assert kill_again_and_again(folder, workdir, moments, random.Random(0)) == 4
  assert_same(workdir, whole)


@pytest.mark.slow
def test_twenty_kills(folder, whole):
  """At moments from a seeded generator, over as many runs as it takes."""
  chance, kills, runs = random.Random(1), 0, 0
  kinds = ("start", "claimed", "step", "saving", "saved")
  while kills < 20:
    runs += 1
    workdir = folder / f"twenty-{runs}"
    moments = [*chance.choices(kinds, k=6), "end"]
    kills += kill_again_and_again(folder, workdir, moments, chance)
    assert_same(workdir, whole)
    assert runs < 10


def test_sigterm_in_a_step(folder, whole):
  """The step is finished and saved."""
  workdir = folder / "step"
  with Start(folder, workdir) as start:
    assert start.until(lambda: lines(workdir) >= 2)
    start.process.send_signal(signal.SIGTERM)
    assert start.process.wait(120) == processes.RESTART, start.error()
  step = lines(workdir)
  assert 2 <= step < STEPS and newest(workdir) == step
  text = start.error()
  assert (
    text.count(f"stopped by SIGTERM after step {step}, which is saved") == 1
  )
  assert "Traceback" not in text
  again = finish(folder, workdir)
  said = f"resuming {workdir} after step {step}"
  assert said in again.outputs.read_text()
  assert_same(workdir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_sigterm_in_an_evaluation(folder, whole, moment):
  """It is left at once, and made anew."""
  workdir = folder / moment
  with Start(folder, workdir) as start:
    if moment == "before":
      # Written when the run is ready, just before its first evaluation.
      assert start.until((workdir / "metrics.jsonl").exists)
    else:
      assert start.until(lambda: newest(workdir) == STEPS)
    start.process.send_signal(signal.SIGTERM)
    assert start.process.wait(120) == processes.RESTART, start.error()
  assert not (workdir / f"{moment}.json").exists()
  text = start.error()
  assert text.count("stopped by SIGTERM") == 1 and "Traceback" not in text
  assert "the same command goes on from there" in text
  finish(folder, workdir)
  assert_same(workdir, whole)
