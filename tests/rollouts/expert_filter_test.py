"""Tests of the filter of expert trajectories."""

import numpy as np
import pytest

from mmrl.rollouts import expert_filter

# Four questions with two trajectories each: [P=4, experts=2]. The second of
# the second question is wrong; of the third question's, the second has another
# form, and so on.
ACCURACY = np.array([[1, 1], [1, 0], [1, 1], [1, 1]], np.float32)
FORMED = np.array([[1, 1], [1, 1], [1, 0], [1, 1]], bool)
LENGTHS = np.array([[10, 10], [10, 10], [10, 10], [10, 99]])
POLICY = np.array([0, 0.25, 0.49, 0.5], np.float32)


def keep(**changes):
  arguments = {
    "accuracy": ACCURACY,
    "formed": FORMED,
    "lengths": LENGTHS,
    "policy_accuracy": POLICY,
    "longest": 20,
  }
  return expert_filter.keep_experts(**(arguments | changes))


@pytest.mark.parametrize(
  ("solved", "expected"),
  [
    (0.5, [[1, 1], [1, 0], [1, 0], [0, 0]]),
    (1.0, [[1, 1], [1, 0], [1, 0], [1, 0]]),
    (0.25, [[1, 1], [0, 0], [0, 0], [0, 0]]),
  ],
)
def test_golden(solved, expected):
  kept = keep(solved=solved)
  assert kept.dtype == bool
  np.testing.assert_array_equal(kept, expected)
  if solved == 0.5:
    np.testing.assert_array_equal(keep(), expected)


def one_question(values, **changes):
  """Trajectories of an unsolved question that pass but for the changes."""
  count = len(values)
  arguments = {
    "accuracy": np.ones((1, count), np.float32),
    "formed": np.ones((1, count), bool),
    "lengths": np.full((1, count), 10),
    "policy_accuracy": np.zeros(1, np.float32),
    "mean_logprobs": np.array([values], np.float32),
  }
  return keep(**(arguments | changes))


def test_quantile_golden():
  # Sorted -2, -1, ..: 0.4 of the way from the first to the second is -1.6.
  values = [-0.5, -1, -2, -0.8, -0.6]
  kept = one_question(values, quantile=0.1)
  np.testing.assert_array_equal(kept, [[1, 1, 0, 1, 1]])
  assert one_question(values, quantile=0.0).all()
  assert one_question(values).all()


def test_quantile_is_of_those_that_pass_otherwise():
  """The third is wrong, so that it is the second that is least likely."""
  values = [-0.5, -1, -2, -0.8, -0.6]
  accuracy = np.array([[1, 1, 0, 1, 1]], np.float32)
  kept = one_question(values, accuracy=accuracy, quantile=0.1)
  np.testing.assert_array_equal(kept, [[1, 0, 0, 1, 1]])
  values[2] = np.nan
  again = one_question(values, accuracy=accuracy, quantile=0.1)
  np.testing.assert_array_equal(again, kept)


def test_quantile_of_nothing_is_nothing():
  nothing = np.zeros((1, 2), np.float32)
  assert not one_question([np.nan] * 2, accuracy=nothing, quantile=0.1).any()


@pytest.mark.parametrize(
  ("length", "expected"), [(0, 0), (1, 1), (20, 1), (21, 0)]
)
def test_length_bounds(length, expected):
  """No trajectory has no token; R tokens fit."""
  kept = keep(lengths=np.full((4, 2), length))
  assert kept[0].tolist() == [expected] * 2


def test_nearly_right_is_wrong():
  assert not keep(accuracy=np.full((4, 2), 0.99, np.float32)).any()


def test_a_solved_question_is_left_out_whatever_the_bound():
  kept = keep(policy_accuracy=np.ones(4, np.float32), solved=1.0)
  assert not kept.any()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"solved": 0.0}, r"solved must be in \(0, 1\], got 0"),
    ({"solved": 50.0}, r"solved must be in \(0, 1\], got 50"),
    ({"quantile": 1.0}, r"quantile must be in \[0, 1\), got 1"),
    ({"quantile": -0.1}, r"quantile must be in \[0, 1\), got -0.1"),
    ({"quantile": 0.1}, "expected mean_logprobs with a quantile, got None"),
  ],
)
def test_mistakes_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    keep(**changes)
