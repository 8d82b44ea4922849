"""What a run leaves of its evaluations."""

import json

import pytest

from mmrl import config as config_lib
from mmrl.benchmarks import results, runner
from mmrl.benchmarks.intervals import Estimate
from mmrl.inspection import Finding
from mmrl.workdir import summary


def result(value: float) -> results.Result:
  names = "accuracy", "format", "accuracy/red", "attention/region"
  return results.Result(
    items=8,
    numbers={name: Estimate(value, value / 2, 1.0) for name in names},
    baseline={"accuracy": Estimate(0.25, 0.0, 0.5)},
    shown=[results.Shown(3, "a", {"accuracy": 1.0}, [[0.5, 0.25]], None)],
  )


def write(path, rows, benchmarks, before, after):
  """Writes both; returns the content of summary.json and the page."""
  config = config_lib.get_config()
  config.train.steps = 4
  config.losses.kl.weight = {"share": 0.25}
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(lines)
  found = summary.write(
    path,
    config,
    benchmarks,
    before,
    after,
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
  assert "losses: policy (1), kl (25% of the gradient)." in page
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
