"""A run that is killed again and again ends as one that never was.

Over the budget of a file: some twelve starts of a run.
"""

import json
import pathlib
import random
import signal
import subprocess
import time

import pytest
import runs
import toys

from mmrl.machines import signals

# One kill of a whole run is in loop_test.
pytestmark = pytest.mark.full
STEPS = 6
FOLDER = str(pathlib.Path(toys.__file__).parent)
CONFIG = (
  "config.rollout.prompts = 8",
  "config.rollout.answers = 2",
  "config.rollout.length = 6",
  f"config.train.steps = {STEPS}",
  "config.checkpoint.every = 1",
  "config.schedule.value = 1e-3",
  # The best step is not one of the last two, so that a third checkpoint stays.
  "config.evaluation.every = 1",
  "config.checkpoint.best = 'test/attention/region'",
  "config.checkpoint.best_mode = 'min'",
  # A term with state, one with a share of the gradient, and an average of the
  # policy come through as well.
  "config.shares.update(every=2, prompts=2)",
  f"import sys; sys.path.insert(0, {FOLDER!r})",
  "import toys; toys.install()",
  "config.losses.head = {'name': 'value_head', 'weight': 1.0,"
  " 'reduce': 'token_mean'}",
  "config.losses.drift = {'name': 'drift', 'weight': {'share': 0.1, 'over': 2},"
  " 'reduce': 'prompt_mean'}",
  "config.models.average = {'name': 'Average', 'decay': 0.9, 'every': 2}",
)


# What a kill waits for, given the lines and the checkpoint at the start, and
# the longest time from there on, in seconds.
MOMENTS = {
  "start": (lambda workdir, before: True, 4.0),
  "claimed": (lambda workdir, before: (workdir / "config.json").exists(), 2.0),
  # Lines of steps that weren't saved are dropped before the first step.
  "step": (lambda workdir, before: runs.logged(workdir) > before, 0.6),
  "saving": (
    lambda workdir, before: any(workdir.glob("checkpoints/*tmp*")),
    0.03,
  ),
  "saved": (lambda workdir, before: runs.saved(workdir) > before, 0.1),
  "end": (lambda workdir, before: runs.saved(workdir) == STEPS, 0.5),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return runs.make_folder(tmp_path_factory.mktemp("kills"), *CONFIG)


@pytest.fixture(scope="module")
def whole(folder):
  runs.finish(folder, folder / "whole")
  return folder / "whole"


def assert_same(workdir, other):
  """And nothing else is left; the best step is the same, too."""
  runs.assert_same(workdir, other)
  best, wanted = (best_of(path) for path in (workdir, other))
  assert best == wanted
  left = [p.name for p in workdir.glob("checkpoints/*")]
  kept = {str(step) for step in (best["step"], STEPS - 1, STEPS)}
  assert len(left) == len(kept) and {*left} == kept, left


def best_of(workdir):
  return json.loads((workdir / "summary.json").read_text())["best"]


def test_the_best_step_is_that_of_the_log(whole):
  found = best_of(whole)
  values = [row[found["name"]] for row in runs.rows(whole)]
  assert found["value"] == min(values)
  assert found["step"] == 1 + values.index(min(values)) <= STEPS - 2


def kill_again_and_again(folder, workdir, moments, chance) -> int:
  """Kills a run at these moments, one a start; returns how often."""
  kills = 0
  for moment in moments:
    condition, longest = MOMENTS[moment]
    delay = chance.uniform(0, longest)
    before = runs.saved(workdir)
    with runs.start(folder, workdir) as run:
      process = run.processes[0]
      if not run.until(lambda: condition(workdir, before)):  # noqa: B023
        assert process.returncode == 0, (moment, run.error())
        break
      time.sleep(delay)
      if process.poll() is None:
        process.kill()
        kills += 1
      assert process.wait() in (0, -signal.SIGKILL), run.error()
    assert runs.saved(workdir) >= before
  last = runs.finish(folder, workdir)
  assert "Traceback" not in last.error() and "warning" not in last.error()
  return kills


def test_a_kill_at_every_moment(folder, whole):
  """In an order and after delays from a seeded generator."""
  chance, workdir = random.Random(1), folder / "killed"
  kinds = [moment for moment in MOMENTS if moment != "end"]
  moments = [*chance.sample(kinds, len(kinds)), "end"]
  kills = kill_again_and_again(folder, workdir, moments, chance)
  # A run may be over before it is killed at its end.
  assert kills >= len(kinds)
  assert_same(workdir, whole)


def stop(run) -> str:
  """Sends SIGTERM, at which the run ends; returns what it says."""
  run.processes[0].send_signal(signal.SIGTERM)
  assert run.wait(300) == [signals.RESTART], run.error()
  text = run.error()
  assert text.count("stopped by SIGTERM") == 1 and "Traceback" not in text
  return text


def test_sigterm_in_evaluations_and_in_a_step(folder, whole):
  """An evaluation is left at once, and made anew; a step is saved.

  The last start prints to a full disk: its exit status is that of training.
  """
  workdir, goes_on = folder / "signals", "the same command goes on from there"
  with runs.start(folder, workdir) as run:
    # Written when the run is ready, just before its first evaluation.
    assert run.until((workdir / "metrics.jsonl").exists)
    assert goes_on in stop(run)
  assert not (workdir / "before.json").exists()
  with runs.start(folder, workdir) as run:
    assert run.until(lambda: runs.logged(workdir) >= 2)
    text = stop(run)
  step = runs.logged(workdir)
  assert 2 <= step < STEPS and runs.saved(workdir) == step
  assert f"stopped by SIGTERM after step {step}, which is saved" in text
  with runs.start(folder, workdir) as run:
    # And the one that the last checkpoint replaces is gone.
    kept = len(list(whole.glob("checkpoints/*")))
    assert run.until(
      lambda: (
        runs.saved(workdir) == STEPS
        and len(list(workdir.glob("checkpoints/*"))) == kept
      )
    )
    assert goes_on in stop(run)
  assert f"resuming {workdir} after step {step}" in run.output()
  assert not (workdir / "after.json").exists()
  last = runs.finish(folder, workdir, output="/dev/full")
  assert "Traceback" not in last.error()
  assert_same(workdir, whole)


@pytest.fixture
def small_disk(tmp_path):
  """A disk of one page, where the tests may make one."""
  made = tmp_path / "disk"
  made.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(made)]
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip("needs to mount a disk")
  yield made
  subprocess.run(["umount", str(made)], check=True)


def test_a_disk_without_room_for_tensorboard(folder, whole, small_disk):
  """Neither a step, nor SIGTERM, nor the end waits for it."""
  workdir = folder / "small"
  workdir.mkdir()
  (workdir / "tensorboard").symlink_to(small_disk)
  (small_disk / "rest").write_bytes(bytes(4096))
  with runs.start(folder, workdir) as run:
    assert run.until(lambda: runs.logged(workdir) >= 3), run.error()
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.wait(300) == [signals.RESTART], run.error()
  texts = [run.error(), runs.finish(folder, workdir).error()]
  for text in texts:
    assert text.count("warning: could not write") == 1, text
    assert "No space left on device; training goes on" in text
    assert "Traceback" not in text
  assert_same(workdir, whole)
