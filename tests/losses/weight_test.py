"""Weights that give terms a share of the gradient."""

import math

import jax.numpy as jnp
import pytest

from mmrl.errors import UserError
from mmrl.losses import weight
from mmrl.losses.weight import Share


def measured(weights, *found):
  norms = weight.start(weights)
  for one in found:
    values = {name: jnp.float32(x) for name, x in one.items()}
    norms = weight.measure(weights, norms, values)
  return weight.current(weights, norms)


def test_share_golden():
  """0.2 of a gradient whose other part has norm 0.5 x 4 + 2 is 1."""
  weights = {"policy": -0.5, "kl": 1.0, "attention": Share(0.2)}
  found = measured(weights, {"policy": 4.0, "kl": 2.0, "attention": 0.01})
  assert found["policy"] == -0.5 and found["kl"] == 1.0
  assert float(found["attention"]) == pytest.approx(100, rel=1e-6)


def test_shares_of_two_terms():
  """0.1 and 0.4 beside 2 are 0.4 and 1.6 of 4."""
  weights = {"a": Share(0.1), "b": Share(0.4), "policy": 1.0}
  found = measured(weights, {"a": 1.0, "b": 0.5, "policy": 2.0})
  assert float(found["a"]) == pytest.approx(0.4, rel=1e-6)
  assert float(found["b"]) == pytest.approx(3.2, rel=1e-6)


def test_the_last_measurements_count():
  """Ratios 2, 8 and 64: means over two 2, 4 and 16."""
  weights = {"a": Share(0.5, over=2), "policy": 1.0}
  norms = ((1.0, 2.0), (3.0, 24.0), (0.25, 16.0))
  found = measured(weights, *({"a": x, "policy": y} for x, y in norms))
  assert float(found["a"]) == pytest.approx(16.0, rel=1e-6)


@pytest.mark.parametrize("norm, wanted", [(0.0, 0), (1e-30, 50), (0.1, 10)])
def test_the_largest_weight(norm, wanted):
  """Where the gradient is nothing, nothing is known yet."""
  weights = {"a": Share(0.5, most=50), "policy": 1.0}
  found = measured(weights, {"a": norm, "policy": 1.0})
  assert float(found["a"]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
  "empty",
  [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (math.inf, 1.0), (1.0, math.inf)],
)
def test_what_says_nothing_is_left_out(empty):
  """As if it hadn't been measured."""
  weights = {"a": Share(0.5, over=2), "policy": 1.0}
  full = [{"a": 1.0, "policy": 4.0}, {"a": 4.0, "policy": 4.0}]
  between = dict(zip(("a", "policy"), empty, strict=True))
  found = measured(weights, full[0], between, full[1])
  assert float(found["a"]) == float(measured(weights, *full)["a"])
  assert float(found["a"]) == pytest.approx(2.0, rel=1e-6)


def test_nothing_is_known_before_the_first_measurement():
  weights = {"a": Share(0.5), "policy": 1.0}
  assert float(measured(weights)["a"]) == 0


@pytest.mark.parametrize(
  "value, message",
  [
    ("1", "expected a number, or a dict with share, over and most, found '1'"),
    (True, "expected a number, or a dict .*, found True"),
    ({}, "expected a share, found {}"),
    ({"shar": 0.1}, "found 'shar'; the nearest is share"),
    ({"share": "0.1"}, "w.share: expected a number, found '0.1'"),
    ({"share": False}, "w.share: expected a number, found False"),
    ({"share": 1.0}, r"w.share: expected \[0, 1\), found 1.0"),
    ({"share": -0.1}, r"w.share: expected \[0, 1\), found -0.1"),
    (float("nan"), "expected a number, or a dict .*, found nan"),
    (float("inf"), "expected a number, or a dict .*, found inf"),
    ({"share": float("nan")}, "w.share: expected a number, found nan"),
    ({"share": 0.1, "over": 0}, "over, a whole .* of at least 1, .* found 0"),
    ({"share": 0.1, "over": 2.5}, "over, a whole number .* found 2.5"),
    ({"share": 0.1, "most": float("inf")}, "w.most: expected a number, found"),
    ({"share": 0.1, "most": 0}, "most above 0, found 10 and 0"),
  ],
)
def test_mistakes(value, message):
  with pytest.raises(UserError, match=message):
    weight.parse(value, "w")


@pytest.mark.parametrize(
  "value, wanted",
  [
    (2, 2.0),
    (-0.5, -0.5),
    ({"share": 0}, Share(0)),
    ({"share": 0.5}, Share(0.5, 10, 1000.0)),
    ({"share": 0.5, "over": 1, "most": 0.5}, Share(0.5, 1, 0.5)),
  ],
)
def test_what_is_taken(value, wanted):
  """A share of 0 is none: the term is left out, as by a weight of 0."""
  found = weight.parse(value, "w")
  assert found == wanted and bool(found) == (value != {"share": 0})


def test_shares_leave_some_to_others():
  weight.check({})
  weight.check({"policy": 1.0})
  weight.check({"a": Share(0.5), "b": Share(0.25), "policy": 1.0})
  with pytest.raises(UserError, match="less than 1, found 1 of a, b"):
    weight.check({"a": Share(0.5), "b": Share(0.5), "policy": 1.0})
  with pytest.raises(UserError, match="less than 1, found 1.1 of a, b"):
    weight.check({"a": Share(0.5), "b": Share(0.6), "policy": 1.0})
  with pytest.raises(UserError, match="a term whose weight is a number"):
    weight.check({"a": Share(0.5)})
