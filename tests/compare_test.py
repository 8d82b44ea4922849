"""The table of the README's results."""

from experiments import compare


def summary(before: float, after: float) -> dict:
  numbers = {"before": {"x/y": {"value": before}}}
  numbers["after"] = {"x/y": {"value": after}}
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
