"""The table of the README's results."""

import numpy as np

from experiments import compare
from mmrl.benchmarks import results


def summary(before: float, after: float) -> dict:
  """Numbers, with intervals of a tenth to both sides."""
  numbers = {
    when: {"x/y": {"value": x, "low": x - 0.1, "high": x + 0.1}}
    for when, x in (("before", before), ("after", after))
  }
  return {"benchmarks": {"test": numbers}}


def test_mean_and_range_over_seeds():
  found = compare.table(
    {"a:b": [summary(0.5, 0.25), summary(0.5, 0.75)]}, ["test/x/y"]
  )
  assert found.split("\n") == [
    "| mean (least to most) of 2 seeds | test/x/y before | test/x/y after |",
    "|---|---|---|",
    "| a:b | 50.0% | 50.0% (25.0% to 75.0%) |",
  ]


def test_intervals_of_all_runs():
  found = compare.table(
    {"a:b": [summary(0.5, 0.25), summary(0.5, 0.75)]}, ["test/x/y"], True
  )
  assert found.split("\n")[::2] == [
    "| mean (ends of the 95 % intervals) of 2 seeds |"
    " test/x/y before | test/x/y after |",
    "| a:b | 50.0% (40.0% to 60.0%) | 50.0% (15.0% to 85.0%) |",
  ]


def evaluation(right) -> results.Result:
  marks = results.right({"accuracy": np.array(right, np.float64)})
  return results.Result(len(right), {}, {}, [], marks)


def test_arms_beside_each_other_item_by_item(tmp_path):
  """Only the first is right of 1 item, only the second of 5: p = 0.21875."""
  arms = ["quickstart:grpo", "quickstart:ral", "perception_r1:runlocal"]
  nan = np.nan
  rights = ([1, 1, 0, 0, 0, 0, 0, nan], [1, 0, 1, 1, 1, 1, 1, 1])
  for arm, right in zip(arms, (*rights, rights[0]), strict=True):
    path = compare.workdir_of(tmp_path, arm, 0)
    path.mkdir()
    results.save({"test": evaluation(right)}, path / "after.json")
  numbers = ["test/accuracy", "test/attention/region"]
  found = compare.paired_table(tmp_path, arms, [0], numbers)
  assert found.split("\n") == [
    "| beside quickstart:grpo | seed | number | only quickstart:grpo right |"
    " only this one right | p |",
    "|---|---|---|---|---|---|",
    # The third is asked other questions.
    "| quickstart:ral | 0 | test/accuracy | 1 | 5 | 0.22 |",
  ]
  assert not compare.paired_table(tmp_path, arms[:1], [0], numbers)
