"""A check before a run, and questions that a run leaves out."""

import functools
import json
import pathlib
import sys

from absl.testing import flagsaver
import jax
import pytest
import rows
import runs

from mmrl import check, commands
from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.train import loop
from mmrl.train import run as run_lib
from mmrl.workdir import questions


def make_config(folder, count=12, spoiled=True, tests=3):
  """A config of questions in a folder, and the faults of some by index."""
  found = rows.good(folder, count)
  faults = rows.spoil(folder, found) if spoiled else {}
  config = config_lib.get_config()
  for spec, part in (
    (config.data, {"train": found}),
    (config.evaluation.benchmarks.test, {"data": rows.good(folder, tests)}),
  ):
    ((field, content),) = part.items()
    path = rows.write(folder / f"{field}.jsonl", content)
    spec[field] = {"name": "Files", "path": path}
  config.rollout.prompts = 4
  config.shares.every = 0
  del config.losses["kl"], config.models["reference"]
  return config, faults


def test_a_check_lists_what_cannot_be_used(tmp_path, capsys):
  config, faults = make_config(tmp_path)
  prepared = run_lib.prepare(config, jax.devices()[:1])
  output = tmp_path / "found.jsonl"
  with pytest.raises(UserError, match=r"found 5 that can't; .*found\.jsonl"):
    run_lib.check(prepared, output)
  listed = [json.loads(line) for line in output.read_text().splitlines()]
  assert {one["index"]: one["fault"] for one in listed} == faults
  assert all(one["message"].startswith(one["name"]) for one in listed)
  text = capsys.readouterr().out
  assert "config.data.train: 12 questions, 5 of which can't be used" in text
  assert "config.evaluation.benchmarks.test: 3 questions, 0 of" in text


def test_what_a_run_leaves_out_is_no_fault_of_it_but_of_a_benchmark(tmp_path):
  config, _ = make_config(tmp_path)
  config.data.skip_broken = config.data.skip_long = True
  prepared = run_lib.prepare(config, jax.devices()[:1])
  assert len(run_lib.check(prepared, tmp_path / "found.jsonl")) == 12
  config.evaluation.benchmarks.test.data.path = config.data.train.path
  prepared = run_lib.prepare(config, jax.devices()[:1])
  # Its pictures share the room of a batch: one of them may be larger.
  with pytest.raises(UserError, match="found 4 that can't"):
    run_lib.check(prepared, tmp_path / "found.jsonl")


@pytest.mark.parametrize(
  ("broken", "long", "left"), [(True, False, "long"), (False, True, "broken")]
)
def test_what_no_option_covers_is_refused(tmp_path, broken, long, left):
  config, _ = make_config(tmp_path)
  config.data.skip_broken, config.data.skip_long = broken, long
  with pytest.raises(UserError, match=f"or set config.data.skip_{left}$"):
    run_lib.build_run(config, jax.devices()[:1])


@pytest.mark.full
def test_a_run_that_resumes_leaves_out_the_same(tmp_path, capsys, monkeypatch):
  """Without opening them again, unless the file has changed."""
  config, faults = make_config(tmp_path)
  config.data.skip_broken = config.data.skip_long = True
  workdir = tmp_path / "run"

  def build():
    run = run_lib.build_run(config, jax.devices()[:1], workdir=workdir)
    return run, capsys.readouterr().err

  first, said = build()
  assert "left out 5 of 12 training questions" in said
  assert [one.index for one in first.record.skipped] == [*faults]
  assert len(first.train_source) == 7
  first.record.write(workdir)
  rows.picture(tmp_path, "broken.png")  # somebody repairs it
  inspected = []
  inspect = run_lib._inspect_train
  monkeypatch.setattr(
    run_lib,
    "_inspect_train",
    lambda *given, **options: inspected.append(1) or inspect(*given, **options),
  )
  again, said = build()
  assert "left out 5 of 12" in said and "changed" not in said
  assert again.record == first.record and not inspected
  path = tmp_path / "train.jsonl"
  path.write_text(path.read_text().replace("what?", "who?"))
  third, said = build()
  assert f"changed since the run began: {path};" in said
  assert inspected and "left out 4 of 12" in said
  assert third.record.changed(first.record) == [str(path)]


@pytest.mark.full
def test_nothing_is_opened_unless_it_is_asked_for(tmp_path, capsys):
  config, _ = make_config(tmp_path)
  run = run_lib.build_run(config, jax.devices()[:1])
  assert len(run.train_source) == 12 and not run.record.skipped
  assert [*run.record.files] == [
    str(tmp_path / f"{name}.jsonl") for name in ("data", "train")
  ]
  assert "left out" not in capsys.readouterr().err


@pytest.mark.full
def test_trajectories_of_what_is_left_out_are_taken(tmp_path):
  config, faults = make_config(tmp_path)
  path = config.data.train.path
  lines = [{"name": f"{path}:{i + 1}", "text": "red"} for i in range(12)]
  experts = rows.write(tmp_path / "experts.jsonl", lines)
  config_lib.wrap_rollout(
    config, name="with_experts", path=experts, accuracy="accuracy"
  )
  config.advantage = {"name": "expert_group_normalised"}
  config.data.skip_broken = config.data.skip_long = True
  run = run_lib.build_run(config, jax.devices()[:1])
  assert len(run.train_source) == 12 - len(faults)


@pytest.mark.parametrize("spoiled", [False, True])
def test_the_command(tmp_path, monkeypatch, capsys, spoiled):
  """One line and status 2 if something can't be used."""
  config, _ = make_config(tmp_path, spoiled=spoiled)
  code = "\n".join(
    [
      "from mmrl import config as config_lib",
      "def get_config():",
      "  config = config_lib.get_config()",
      f"  config.data = {config.data.to_dict()!r}",
      f"  config.evaluation = {config.evaluation.to_dict()!r}",
      "  config.rollout.prompts = 4",
      "  config.shares.every = 0",
      "  del config.losses['kl'], config.models['reference']",
      "  return config",
    ]
  )
  (tmp_path / "config.py").write_text(code)
  one = functools.partial(run_lib.prepare, devices=jax.devices()[:1])
  monkeypatch.setattr(run_lib, "prepare", one)
  monkeypatch.setattr(commands, "keep_freed_memory", lambda: None)
  monkeypatch.chdir(tmp_path)
  arguments = ["mmrl.check", f"--config={tmp_path / 'config.py'}"]
  monkeypatch.setattr(sys, "argv", arguments)
  with flagsaver.flagsaver():
    if "output" not in commands.flags.FLAGS:
      check.define_flags()
    if spoiled:
      with pytest.raises(SystemExit) as status:
        commands.run(check.main, required=("config",))
      assert status.value.code == 2
    else:
      commands.run(check.main, required=("config",))
  text = capsys.readouterr()
  assert len((tmp_path / "check.jsonl").read_text().splitlines()) == 5 * spoiled
  errors = [x for x in text.err.splitlines() if x.startswith("error: ")]
  assert len(errors) == spoiled


@pytest.mark.full
def test_sizes_come_from_all_questions(tmp_path, capsys):
  """One pair for a few; a run that resumes keeps it, whatever else is there."""
  config, _ = make_config(tmp_path, spoiled=False)
  config.data.lengths = config.data.patches = ()
  wide = rows.good(tmp_path, 3)
  wide[1]["images"] = [rows.picture(tmp_path, "wide.png", 160, 64)]
  rows.write(tmp_path / "data.jsonl", wide)
  workdir = tmp_path / "run"

  def build():
    run = run_lib.build_run(config, jax.devices()[:1], workdir=workdir)
    return run, capsys.readouterr().out

  run, said = build()
  sizes = run.config.data
  assert sizes.patches == (160,) and len(sizes.lengths) == 1
  assert f"padded to {sizes.lengths[0]} tokens and 160 patches" in said
  # What claims the working directory is the config that was given.
  assert config.data.lengths == () == config.data.patches
  prompt = next(loop.read_questions(run)).prompt
  assert prompt.tokens.shape[1] == sizes.lengths[0]
  run.record.write(workdir)
  again, said = build()
  assert again.config.data == run.config.data and "padded" not in said
  rows.write(tmp_path / "data.jsonl", rows.good(tmp_path, 3))
  third, said = build()
  assert third.config.data.patches == (64,) and "padded" in said
  rows.spoil(tmp_path, wide := rows.good(tmp_path, 9))
  rows.write(tmp_path / "data.jsonl", wide)
  with pytest.raises(UserError, match=r"data\.jsonl:2: expected a readable"):
    build()


RUN = (
  "config.rollout.prompts = 4",
  "config.rollout.answers = 2",
  "config.train.steps = 2",
  "config.train.minibatches = 1",
  "config.checkpoint.every = 1",
  "config.shares.every = 0",
  "config.data.train = {'name': 'Files', 'path': PATH}",
  "config.evaluation.benchmarks = {}",
)


@pytest.mark.full
def test_a_run_checks_skips_and_resumes(tmp_path):
  """In two processes, which leave out the same."""
  found = rows.good(tmp_path, 24)
  faults = rows.spoil(tmp_path, found)
  path = rows.write(tmp_path / "train.jsonl", found)
  folder = runs.make_folder(tmp_path, f"PATH = {path!r}", *RUN)
  with runs.start(folder, tmp_path / "a", arguments=("--check",)) as started:
    assert started.wait() == [2]
  assert "error: expected questions that can be used" in started.error()
  assert not (tmp_path / "a" / "config.json").exists()
  skip = ("--config.data.skip_broken", "--config.data.skip_long")
  workdir = tmp_path / "two"
  runs.finish(folder, workdir, 2, arguments=(*skip, "--check"))
  record = questions.read(workdir)
  assert record is not None
  assert [one.index for one in record.skipped] == [*faults]
  summary = json.loads((workdir / "summary.json").read_text())
  assert sum(summary["skipped"].values()) == len(faults)
  (tmp_path / "train.jsonl").write_text(pathlib.Path(path).read_text() + "\n")
  more = (*skip, "--config.train.steps=3")
  started = runs.finish(folder, workdir, 2, arguments=more)
  assert started.error(0).count("changed since the run began") == 1
  assert "changed" not in started.error(1)
