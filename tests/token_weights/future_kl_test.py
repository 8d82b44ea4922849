"""Tests of the weights from what follows a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import surrogates
from mmrl.token_weights.future_kl import discounted_sum, future_kl

weights_of = jax.jit(
  future_kl,
  static_argnames=(
    *("half_life", "low", "high", "ratio_max", "safety", "row_filter"),
  ),
)
# The settings of 32B and of 7B.
LARGE = {"low": 1.0, "high": 1.2, "safety": 10.0}
SMALL = {"low": 0.8, "high": 1.2, "safety": 3.0}
# Four answers of 4, 3, 5 and 0 tokens; [P=4, G=1, R=5]. Padding
# isn't a number.
D = jnp.array(
  [
    [[0.1, -0.2, 0.05, 2.5, np.nan]],
    [[1.2, 0.4, -0.3, np.nan, np.nan]],
    [[2.4, 2.6, 0.1, -0.4, 2.7]],
    [5 * [np.nan]],
  ],
  jnp.float32,
)
MASK = jnp.array(
  [[[1, 1, 1, 1, 0]], [[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1]], [[0] * 5]], bool
)
ADVANTAGES = jnp.array([[-1.0], [-1.0], [-1.0], [1.0]], jnp.float32)
OLD = jnp.full_like(D, -1.0)


@pytest.mark.parametrize(
  ("options", "sign", "expected"),
  [
    (
      LARGE,
      -1.0,
      [
        [1, 1, 1.051271, 1],
        [1.2, 1.112298, 1],
        [1, 1, 1, 1, 1],
      ],
    ),
    (
      {},  # those of 7B
      -1.0,
      [
        [0.953292, 0.859786, 1.051271, 1],
        [1, 1.112298, 0.8],
        [0.8, 0.8, 0.8, 0.8, 1],
      ],
    ),
    # No safety clamp: the weights are those that follow from the ratios.
    (
      {},
      1.0,
      [
        [0.953292, 0.859786, 1.051271, 1],
        [1.2, 1.112298, 0.8],
        [0.8, 0.8, 0.8, 0.8, 1],
      ],
    ),
  ],
)
@pytest.mark.parametrize("per_token", [False, True])
def test_weights_golden(options, sign, expected, per_token):
  # F of the first answer: [-0.047834, -0.151071, 0.05, 0]
  advantages = jnp.full_like(ADVANTAGES, sign)
  if per_token:
    advantages = jnp.where(MASK, sign, jnp.nan)
  weights = weights_of(
    OLD + D, OLD, advantages, MASK, row_filter=False, **options
  )
  for row, values in enumerate(expected):
    np.testing.assert_allclose(
      weights[row, 0, : len(values)], values, atol=2e-6
    )


@pytest.mark.parametrize("options", [LARGE, SMALL])
def test_row_filter(options):
  """The third answer, three tokens of which the dual clip hits, is removed.

  Of the first it hits one. There are 12 tokens, of which 7 are left.
  """
  plain, found = (
    weights_of(OLD + D, OLD, ADVANTAGES, MASK, row_filter=x, **options)
    for x in (False, True)
  )
  assert (found[2] == 0).all()
  np.testing.assert_allclose(found[:2], 12 / 7 * plain[:2], rtol=1e-6)


@pytest.mark.parametrize("row", [2, 3])
def test_nothing_left_gives_zero(row):
  rows = slice(row, row + 1)
  found = weights_of(*(x[rows] for x in (OLD + D, OLD, ADVANTAGES, MASK)))
  assert (jnp.where(MASK[rows], found, 0) == 0).all()


@pytest.mark.parametrize(
  ("low", "second"),
  [
    # F = [-0.365715, -1.6], weights 0.8: it clips to [0.8, 1], not to 1
    (0.8, 0.8),
    # Nor lower than 0.8, where other weights may be.
    (0.0, 0.201897),
  ],
)
def test_safety_clamp_below_one_golden(low, second):
  d = jnp.array([[[1.2, -1.6]]], jnp.float32)
  data = d, 0 * d, -jnp.ones((1, 1)), jnp.ones((1, 1, 2), bool)
  weights = weights_of(*data, **SMALL | {"low": low})
  np.testing.assert_allclose(weights, [[[0.8, second]]], atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_log_ratio_is_clamped(sign):
  d, mask = jnp.full((1, 1, 1), sign * 30.0), jnp.ones((1, 1, 1), bool)
  weights = weights_of(
    *(d, 0 * d, jnp.ones((1, 1)), mask),
    **{"low": 0.0, "high": 1e12, "ratio_max": 1e9, "half_life": 0.5},
    **{"safety": 0.5, "row_filter": False},
  )
  np.testing.assert_allclose(weights, np.exp([[[sign * 20.0]]]), rtol=1e-6)


def test_a_ratio_on_its_bounds_is_in_the_sum_and_safe():
  d, mask = jnp.full((1, 1, 1), 0.1), jnp.ones((1, 1, 1), bool)
  ratio = surrogates.token_ratio(d, 0 * d, mask)
  bounds = {"ratio_max": ratio.item(), "safety": ratio.item()}
  weights = weights_of(d, 0 * d, -jnp.ones((1, 1)), mask, **bounds)
  np.testing.assert_allclose(weights, ratio, rtol=1e-6)


@pytest.mark.parametrize("advantage", [0.0, 0.5])
def test_only_bad_answers_are_filtered(advantage):
  data = OLD + D, OLD, jnp.full_like(ADVANTAGES, advantage), MASK
  one, two = (weights_of(*data, row_filter=x) for x in (True, False))
  np.testing.assert_array_equal(one, two)


def test_decay_goes_by_position():
  # tau 2: two steps halve, also over a masked token; 0.1 + 0.2 / 2
  d = jnp.array([[[0.1, 9.0, 0.2]]], jnp.float32)
  mask = jnp.array([[[True, False, True]]])
  weights = weights_of(
    *(d, jnp.zeros_like(d), jnp.ones((1, 1)), mask),
    half_life=2.0,
    low=0.0,
    high=10.0,
  )
  expected = [[[0.2, 0.141421, 0.2]]]
  np.testing.assert_allclose(jnp.log(weights), expected, atol=1e-6)


def test_sum_equals_the_definition():
  """A scan in logarithmic time, and the quadratic sum of the paper."""
  values = np.random.default_rng(0).normal(size=(2, 3, 37))
  distance = np.arange(37) - np.arange(37)[:, None]
  decay = np.where(distance >= 0, 2.0 ** (-np.abs(distance) / 8), 0)
  expected = np.einsum("tk,pgk->pgt", decay, values)
  summed = jax.jit(discounted_sum, static_argnums=1)
  found = summed(np.float32(values), 8.0)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [LARGE, SMALL])
def test_on_policy_every_weight_is_one_bit_for_bit(options):
  weights = weights_of(OLD, OLD, ADVANTAGES, MASK, **options)
  assert (weights == 1).all()


def test_no_range_leaves_the_bound_of_ten():
  d = jnp.array([[[1.0, 2.0], [-3.0, -4.0]]], jnp.float32)
  weights = weights_of(
    *(d, jnp.zeros_like(d), jnp.ones((1, 2)), jnp.ones(d.shape, bool)),
    half_life=1e9,
    low=0.0,
    high=0.0,
  )
  expected = [[[10.0, np.exp(2.0)], [np.exp(-7.0), np.exp(-4.0)]]]
  np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_weights_have_no_gradient():
  def total(logprobs):
    return weights_of(logprobs, OLD, ADVANTAGES, MASK).sum()

  assert (jax.grad(total)(OLD + D) == 0).all()


@pytest.mark.parametrize(
  "options",
  [
    {"half_life": 0.0},
    {"safety": 0.0},
    {"ratio_max": 1.0},
    {"low": 1.1, "high": 1.0},
    {"low": -0.1},
  ],
)
def test_bad_options_are_refused(options):
  with pytest.raises(UserError, match="must be"):
    future_kl(OLD, OLD, ADVANTAGES, MASK, **options)
