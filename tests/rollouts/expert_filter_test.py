"""Tests of the filter of expert trajectories."""

import numpy as np
import pytest

from mmrl.rollouts.with_experts import keep_experts

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
  return keep_experts(**(arguments | changes))


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, [[1, 1], [1, 0], [1, 0], [0, 0]]),
    ({"solved": 0.5}, [[1, 1], [1, 0], [1, 0], [0, 0]]),
    ({"solved": 1.0}, [[1, 1], [1, 0], [1, 0], [1, 0]]),
    ({"solved": 0.25}, [[1, 1], [0, 0], [0, 0], [0, 0]]),
    # A question that is solved is left out, whatever the bound.
    ({"solved": 1.0, "policy_accuracy": np.ones(4, np.float32)}, 4 * [[0, 0]]),
    ({"accuracy": np.full((4, 2), 0.99, np.float32)}, 4 * [[0, 0]]),
    # No trajectory has no token; R tokens fit.
    ({"lengths": np.full((4, 2), 0)}, 4 * [[0, 0]]),
    ({"lengths": np.full((4, 2), 1)}, [[1, 1], [1, 0], [1, 0], [0, 0]]),
    ({"lengths": np.full((4, 2), 20)}, [[1, 1], [1, 0], [1, 0], [0, 0]]),
    ({"lengths": np.full((4, 2), 21)}, 4 * [[0, 0]]),
  ],
)
def test_golden(changes, expected):
  kept = keep(**changes)
  assert kept.dtype == bool
  np.testing.assert_array_equal(kept, expected)


LIKELY = [-0.5, -1, -2, -0.8, -0.6]
UNKNOWN = [-0.5, -1, np.nan, -0.8, -0.6]


@pytest.mark.parametrize(
  ("values", "right", "options", "expected"),
  [
    # Sorted -2, -1, ..: 0.4 of the way from the first to the second is -1.6.
    (LIKELY, 5 * [1], {"quantile": 0.1}, [1, 1, 0, 1, 1]),
    (LIKELY, 5 * [1], {"quantile": 0.0}, 5 * [1]),
    (LIKELY, 5 * [1], {}, 5 * [1]),
    # Of those that pass otherwise: the second is the least likely of them.
    (LIKELY, [1, 1, 0, 1, 1], {"quantile": 0.1}, [1, 0, 0, 1, 1]),
    (UNKNOWN, [1, 1, 0, 1, 1], {"quantile": 0.1}, [1, 0, 0, 1, 1]),
    ([np.nan] * 2, [0, 0], {"quantile": 0.1}, [0, 0]),
  ],
)
def test_quantile_golden(values, right, options, expected):
  """Trajectories of an unsolved question that are well formed."""
  kept = keep(
    accuracy=np.array([right], np.float32),
    formed=np.ones((1, len(values)), bool),
    lengths=np.full((1, len(values)), 10),
    policy_accuracy=np.zeros(1, np.float32),
    mean_logprobs=np.array([values], np.float32),
    **options,
  )
  np.testing.assert_array_equal(kept, [expected])


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
