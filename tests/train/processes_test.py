"""Whole runs of several processes: the same training, and a clean end."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from mmrl import processes

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from mmrl.train import defaults

def get_config():
  config = defaults.get_config()
  config.model.remat = False
  config.rollout.prompts = 8
  config.rollout.answers = 4
  config.train.steps = 4
  config.checkpoint.every = 2
  config.optimizer = {"name": "sgd", "momentum": 0.9}
  config.schedule.value = 0.1
  config.shares.every = 0
  config.evaluation.questions = 8
  config.evaluation.batch = 8
  config.evaluation.shown = 2
  return config
"""
# Programs are compiled often and run little: their optimiser is off.
FLAGS = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
# Until those that are left notice that one has died: JAX misses the first one
# at once, and another by its heartbeats, after 100 seconds.
NOTICED_SECONDS = 150


@dataclasses.dataclass
class Started:
  """Processes of one run, each with a file for what it prints."""

  processes: list[subprocess.Popen]
  outputs: list[pathlib.Path]
  errors: list[pathlib.Path]

  def wait(self, seconds: float = 400) -> list[int]:
    deadline = time.monotonic() + seconds
    return [
      process.wait(max(deadline - time.monotonic(), 0.01))
      for process in self.processes
    ]

  def error(self, index: int) -> str:
    return self.errors[index].read_text()

  def until(self, condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
      assert all(p.poll() is None for p in self.processes), self.error(0)
      assert time.monotonic() < deadline
      time.sleep(0.01)


def environment(folder):
  return os.environ | {
    "XLA_FLAGS": FLAGS,
    "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def free_port() -> int:
  with socket.socket() as taken:
    taken.bind(("localhost", 0))
    return taken.getsockname()[1]


@contextlib.contextmanager
def start(folder, workdir, count, *, each=(), order=None, pause=0.0):
  """Starts a run; ends what is left of it.

  Args:
    folder: of config and cache.
    workdir: of the run.
    count: of processes.
    each: further arguments of each process.
    order: in which they are started.
    pause: seconds between two starts.
  """
  port = free_port()
  began: dict[int, subprocess.Popen] = {}
  texts = workdir.parent / f"{workdir.name}-{port}"
  texts.mkdir()
  outputs = [texts / f"{i}.out" for i in range(count)]
  errors = [texts / f"{i}.err" for i in range(count)]
  try:
    for i in order or range(count):
      if began:
        time.sleep(pause)
      arguments = [
        f"--config={folder / 'config.py'}",
        f"--workdir={workdir}",
        *(each[i] if each else ()),
      ]
      if count > 1:
        arguments += [
          f"--coordinator=localhost:{port}",
          f"--processes={count}",
          f"--process={i}",
        ]
      with open(outputs[i], "w") as output, open(errors[i], "w") as error:
        began[i] = subprocess.Popen(
          [sys.executable, "-m", "mmrl.train", *arguments],
          cwd=ROOT,
          env=environment(folder),
          stdout=output,
          stderr=error,
        )
    yield Started([began[i] for i in range(count)], outputs, errors)
  finally:
    for process in began.values():
      if process.poll() is None:
        process.kill()
      process.wait()


def whole_run(folder, workdir, count, **options):
  with start(folder, workdir, count, **options) as started:
    statuses = started.wait()
    assert statuses == [0] * count, [
      started.error(i)[-2000:] for i in range(count)
    ]
  return started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("processes")
  (path / "config.py").write_text(CONFIG)
  return path


@pytest.fixture(scope="module")
def alone(folder):
  """A run of one process."""
  whole_run(folder, folder / "one", 1)
  return folder / "one"


@pytest.fixture(scope="module")
def pair(folder):
  """An uninterrupted run of two; the first process comes last."""
  started = whole_run(folder, folder / "two", 2, order=(1, 0), pause=5)
  return folder / "two", started


def rows(workdir):
  """metrics.jsonl without what a clock or a compiler has a hand in."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in lines
  ]


def parameters(workdir):
  return safetensors.numpy.load_file(workdir / "model" / "model.safetensors")


def names(workdir):
  """Files of a run; those of a checkpoint depend on who wrote which part."""
  return {
    path.relative_to(workdir).parts[0]
    for path in workdir.rglob("*")
    if path.is_file()
  }


def assert_same(workdir, other):
  """Bit by bit."""
  ours, theirs = parameters(workdir), parameters(other)
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
  assert rows(workdir) == rows(other)


def assert_close(workdir, other):
  """But for rounding, which sums over several processes round otherwise."""
  ours, theirs = rows(workdir), rows(other)
  assert len(ours) == len(theirs)
  for one, two in zip(ours, theirs, strict=True):
    assert set(one) == set(two)
    for name, value in two.items():
      if not name.startswith("rollout/sampler_scorer"):
        np.testing.assert_allclose(
          one[name], value, rtol=2e-4, atol=2e-6, err_msg=name
        )
  ours, theirs = parameters(workdir), parameters(other)
  first = safetensors.numpy.load_file(
    ROOT / "mmrl" / "models" / "tiny" / "model.safetensors"
  )
  assert ours.keys() == theirs.keys()
  moved_any = False
  for name, tensor in theirs.items():
    moved = np.abs(tensor - first[name]).max()
    moved_any |= moved > 0
    difference = np.abs(ours[name] - tensor)
    assert np.quantile(difference, 0.99) <= 0.02 * moved, name
  assert moved_any


def test_two_processes_train_what_one_does(alone, pair):
  workdir, started = pair
  assert_close(workdir, alone)
  assert names(workdir) == names(alone)
  # The first process alone says how it ends.
  assert "report:" in started.outputs[0].read_text()
  assert "report:" not in started.outputs[1].read_text()
  assert not list(workdir.rglob(".*.part"))
  assert len(list((workdir / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_four_processes_train_what_one_does(folder, alone):
  whole_run(folder, folder / "four", 4)
  assert_close(folder / "four", alone)
  assert names(folder / "four") == names(alone)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_dies_and_the_others_stop(folder, pair, killed):
  """Without a word, in mid-run; the same command goes on."""
  workdir, _ = pair
  ours = folder / f"killed-{killed}"
  with start(folder, ours, 2) as started:
    metrics = ours / "metrics.jsonl"
    saved = ours / "checkpoints" / "2"
    started.until(
      lambda: saved.exists() and metrics.read_text().count("\n") >= 2
    )
    started.processes[killed].kill()
    started.processes[killed].wait()
    left = 1 - killed
    status = started.processes[left].wait(NOTICED_SECONDS)
    assert status == processes.RESTART, started.error(left)
    text = started.error(left)
    assert "Traceback" not in text
    assert text.count("run the same command again") == 1, text
  if killed:
    return
  again = whole_run(folder, ours, 2)
  assert "resuming" in again.outputs[0].read_text()
  assert_same(ours, workdir)


@pytest.mark.slow
def test_sigterm_to_one_stops_all_and_loses_nothing(folder, pair):
  """Of the last process; also goes on as a run of one."""
  workdir, _ = pair
  ours = folder / "stopped"
  with start(folder, ours, 2) as started:
    metrics = ours / "metrics.jsonl"
    started.until(lambda: metrics.exists() and metrics.read_text())
    started.processes[1].send_signal(signal.SIGTERM)
    assert started.wait(NOTICED_SECONDS) == [processes.RESTART] * 2
    texts = [started.error(i) for i in range(2)]
  steps = len(rows(ours))
  assert 0 < steps < 4
  said = f"stopped by SIGTERM after step {steps}, which is saved"
  for text in texts:
    assert text.count(said) == 1 and "Traceback" not in text, text
  newest = max(
    int(p.name) for p in (ours / "checkpoints").iterdir() if p.name.isdigit()
  )
  assert newest == steps
  copy = folder / "fewer"
  shutil.copytree(ours, copy)
  whole_run(folder, ours, 2)
  assert_same(ours, workdir)
  single = whole_run(folder, copy, 1)
  said = f"resuming {copy} after step {steps}"
  assert said in single.outputs[0].read_text()
  assert_close(copy, workdir)


def error_lines(started, index):
  text = started.error(index)
  assert "Traceback" not in text, text
  return [line for line in text.splitlines() if line.startswith("error: ")]


def test_processes_that_disagree_on_the_config(folder):
  ours = folder / "disagree"
  each = [(), ("--config.seed=7",)]
  with start(folder, ours, 2, each=each) as started:
    assert started.wait(NOTICED_SECONDS) == [2, 2], started.error(0)
  for i in range(2):
    (line,) = error_lines(started, i)
    assert "same config and --workdir on all 2 processes" in line
    assert "process 0's on 1" in line
  assert not ours.exists()


def test_a_working_directory_in_use(folder):
  """Said by every process of the second run; the first isn't disturbed."""
  ours = folder / "shared"
  with start(folder, ours, 1) as first:
    first.until((ours / "config.json").exists)
    with start(folder, ours, 2) as second:
      assert second.wait(NOTICED_SECONDS) == [2, 2], second.error(0)
    assert first.processes[0].poll() is None
    held = (ours / "lock").read_text()
    assert f"process {first.processes[0].pid} " in held
  for i in range(2):
    (line,) = error_lines(second, i)
    assert f"{ours} in use by process {first.processes[0].pid}" in line


@pytest.mark.parametrize("index", [0, 1])
def test_one_that_never_comes(folder, index):
  """The one that waits gives up with a line that says what to do."""
  program = """
from mmrl import commands, processes

def main():
  processes.join(
    commands.COORDINATOR.value,
    commands.PROCESSES.value,
    commands.PROCESS.value,
    timeout_seconds=5,
  )

commands.run(main, required=())
"""
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      program,
      f"--coordinator=localhost:{free_port()}",
      "--processes=2",
      f"--process={index}",
    ],
    cwd=ROOT,
    env=environment(folder),
    capture_output=True,
    text=True,
    timeout=NOTICED_SECONDS,
  )
  assert result.returncode == 2, result.stderr
  (line,) = result.stderr.splitlines()
  assert line.startswith("error: ")
  assert "expected 2 processes to join at localhost" in line
  assert "each with its own --process" in line
