"""The study of attention: its arms, its queue, and what the table says."""

import json
import pathlib
import types

import pytest

from experiments import attention_study, compare, evidence, evidence_tables
from mmrl import build, data, evaluate
from mmrl.benchmarks import intervals, results
from mmrl.crosstable import sides, table
from mmrl.errors import UserError


def numbers(arm, seed, accuracy, region=0.2, share=0.0):
  return {
    "arm": arm,
    "seed": seed,
    "config": evidence_tables.digest(arm),
    "steps": 28,
    "after": {
      "accuracy": accuracy,
      "attention/region": region,
      "attention/border": 0.6,
      "attention/entropy": 0.9,
      **{f"accuracy/{kind}": 0.5 for kind in ("colour", "shape", "yes/no")},
    },
    "held": {"accuracy": accuracy - 0.2, "attention/region": region},
    "curve": {"7": accuracy - 0.1, "14": accuracy + 0.25},
    "shares": {"policy": 1 - share, "attention": share} if share else {},
  }


def write(folder, arm, seed, *values, **others):
  path = evidence_tables.raw(arm, seed, folder)
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(numbers(arm, seed, *values) | others))
  return path


def test_differences_are_of_the_same_seeds(tmp_path):
  """+1 and +3 points: 2 and 12.706 times the standard error of 1."""
  for seed, (base, ours) in enumerate(((0.5, 0.51), (0.6, 0.63))):
    write(tmp_path, "grpo", seed, base)
    write(tmp_path, "ral@10", seed, ours, 0.25, 0.125)
  write(tmp_path, "grpo", 7, 0.9)
  write(tmp_path, "sayo", 0, 0.4)
  found = evidence_tables.results(tmp_path)
  lines = evidence_tables.table(found).split("\n")
  assert lines[2:] == [
    "| grpo | 3 |  | 66.7% (50.0% to 90.0%) |  | 20.0% (20.0% to 20.0%) |  |",
    "| ral@10 | 2 | 12.50% | 57.0% (51.0% to 63.0%) | +2.0 ± 12.7 | 25.0%"
    " (25.0% to 25.0%) | +5.0 ± 0.0 |",
    "| sayo | 1 |  | 40.0% | -10.0 (one seed) | 20.0% | +0.0 (one seed) |",
  ]
  held = evidence_tables.table(found, "held").split("\n")
  assert held[3].startswith("| ral@10 | 2 | 12.50% | 37.0% (31.0% to 43.0%) |")
  rows = evidence_tables.readings(found).split("\n")
  assert rows[0].endswith("| steps to 75% |")
  assert rows[2:] == [
    "| grpo | 50.0% | 50.0% | 50.0% | 60.0% | 90.0% | 14, 14, 7 |",
    "| ral@10 | 50.0% | 50.0% | 50.0% | 60.0% | 90.0% | 14, 14 |",
    "| sayo | 50.0% | 50.0% | 50.0% | 60.0% | 90.0% | - |",
  ]
  evidence_tables.draw(found, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  "name, text",
  [
    ("x.json", "{"),
    ("x.json", "[]"),
    ("ral-at-10-0.txt", None),
    ("ral-at-10-1.json", None),
  ],
)
def test_no_other_file_is_counted(tmp_path, name, text):
  """A file by another name, of another seed, or of no run."""
  path = write(tmp_path, "ral@10", 0, 0.5)
  if text is not None:
    (path.parent / name).write_text(text)
  else:
    path.rename(path.parent / name)
  with pytest.raises(UserError, match=f"{name}: expected the numbers of a run"):
    evidence_tables.results(tmp_path)


def test_a_run_of_another_config_is_refused(tmp_path):
  write(tmp_path, "ral@10", 0, 0.5, config="0")
  with pytest.raises(UserError, match="expected the numbers of a run of this"):
    evidence_tables.results(tmp_path)
  with pytest.raises(
    UserError, match="expected a run of this config of ral@10"
  ):
    evidence.run(tmp_path, "ral@10", 0, tmp_path)


def held(config, workdir):
  """Numbers of held-back pictures: of seed 3's run."""
  assert config.seed == 3 and workdir.endswith("attention_study-ral-0.1-3")
  assert not config.evaluation.benchmarks.held.data.odd
  number = intervals.Estimate(0.25, 0.2, 0.3)
  return {"held": results.Result(9, {"accuracy": number}, {}, [])}


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
  """And what isn't is read from the run's own files."""
  made = []

  def one(output, arm, seed):
    made.append((arm, seed))
    workdir = compare.workdir_of(output, arm, seed)
    workdir.mkdir()
    value = {"accuracy": {"value": 0.5}, "attention/region": {"value": 0.25}}
    test = {"items": 9, "before": value, "after": value}
    (workdir / "summary.json").write_text(
      json.dumps(
        {"steps": 2, "wall_seconds": 1.2, "benchmarks": {"test": test}}
      )
    )
    rows = (
      {
        "step": 1,
        "gradient/share_policy": 0.5,
        "gradient/share_attention": 0.5,
      },
      {"step": 2, "test/accuracy": 0.75, "gradient/share_attention": 0.25},
    )
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

  monkeypatch.setattr(compare, "one", one)
  monkeypatch.setattr(evaluate, "results", held)
  for _ in range(2):
    evidence.run(tmp_path, "ral@0.1", 3, tmp_path)
  assert made == [("attention_study:ral@0.1", 3)]
  (found,) = evidence_tables.results(tmp_path)["ral@0.1"].values()
  assert found["after"] == {"accuracy": 0.5, "attention/region": 0.25}
  assert found["shares"] == {"policy": 0.5, "attention": 0.375}
  assert found["curve"] == {"2": 0.75} and found["items"] == 9
  assert found["held"] == {"accuracy": 0.25}


def test_texts_and_weights_beside_those_of_grpo(tmp_path, monkeypatch):
  """Made once, where both runs are over; means over seeds."""
  made = []

  def make(a, b, given, settings):
    made.append((a, b))
    number = intervals.Estimate(0.25 * len(made), 0.0, 1.0)
    effects = {"texts": number, "weights": intervals.Estimate(-0.5, -1.0, 0.0)}
    metrics = {
      name: types.SimpleNamespace(effects=effects)
      for name in ("right", "region_share", "visual")
    }
    return types.SimpleNamespace(asked=settings.questions, metrics=metrics)

  monkeypatch.setattr(table, "make", make)
  monkeypatch.setattr(sides, "find", lambda name: name.split("/")[-1])
  for arm, seed in (("grpo", 0), ("ral@10", 0), ("ral@10", 1), ("grpo", 1)):
    write(tmp_path, arm, seed, 0.5)
  for arm, seed in (("grpo", 0), ("ral@10", 0), ("ral@10", 1)):
    compare.workdir_of(tmp_path, f"attention_study:{arm}", seed).mkdir()
  for _ in range(2):
    evidence.run_cross(tmp_path, "ral@10", 0, tmp_path)
    evidence.run_cross(tmp_path, "ral@10", 1, tmp_path)
    evidence.run_cross(tmp_path, "kd@10", 0, tmp_path)
  assert made == [("attention_study-grpo-0", "attention_study-ral-10-0")]
  compare.workdir_of(tmp_path, "attention_study:grpo", 1).mkdir()
  evidence.run_cross(tmp_path, "ral@10", 1, tmp_path)
  lines = evidence_tables.crossed(
    evidence_tables.results(tmp_path, evidence_tables.cross)
  )
  number = "+0.375 (+0.250 to +0.500) | -0.500 (-0.500 to -0.500)"
  assert lines.split("\n")[2:] == [f"| ral@10 | 2 | {number} | {number} |"]


def test_two_commands_make_different_runs(tmp_path):
  with evidence.claimed(tmp_path, "ral@10", 0) as first:
    with evidence.claimed(tmp_path, "ral@10", 0) as second:
      assert first and not second
    with evidence.claimed(tmp_path, "ral@10", 1) as other:
      assert other
  with evidence.claimed(tmp_path, "ral@10", 0) as again:
    assert again


@pytest.mark.parametrize(
  "arm, message",
  [
    ("rall@10", "the nearest is ral"),
    ("ral", "expected a share of the gradient with terms"),
    ("sayo@10", "and none with sayo"),
    ("ral@0", "above 0 and below 100 percent, found '0'"),
    ("ral@100", "found '100'"),
    ("ral@ten", "found 'ten'"),
    ("ral@10@2", "found '10@2'"),
  ],
)
def test_mistakes_of_an_arm(arm, message):
  with pytest.raises(UserError, match=message):
    attention_study.get_config(arm)


def test_every_arm_differs_from_every_other():
  configs = [str(attention_study.get_config(x)) for x in attention_study.ARMS]
  assert len({*configs}) == len(configs)
  with pytest.raises(UserError, match="--arms: .* the nearest is ral@1"):
    evidence.check_arms(["grpo", "ral@11"])


def test_halves_share_no_picture():
  halves = [
    build.construct(data.sources, spec["data"], "test")
    for spec in (
      attention_study.held_back(),
      attention_study.get_config("grpo").evaluation.benchmarks.test.to_dict(),
    )
  ]
  pictures = [{row[2] for row in half.rows} for half in halves]
  names = [{*half.names()} for half in halves]
  assert not pictures[0] & pictures[1] and not names[0] & names[1]
  assert sum(map(len, halves)) == len(names[0] | names[1]) == 9673
  question = halves[1][5]
  whole = data.EasyVQA(split="test")
  place = int(question.name.split("/")[-1])
  assert whole[place].question == question.question


def test_the_numbers_in_the_docs_are_of_the_study_as_it_is():
  if pathlib.Path(evidence_tables.FOLDER / "raw").exists():
    evidence_tables.results(evidence_tables.FOLDER)
    evidence_tables.results(evidence_tables.FOLDER, evidence_tables.cross)
