"""Whole runs: what a stopped run leaves, and that resuming changes nothing.

Over the budget of a file: three processes by default, eight more in the full
set, each of which traces every program of a run.
"""

import html
import importlib.util
import json
import re
import sys
from unittest import mock

from absl.testing import flagsaver
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from mmrl import commands, evaluate
from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.train import __main__, collect, loop
from mmrl.train import run as run_lib
from mmrl.train.state import State
from mmrl.types import Batch
from mmrl.workdir import checkpoint, claim, lock

CONFIG = (
  "config.rollout.prompts = 4",
  "config.rollout.answers = 4",
  "config.train.steps = 5",
  "config.checkpoint.every = 2",
  # Two processes round differently, of which Adam may make whole steps.
  'config.optimizer = {"name": "sgd", "momentum": 0.9}',
  "config.schedule.value = 0.1",
  "config.shares.every = 0",
  "config.evaluation.every = 2",
  # A run that is killed has samples of a step that it does again.
  "config.samples.every = 1",
  "config = config_lib.add_ral(config)",
)


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(runs.FLAGS, id="quick"),
    # XLA's optimiser is on, as in a user's run.
    pytest.param("", id="optimised", marks=pytest.mark.full),
  ],
)
def flags(request):
  return request.param


# For tests to which it makes no difference.
QUICK = pytest.mark.parametrize(
  "flags", [runs.FLAGS], ids=["quick"], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return runs.make_folder(tmp_path_factory.mktemp("runs"), *CONFIG)


@pytest.fixture(scope="module")
def finished(folder, flags):
  workdir = folder / f"whole{len(flags)}"
  started = runs.finish(folder, workdir, flags=flags)
  return workdir, started.output()


def read_config(folder):
  spec = importlib.util.spec_from_file_location("c", folder / "config.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_a_run_leaves_what_it_says(finished):
  workdir, output = finished
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
    "samples.jsonl",
  }
  summary = json.loads((workdir / "summary.json").read_text())
  found = summary["benchmarks"]["test"]
  assert found["items"] == 8
  for when in ("before", "after", "baseline"):
    number = found[when]["accuracy"]
    assert 0 <= number["low"] <= number["value"] <= number["high"] <= 1
  assert summary["wall_seconds"] > 0 < summary["compile_seconds"]
  assert "before" in output and "after" in output
  for line in runs.rows(workdir):
    assert {
      "reward/accuracy",
      "reward/format",
      "attention/region",
      "attention/jsd_mean",
      "rollout/sampler_scorer_gap",
    } <= set(line)
    assert all(np.isfinite(value) for value in line.values())
    assert line["rollout/sampler_scorer_gap"] < 1e-4
    assert line["rollout/sampler_scorer_outside_1_percent"] == 0
  assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_a_run_says_what_it_does(finished):
  """On its first process; without a carriage return, as it is in a file."""
  workdir, output = finished
  for text in (
    "device:      1 x cpu\n",
    "model:       tiny, qwen2_5_vl, 642 k parameters in float32 (2.57 MB)",
    "data:        EasyVQA, 38,575 questions; padded to 40 tokens and 64 patch",
    f"workdir:     {workdir}\n",
    "programs:    kept for later runs in ",
    f"tensorboard --logdir {workdir}/tensorboard\n",
    *("reading weights ... ", "tracing a step, ", "writing the model ... "),
    *("evaluating before training ... ", "evaluating after training ... "),
    *("step 1 of 5, ", "step 5 of 5, ", "0.0 s left; reward "),
  ):
    assert text in output, text
  assert "\r" not in output


def test_sample_completions(finished):
  """Of each step two, in all places."""
  workdir, output = finished
  lines = (workdir / "samples.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row["step"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
  report = html.unescape((workdir / "report.html").read_text())
  (board,) = (workdir / "tensorboard").iterdir()
  for row in rows:
    name, right = row["name"], row["right"]
    assert name.startswith("easy_vqa/train/") and len(right) == 1
    assert f"sample of step {row['step']}, {name}\n" in output
    rewards = row["rewards"]
    assert [*rewards] == ["accuracy", "format"]
    total = 0.9 * rewards["accuracy"] + 0.1 * rewards["format"]
    assert row["total"] == pytest.approx(total)
    if rewards["accuracy"]:
      assert right[0] in row["answer"]
    assert f"    {row['question']}".encode() in board.read_bytes()
    assert (f"<h3>{row['question']}</h3>" in report) or row["step"] <= 2
  # Step 3 is the first of the last six.
  assert re.findall(r"Step (\d)\n", report) == [*"334455"]
  # With their pictures.
  assert board.read_bytes().count(b"\x89PNG") == 10
  assert report.count('class="sample"') == 6


def test_evaluations_in_between_are_logged(finished):
  """Every second step, as after the last one, which isn't one of them."""
  workdir, _ = finished
  lines = runs.rows(workdir)
  evaluated = [line["step"] for line in lines if "test/accuracy" in line]
  assert evaluated == [2, 4]
  names = {name for name in lines[1] if name.startswith("test/")}
  after = json.loads((workdir / "after.json").read_text())["test"]
  assert names == {f"test/{name}" for name in after["numbers"]}
  assert {"test/accuracy", "test/format", "test/attention/region"} <= names


@pytest.mark.parametrize("updates", [1, 4])
def test_metrics_of_every_update(updates):
  """Two minibatches, one or two times: the last, the first and the mean."""
  config = config_lib.get_config()
  config.shares.every = 0
  config.train.minibatches = min(updates, 2)
  config.train.epochs = max(1, updates // 2)
  taken = []

  def update(state, fixed, batch, minibatch):
    taken.append(int(minibatch))
    return state, {"loss/total": jnp.float32(len(taken) ** 2)}

  run, state, batch = map(mock.Mock, (run_lib.Run, State, Batch))
  run.configure_mock(config=config, fixed={}, programs=mock.Mock(update=update))
  before = {"reward/total": 0.5}
  _, values = loop.learn(run, state, batch, before, 1, 0)
  measured = {k: v for k, v in values.items() if not k.startswith("time/")}
  if updates == 1:
    assert measured == before | {"loss/total": 1}
  else:
    assert taken == [0, 1, 0, 1]
    assert measured == before | {
      "loss/total": 16,
      "first/loss/total": 1,
      "mean/loss/total": (1 + 4 + 9 + 16) / 4,
    }


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


@pytest.mark.full
def test_killed_and_resumed_equals_uninterrupted(folder, finished, flags):
  """SIGKILL between two checkpoints; the steps after the last are redone."""
  whole, _ = finished
  workdir = folder / f"killed{len(flags)}"
  with runs.start(folder, workdir, flags=flags) as run:
    assert run.until(
      lambda: runs.saved(workdir) >= 2 and runs.logged(workdir) >= 3
    ), run.error()
    run.processes[0].kill()
  again = runs.finish(folder, workdir, flags=flags)
  assert "resuming" in again.output()
  runs.assert_same(workdir, whole)


def test_a_finished_run_is_left_as_it_is(folder, finished, monkeypatch, capsys):
  """Whatever of it may change; no part of it is built."""
  workdir, _ = finished
  config = read_config(folder)
  config.checkpoint.keep += 1
  before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  monkeypatch.setattr(run_lib, "build_run", None)
  summary = loop.train(config, str(workdir))
  assert summary == json.loads((workdir / "summary.json").read_text())
  said = capsys.readouterr().out
  assert f"{workdir} has already finished its 5 steps" in said
  assert before == {p: p.read_bytes() for p in before}


def test_a_busy_workdir_is_refused_before_anything_is_built(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(run_lib, "build_run", None)
  with (
    lock.hold(tmp_path),
    pytest.raises(UserError, match=f"{tmp_path} in use by process"),
  ):
    loop.train(read_config(folder), str(tmp_path))


@QUICK
@pytest.mark.full
def test_more_steps_equal_as_many_from_the_start(folder, finished, flags):
  """Of a finished run: what it made at its end is made anew."""
  whole, _ = finished
  workdir = folder / f"more{len(flags)}"
  fewer = ("--config.train.steps=3",)
  runs.finish(folder, workdir, flags=flags, arguments=fewer)
  assert runs.saved(workdir) == 3
  first = json.loads((workdir / "summary.json").read_text())
  again = runs.finish(folder, workdir, flags=flags)
  assert f"resuming {workdir} after step 3" in again.output()
  runs.assert_same(workdir, whole)
  last, wanted = (
    json.loads((path / "summary.json").read_text()) for path in (workdir, whole)
  )
  assert (first["steps"], last["steps"]) == (3, 5)
  assert last["benchmarks"] == wanted["benchmarks"]
  assert "5 steps" in (workdir / "report.html").read_text()
  assert (
    json.loads((workdir / "config.json").read_text())["train"]["steps"] == 5
  )


@QUICK
@pytest.mark.full
def test_an_update_that_blows_up_is_not_published(folder, flags):
  """The very last one of six, to finite values that nobody would see."""
  blown = folder / f"blown{len(flags)}"
  blown.mkdir()
  lines = (
    "config.train.steps = 3",
    "config.checkpoint.every = 1",
    "config.schedule = {'name': 'exponential_decay', 'init_value': 0.1,"
    " 'transition_steps': 1, 'decay_rate': 1e31, 'transition_begin': 4}",
  )
  runs.make_folder(blown, *CONFIG, *lines)
  workdir = blown / "run"
  for again in (False, True):
    with runs.start(blown, workdir, flags=flags) as run:
      assert run.wait() == [2], run.error()
    (line,) = run.error().splitlines()
    assert "after step 3, which isn't saved" in line
    assert "the newest checkpoint is of step 2" in line
    assert ("resuming" in run.output()) == again
    assert runs.saved(workdir) == 2 and not (workdir / "model").exists()


@QUICK
@pytest.mark.full
def test_evaluate_finds_what_the_run_found(folder, finished, flags):
  workdir, _ = finished
  program = "-m", "mmrl.evaluate"
  again = runs.finish(folder, workdir, program=program, flags=flags)
  found = json.loads(again.output())
  wanted = json.loads((workdir / "after.json").read_text())
  found, wanted = found["test"], wanted["test"]
  assert found["items"] == wanted["items"] == 8
  assert found["numbers"]["accuracy"] == wanted["numbers"]["accuracy"]
  assert found["baseline"] == wanted["baseline"]
  region = wanted["numbers"]["attention/region"]
  assert found["numbers"]["attention/region"] == pytest.approx(region)


def test_evaluate_without_benchmarks(tmp_path):
  config = config_lib.get_config()
  config.evaluation.benchmarks = {}
  with pytest.raises(UserError, match="benchmarks: expected at least one"):
    evaluate.run(config, str(tmp_path))


def test_evaluate_without_a_model(tmp_path):
  with pytest.raises(UserError, match="expected a trained model at .*/model"):
    evaluate.run(config_lib.get_config(), str(tmp_path))


def test_a_benchmark_is_not_called_as_what_is_logged():
  run, state = mock.Mock(run_lib.Run), mock.Mock(State)
  run.config = config_lib.get_config()
  run.benchmarks = {"reward": None, "test": None}
  saved = mock.Mock(checkpoint.Checkpoints)
  assert loop._evaluated(run, state, 1, {"loss/total": 1.0}, saved) == {}
  with pytest.raises(UserError, match="evaluation.benchmarks: .*'reward'"):
    loop._evaluated(run, state, 1, {"reward/total": 1.0}, saved)


class Broken:
  """An iterator whose next batch has a broken picture."""

  def __next__(self):
    raise UserError("data.jsonl:7: expected a readable picture")


def test_a_broken_picture_loses_nothing(tmp_path):
  """The steps before it are saved, with the position of the bad batch."""
  state = State(
    step=jnp.asarray(3, jnp.int32),
    trainable={"text/a": jnp.arange(4.0)},
    frozen={},
    optimizer=(),
    running={},
    averages={},
    norms={},
  )
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  with pytest.raises(UserError, match=r"data.jsonl:7"):
    collect.draw(Broken(), state, saved, {"next_index": 3})
  saved.wait()
  restored, position = saved.restore(state)
  assert int(restored.step) == 3 and position == {"next_index": 3}
  saved.close()


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    (
      "train.stops=3",
      "config.train.stops: expected a field.* the nearest is steps",
    ),
    ("data.test.split=x", "data.test is now .*benchmarks.test.data"),
    ("evaluation.form=answer", "form is now .*test.scores.format.form"),
    ("losses.policy.name=clipped", "valid names: .*clipped_ratio"),
    ("models.policy.path=nowhere", "found none at nowhere"),
    ("samples.every=-1", "samples.every: expected a number .*, found -1; set"),
    ("rollout.prompts=5", "multiple of train.minibatches"),
    *(
      pytest.param(*row, marks=pytest.mark.full)
      for row in (
        (
          "samples.count=0",
          "samples.count: expected a number .*, found 0; set",
        ),
        ("rollout.answers=1", "needs at least 2 answers per prompt"),
        ("data.lengths=(8,)", "expected at most 8 tokens, found"),
      )
    ),
    ("data.train.path=x", "path"),
    ("seed=9", "another config: config.seed is 0 there, found 9; pass"),
  ],
)
def test_a_mistake_is_one_line_and_status_2(
  folder, tmp_path, argument, message, monkeypatch, capsys
):
  """The command, called here: a process of its own takes seconds to start."""
  workdir = tmp_path / "run"
  if argument == "seed=9":
    claim.claim(workdir, read_config(folder))
  runs.use_devices(monkeypatch, 1)
  monkeypatch.setattr(commands, "keep_freed_memory", lambda: None)
  place = [f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
  monkeypatch.setattr(
    sys, "argv", ["mmrl.train", *place, f"--config.{argument}"]
  )
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
    commands.run(__main__.main)
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  lines = [x for x in error.splitlines() if x.startswith("error: ")]
  assert len(lines) == 1 and "Traceback" not in error
  assert re.search(message, lines[0]), lines[0]
