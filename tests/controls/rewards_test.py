"""What a reward does in a group, by hand."""

import numpy as np
import pytest

from mmrl.controls import rewards

# Two groups of two answers.
LENGTHS = np.array([[1, 3], [2, 2]])


def numbers(values, lengths=LENGTHS, parts=1):
  """As processes compute them, each with its share of the prompts."""
  values = np.asarray(values, np.float32)
  mean = float(np.nanmean(values))
  found = [
    rewards.squares(x, length, mean)
    for x, length in zip(
      np.split(values, parts), np.split(lengths, parts), strict=True
    )
  ]
  whole = {k: float(np.mean([one[k] for one in found])) for k in found[0]}
  return rewards.finish(whole)


def test_golden():
  """Squares about means, of groups and of all, by hand.

  [0, 2] has deviations -1, 1 and [0, 4] has -2, 2: 10 inside of 11 about the
  mean 1.5. Lengths deviate by -1, 1 and not at all: 2 / sqrt(10 x 2).
  """
  found = numbers([[0, 2], [0, 4]])
  assert found["within"] == pytest.approx(10 / 11)
  assert found["length"] == pytest.approx(2 / np.sqrt(20))


@pytest.mark.parametrize("parts", [1, 2])
def test_it_is_the_same_on_several_processes(parts):
  rng = np.random.default_rng(0)
  values, lengths = rng.normal(size=(4, 3)), rng.integers(1, 9, (4, 3))
  found = numbers(values, lengths, parts)
  deviations = values - values.mean(1, keepdims=True)
  about = lengths - lengths.mean(1, keepdims=True)
  wanted = np.corrcoef(deviations.ravel(), about.ravel())[0, 1]
  assert found["length"] == pytest.approx(wanted, rel=1e-5)
  within = (deviations**2).sum() / ((values - values.mean()) ** 2).sum()
  assert found["within"] == pytest.approx(within, rel=1e-5)


def test_the_longest_are_the_best_or_the_worst():
  assert numbers(LENGTHS)["length"] == pytest.approx(1)
  assert numbers(-LENGTHS)["length"] == pytest.approx(-1)


def test_what_is_not_defined_is_left_out():
  """0.1 isn't exact: rounding is no variance."""
  assert numbers([[0.1, 0.1], [0.1, 0.1]]) == {}
  # Groups differ, answers don't.
  assert numbers([[0.1, 0.1], [0.7, 0.7]]) == {"within": 0.0}
  # Only lengths don't.
  assert numbers([[0, 1], [0, 1]], np.full((2, 2), 5)) == {"within": 1.0}


def test_what_it_does_not_apply_to_counts_in_nothing():
  """Of [0, 2, -] and [4, -, -], mean 2: 2 inside of 8."""
  nan = np.nan
  lengths = np.array([[1, 2, 99], [5, 6, 7]])
  found = numbers([[0, 2, nan], [4, nan, nan]], lengths)
  assert found["within"] == pytest.approx(2 / 8)
  assert found["length"] == pytest.approx(1)


def test_groups_that_one_reward_alone_tells_apart():
  """Of four groups: both differ, the first, the second, neither."""
  added = {
    "a": np.array([[0, 1], [0, 1], [1, 1], [0, 0]], np.float32),
    "b": np.array([[1, 0], [5, 5], [0, 3], [2, 2]], np.float32),
  }
  assert rewards.alone(added) == {"a": 0.25, "b": 0.25}
  assert rewards.alone({"a": added["a"]}) == {"a": 0.5}
  assert rewards.alone({}) == {}
