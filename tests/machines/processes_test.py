"""Whole runs of several processes: the same training, and a clean end.

Over the budget of a file: seventeen processes that each trace every program of
a run.
"""

import shutil
import signal

import pytest
import runs

from mmrl.machines import signals

pytestmark = pytest.mark.full
CONFIG = (
  "config.rollout.prompts = 8",
  "config.rollout.answers = 4",
  "config.train.steps = 4",
  "config.checkpoint.every = 2",
  'config.optimizer = {"name": "sgd", "momentum": 0.9}',
  "config.schedule.value = 0.1",
  "config.shares.every = 0",
)
# Until those that are left notice that one has died: JAX misses the first one
# at once, and another by its heartbeats, after 100 seconds. On a busy machine.
NOTICED_SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return runs.make_folder(tmp_path_factory.mktemp("processes"), *CONFIG)


@pytest.fixture(scope="module")
def alone(folder):
  """A run of one process."""
  runs.finish(folder, folder / "one", 1)
  return folder / "one"


@pytest.fixture(scope="module")
def pair(folder):
  """An uninterrupted run of two; the first process comes last."""
  started = runs.finish(folder, folder / "two", 2, order=(1, 0), pause=5)
  return folder / "two", started


def test_two_processes_train_what_one_does(alone, pair):
  """The first of two alone writes, and says how it ends."""
  workdir, started = pair
  runs.assert_close(workdir, alone)
  assert runs.names(workdir) == runs.names(alone)
  assert "report:" in started.output(0)
  assert "report:" not in started.output(1)
  assert not list(workdir.rglob(".*.part"))
  assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_four_processes_train_what_one_does(folder, alone):
  runs.finish(folder, folder / "four", 4)
  runs.assert_close(folder / "four", alone)
  assert runs.names(folder / "four") == runs.names(alone)


@pytest.mark.parametrize("killed", [0, 1])
def test_one_dies_and_the_others_stop(folder, pair, killed):
  """By SIGKILL, in mid-run; the same command goes on, with nothing lost."""
  workdir, _ = pair
  ours = folder / f"killed-{killed}"
  with runs.start(folder, ours, 2) as started:
    assert started.until(lambda: runs.saved(ours) >= 2), started.errors()
    started.processes[killed].kill()
    started.processes[killed].wait()
    left = 1 - killed
    status = started.processes[left].wait(NOTICED_SECONDS)
    assert status == signals.RESTART, started.error(left)
    text = started.error(left)
    assert "Traceback" not in text
    assert text.count("run the same command again") == 1, text
  # What is saved is the same, whoever died; of the first, saving is left over.
  if killed == 0:
    again = runs.finish(folder, ours, 2)
    assert "resuming" in again.output(0)
    runs.assert_same(ours, workdir)


def test_a_signal_to_one_stops_all_and_loses_nothing(folder, pair):
  """Of the last process; also goes on as a run of one."""
  workdir, _ = pair
  ours = folder / "stopped"
  with runs.start(folder, ours, 2) as started:
    assert started.until(lambda: runs.logged(ours)), started.errors()
    started.processes[1].send_signal(signal.SIGTERM)
    assert started.wait(NOTICED_SECONDS) == [signals.RESTART] * 2
  steps = runs.logged(ours)
  assert 0 < steps < 4
  said = f"stopped by SIGTERM after step {steps}, which is saved"
  for text in started.errors():
    assert text.count(said) == 1 and "Traceback" not in text, text
  assert runs.saved(ours) == steps
  copy = folder / "fewer"
  shutil.copytree(ours, copy)
  runs.finish(folder, ours, 2)
  runs.assert_same(ours, workdir)
  single = runs.finish(folder, copy, 1)
  said = f"resuming {copy} after step {steps}"
  assert said in single.output(0)
  runs.assert_close(copy, workdir)


def error_lines(started, index):
  text = started.error(index)
  assert "Traceback" not in text, text
  return [line for line in text.splitlines() if line.startswith("error: ")]


def test_processes_that_disagree_on_the_config(folder):
  ours = folder / "disagree"
  each = [(), ("--config.seed=7",)]
  with runs.start(folder, ours, 2, each=each) as started:
    assert started.wait(NOTICED_SECONDS) == [2, 2], started.error(0)
  for i in range(2):
    (line,) = error_lines(started, i)
    assert "same config and --workdir on all 2 processes" in line
    assert "process 0's on 1" in line
  assert not ours.exists()


def test_a_working_directory_in_use(folder):
  """Said by every process of the second run; the first isn't disturbed."""
  ours = folder / "shared"
  # More steps than there are until the second run has traced its own.
  long = ("--config.train.steps=100000",)
  with runs.start(folder, ours, 1, arguments=long) as first:
    assert first.until((ours / "config.json").exists), first.error()
    with runs.start(folder, ours, 2) as second:
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
from mmrl import commands
from mmrl.machines import processes

def main():
  processes.join(
    commands.COORDINATOR.value,
    commands.PROCESSES.value,
    commands.PROCESS.value,
    timeout_seconds=5,
  )

commands.run(main, required=("config", "workdir"), also=commands.JOINING)
"""
  with runs.start(
    folder, folder / "never", 2, order=[index], program=("-c", program)
  ) as started:
    assert started.wait(NOTICED_SECONDS) == [2], started.errors()
  (line,) = started.error(index).splitlines()
  assert line.startswith("error: ")
  assert "expected 2 processes to join at localhost" in line
  assert "each with its own --process" in line
