"""What a run leaves of its evaluations."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from small_models import clip, picture, user

from mmrl import config as config_lib
from mmrl.benchmarks import results, runner
from mmrl.benchmarks.intervals import Estimate
from mmrl.data import Example
from mmrl.hub import config_json, directory
from mmrl.inspection import Finding
from mmrl.prompts.processor import Processor
from mmrl.workdir import summary


def result(value: float) -> results.Result:
  names = "accuracy", "format", "accuracy/red", "attention/region"
  return results.Result(
    items=8,
    numbers={name: Estimate(value, value / 2, 1.0) for name in names},
    baseline={"accuracy": Estimate(0.25, 0.0, 0.5)},
    shown=[results.Shown(3, "a", {"accuracy": 1.0}, [[[0.5, 0.25]]], None)],
  )


@functools.cache
def processor():
  path = directory.tiny_path()
  return Processor.load(path, config_json.read(path))


def write(path, rows, benchmarks, before, after):
  """Writes both; returns the content of summary.json and the page."""
  config = config_lib.get_config()
  config.train.steps = 4
  config.losses.kl = config.losses.kl.to_dict() | {"weight": {"share": 0.25}}
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(lines)
  found = summary.write(
    path,
    config,
    benchmarks,
    before,
    after,
    processor=processor(),
    skipped=[Finding(3, "a:4", fault="broken")],
    wall_seconds=2.0,
    compile_seconds=1.0,
  )
  assert json.loads((path / "summary.json").read_text()) == found
  return found, (path / "report.html").read_text()


@pytest.fixture
def benchmarks():
  settings = config_lib.get_config().evaluation.to_dict()
  return runner.build_benchmarks(settings)


def test_a_number_has_before_after_and_baseline(tmp_path, benchmarks):
  before, after = {"test": result(0.5)}, {"test": result(0.75)}
  found, page = write(tmp_path, [], benchmarks, before, after)
  assert found["steps"] == 4 and found["seed"] == 0
  assert found["skipped"] == {"broken": 1}
  assert found["wall_seconds"] == 2 and found["compile_seconds"] == 1
  test = found["benchmarks"]["test"]
  assert test["items"] == 8
  assert test["before"]["format"] == {"value": 0.5, "low": 0.25, "high": 1.0}
  assert test["after"]["accuracy/red"]["value"] == 0.75
  assert [*test["baseline"]] == ["accuracy"]
  assert "50.0% → 75.0%" in page
  assert "kl (25% of the gradient)" in page and "policy (1)" in page
  assert benchmarks["test"][3].question in page


def test_parts_follow_their_whole_in_the_report(tmp_path, benchmarks):
  one = {"test": result(0.5)}
  _, page = write(tmp_path, [], benchmarks, one, one)
  order = [
    page.index(f'<th scope="row">{name}')
    for name in ("accuracy", "red", "format", "attention")
  ]
  assert order == sorted(order)


@pytest.mark.parametrize(
  ("steps", "points"), [([], None), ([2], "0 2 4"), ([2, 4], "0 2 4")]
)
def test_curves_of_evaluations_begin_before_and_end_after(
  tmp_path, benchmarks, steps, points
):
  """Where there are any in between."""
  one = {"test": result(0.5)}
  rows = [
    {"step": step, "loss/total": 1.0}
    | ({"test/accuracy": 0.5} if step in steps else {})
    for step in range(1, 5)
  ]
  _, page = write(tmp_path, rows, benchmarks, one, one)
  _, found, drawing = page.partition("<b>test/<wbr>accuracy</b>")
  assert bool(found) == bool(points)
  if points:
    hover = drawing.partition('data-points="')[2].partition('"')[0]
    drawn = [point.split()[0] for point in hover.split(";")[:-1]]
    assert drawn == points.split()


def test_a_run_without_benchmarks(tmp_path):
  found, page = write(tmp_path, [{"step": 1, "loss/total": 1.0}], {}, {}, {})
  assert found["benchmarks"] == {}
  assert "Before and after" not in page and "loss/<wbr>total" in page


def test_items_that_are_right_only_once(tmp_path, benchmarks):
  """By hand: 2 of 7 are right only before, 4 only after, p = 0.6875."""
  before, after = result(0.5), result(0.75)
  values = [[1, 1, 1, 0, 0, 0, 0, np.nan], [1, 0, 0, 1, 1, 1, 1, 1]]
  pair = [
    dataclasses.replace(
      one,
      right=results.right(
        {
          "accuracy": np.array(marks, np.float64),
          "accuracy/red": np.array(marks, np.float64),
          "format": np.full(8, 0.5),
        }
      ),
    )
    for one, marks in zip((before, after), values, strict=True)
  ]
  assert pair[0].right == {"accuracy": "1110000-"}
  found, page = write(
    tmp_path, [], benchmarks, {"test": pair[0]}, {"test": pair[1]}
  )
  paired = found["benchmarks"]["test"]["paired"]
  assert paired == {"accuracy": {"first": 2, "second": 4, "p": 0.6875}}
  assert "2 · 4 (McNemar p = 0.69)" in page
  # Those of a run before there were such, or of other items.
  assert results.paired(before, pair[1]) == {}
  other = dataclasses.replace(before, right={"accuracy": "11"})
  assert results.paired(other, pair[1]) == {}


def shown(index, heat):
  return results.Shown(index, "a", {"accuracy": 1.0}, heat, None)


class Asked(list):
  """A benchmark of these questions, graded already."""

  def grade(self, *_):
    raise NotImplementedError

  summarise = baseline = grade


def test_questions_of_all_kinds_are_in_the_report(tmp_path):
  """With a picture, a video, or neither."""
  video = clip(12, 64, 64, fps=2.0)
  questions = [
    Example("a:1", "of a text?", user("of a text?"), "1"),
    Example("a:2", "of a video?", user(video, "of a video?"), "2"),
    Example("a:3", "of a picture?", user(picture(64, 64), "q"), "3"),
  ]
  heats = [[], np.ones((6, 4, 4)).tolist(), np.ones((1, 4, 4)).tolist()]
  answers = [shown(i, heat) for i, heat in enumerate(heats)]
  one = {"test": results.Result(3, {}, {}, answers)}
  _, page = write(tmp_path, [], {"test": Asked(questions)}, one, one)
  for question in questions:
    assert page.count(f"<h3>{question.question}</h3>") == 1
  assert page.count("<img") == 6
  drawn = [
    summary._example(question, two, two, processor())
    for question, two in zip(questions, answers, strict=True)
  ]
  assert [len(example.pictures) for example in drawn] == [0, 4, 1]
  # The first frames of the first and the last patch, as the model sees them.
  for place, frame in ((0, 0), (-1, 10)):
    found = drawn[1].pictures[place].astype(int)
    assert np.abs(found - video["video"][frame]).max() <= 1
  assert drawn[1].before.heat.shape == (4, 4, 4)
