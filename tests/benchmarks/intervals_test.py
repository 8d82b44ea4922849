"""Bootstrap intervals of means, ratios and parts of items."""

import numpy as np
import pytest

from mmrl.benchmarks.contract import means
from mmrl.benchmarks.intervals import Estimate, estimate

NAN = np.nan


def test_means_are_over_items_that_apply():
  values = {
    "whole": np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    "part": np.array([[1.0, NAN, NAN], [NAN, NAN, NAN]]),
  }
  found = means(values)
  np.testing.assert_allclose(found["whole"], [2 / 3, 0])
  np.testing.assert_array_equal(found["part"], [1, NAN])


def test_interval_of_a_mean_is_the_normal_one():
  """1.96 standard errors on each side, for many items."""
  values = np.random.default_rng(1).normal(size=2000)
  found = estimate(means, {"x": values})["x"]
  error = values.std() / np.sqrt(len(values))
  assert found.value == pytest.approx(values.mean())
  # A quantile of 1,000 draws is off by about a tenth of an error.
  assert found.low == pytest.approx(found.value - 1.96 * error, abs=error / 4)
  assert found.high == pytest.approx(found.value + 1.96 * error, abs=error / 4)


def test_interval_of_a_ratio_is_of_the_ratio():
  """It is 1/3 of any items, though their sums vary."""
  asked = np.arange(1.0, 30.0)

  def ratio(values):
    return {"x": values["right"].sum(-1) / values["asked"].sum(-1)}

  found = estimate(ratio, {"right": asked / 3, "asked": asked})["x"]
  assert found.low == pytest.approx(1 / 3) == found.high


def test_resamples_are_the_same_at_every_call():
  values = {"x": np.arange(50.0)}
  assert estimate(means, values) == estimate(means, values)


def test_resamples_are_the_same_however_many_are_held(monkeypatch):
  values = {"x": np.arange(50.0)}
  once = estimate(means, values)
  monkeypatch.setattr("mmrl.benchmarks.intervals._HELD", 350)
  assert estimate(means, values) == once


def test_a_part_that_resamples_may_miss():
  found = estimate(means, {"x": np.array([1.0, NAN, NAN, NAN])})
  assert found == {"x": Estimate(1.0, 1.0, 1.0)}


def test_a_number_that_no_item_has_is_left_out():
  assert estimate(means, {"x": np.array([NAN, NAN])}) == {}
  assert estimate(means, {}) == {}


def test_no_items_have_no_numbers():
  assert estimate(means, {"x": np.ones(0), "y": np.ones(0)}) == {}


@pytest.mark.parametrize("other", [np.ones(3), np.ones((2, 1)), np.ones(0)])
def test_values_of_other_items_are_refused(other):
  with pytest.raises(ValueError, match="values \\[N\\] of the same items"):
    estimate(means, {"x": np.ones(2), "y": other})
