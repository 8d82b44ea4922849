"""REACT-Bench's numbers: the note's values, and a benchmark of figures."""

import json

import numpy as np
import pytest

from mmrl.benchmarks import frames
from mmrl.benchmarks.contract import Answer
from mmrl.benchmarks.frames import accuracy_with_ties, accuracy_without_ties
from mmrl.benchmarks.intervals import estimate
from mmrl.errors import UserError

CASES = [
  ([1, 1, -1, 0], [2, 0.1, -1, 0.2], 0.75, 1),
  ([0, 0, 1, -1, 1], [0.05, -0.1, 2, -1, 0.5], 1, 1),
  ([1, -1], [0.3, -0.2], 1, 1),
  ([1, 0, -1], [0, 0, 0], 1 / 3, 0),
  ([0, 0], [1, 2], 1, 0),
  # What can't be read is never right.
  ([0, 1], [np.nan, np.nan], 0, 0),
  ([0, 1, -1], [np.nan, 1, -1], 2 / 3, 1),
]


@pytest.mark.parametrize("human, difference, ties, none", CASES)
def test_golden(human, difference, ties, none):
  human, difference = np.array(human, float), np.array(difference, float)
  found = accuracy_with_ties(human, difference)
  assert found == pytest.approx(ties)
  assert accuracy_without_ties(human, difference) == pytest.approx(none)


def plain(human, difference):
  """Tries every threshold."""
  size = np.abs(difference)
  best = 0
  for threshold in (-1, *size[~np.isnan(size)]):
    tie = size <= threshold
    right = (human == 0) & tie
    right |= (human != 0) & ~tie & (human * difference > 0)
    best = max(best, right.mean())
  return best


def test_every_threshold_is_tried():
  generator = np.random.default_rng(0)
  human = generator.integers(-1, 2, (200, 9)).astype(float)
  difference = generator.integers(-3, 4, (200, 9)) / 2
  difference[generator.random((200, 9)) < 0.2] = np.nan
  found = accuracy_with_ties(human, difference)
  expected = [plain(*row) for row in zip(human, difference, strict=True)]
  np.testing.assert_allclose(found, expected)


def build(**options):
  data = {
    "name": "Figures",
    "split": "test",
    "count": 20,
    "pairs": True,
  } | options
  return frames(data=data, field="config.evaluation.benchmarks.test")


def test_figures():
  benchmark = build()
  examples = [benchmark[i] for i in range(len(benchmark))]
  right = [
    Answer(f"<think>x</think><answer>{e.answer}</answer>", 9, True)
    for e in examples
  ]
  found = benchmark.summarise(benchmark.grade(right, examples))
  assert found["f1_distorted"] == found["f1_normal"] == 1
  assert found["without_ties"] == 1 and found["with_ties"] > 0.5
  body = json.dumps({"labels": [], "score": 3})
  same = [Answer(f"<think>x</think><answer>{body}</answer>", 9, True)] * 40
  found = benchmark.summarise(benchmark.grade(same, examples))
  assert found["f1_distorted"] == 0 < found["f1_normal"] < 1
  assert found["without_ties"] == 0
  none = [Answer("", 0, True)] * 40
  values = benchmark.grade(none, examples)
  assert all(x == 0 for x in benchmark.summarise(values).values())
  assert len(next(iter(values.values()))) == 20  # items are pairs
  constant = estimate(benchmark.summarise, benchmark.baseline(None, examples))
  assert constant["f1_distorted"].value > 0.7
  assert constant["without_ties"].value == 0


def test_other_data_are_refused():
  with pytest.raises(UserError, match="expected a pair of frames, found none"):
    frames(
      data={"name": "Scenes", "split": "test", "count": 4},
      field="config.evaluation.benchmarks.test",
    )
  with pytest.raises(UserError, match="expected a pair of frames, found none"):
    build(pairs=False)
