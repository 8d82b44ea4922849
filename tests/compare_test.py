"""The table of the README's results."""

from experiments import compare


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
