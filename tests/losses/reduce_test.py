"""Tests of the reductions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.losses import reduce

# Four answers of 3, 2, 0 and 1 tokens; [P=4, G=1, R=3].
TERMS = jnp.array(
  [[[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]], [[1, 1, 1]]], jnp.float32
)
MASK = jnp.array([[[1, 1, 1]], [[1, 1, 0]], [[0, 0, 0]], [[1, 0, 0]]], bool)
REDUCTIONS = [reduce.token_mean, reduce.sequence_mean, reduce.sequence_sum]


def reduced(reduction, terms, mask, axis_name=None):
  weights = reduction(mask, axis_name=axis_name)
  return reduce.total(terms, weights, axis_name=axis_name)


gradient_of = jax.jit(jax.value_and_grad(reduced, argnums=1), static_argnums=0)


@pytest.mark.parametrize(
  ("reduction", "expected"),
  [
    (reduce.token_mean, 2.666667),  # (1+2+3 + 4+5 + 1) / 6
    (reduce.sequence_mean, 2.5),  # (2 + 4.5 + 1) / 3
    (reduce.sequence_sum, 5.333333),  # (6 + 9 + 1) / 3
  ],
)
def test_golden(reduction, expected):
  value, gradient = gradient_of(reduction, TERMS, MASK)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, reduction(MASK), rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_padding_may_hold_anything(reduction, garbage):
  dirty = jnp.where(MASK, TERMS, garbage)
  one = gradient_of(reduction, TERMS, MASK)
  two = gradient_of(reduction, dirty, MASK)
  assert one[0] == two[0]
  np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_token_gives_zero(reduction):
  value, gradient = gradient_of(
    reduction, jnp.full_like(TERMS, np.nan), jnp.zeros_like(MASK)
  )
  assert value == 0
  assert (gradient == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("wrapper", ["pmap", "shard_map"])
def test_two_devices_equal_one(reduction, wrapper):
  """Sums of numerator and denominator, where lengths differ by device."""
  if wrapper == "pmap":
    function = jax.pmap(
      functools.partial(reduced, reduction, axis_name="data"),
      axis_name="data",
      devices=jax.devices()[:2],
    )
    halves = (x.reshape(2, 2, 1, 3) for x in (TERMS, MASK))
    value = function(*halves)
    np.testing.assert_array_equal(value[0], value[1])
    value = value[0]
  else:
    mesh = jax.make_mesh(
      (2,),
      ("data",),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:2],
    )
    rows = jax.sharding.PartitionSpec("data")
    function = jax.shard_map(
      functools.partial(reduced, reduction, axis_name="data"),
      mesh=mesh,
      in_specs=(rows, rows),
      out_specs=jax.sharding.PartitionSpec(),
    )
    value = function(TERMS, MASK)
  expected = reduced(reduction, TERMS, MASK)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_mean_of_means_is_wrong():
  """Why denominators are summed: rows 0-1 have mean 3, rows 2-3 mean 1."""
  halves = [
    float(reduced(reduce.token_mean, TERMS[rows], MASK[rows]))
    for rows in (slice(0, 2), slice(2, 4))
  ]
  np.testing.assert_allclose(halves, [3, 1])  # 15 / 5, 1 / 1; mean 2, not 8/3
  whole = reduced(reduce.token_mean, TERMS, MASK)
  assert abs(np.mean(halves) - whole) > 0.6


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_parts_of_a_minibatch_add_up(reduction):
  """Weights are made of the whole minibatch and then sliced."""
  weights = reduction(MASK)
  parts = [reduce.total(TERMS[i : i + 2], weights[i : i + 2]) for i in (0, 2)]
  whole = reduce.total(TERMS, weights)
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)


def test_parts_add_up_exactly_where_arithmetic_is_exact():
  terms, weights = jnp.where(MASK, 3.0, jnp.nan), jnp.where(MASK, 0.25, 0.0)
  parts = [reduce.total(terms[i : i + 1], weights[i : i + 1]) for i in range(4)]
  assert sum(parts) == reduce.total(terms, weights) == 6 * 0.75
