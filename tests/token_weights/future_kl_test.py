"""Tests of the weights from what follows a token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import policy, reduce
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


@functools.partial(jax.jit, static_argnames="options")
def losses_of(d, advantages, mask, options=()):
  """Token losses, their mean, its gradient; padding of the losses is 0."""
  old = jnp.zeros_like(d)

  def loss(logprobs):
    weights = future_kl(logprobs, old, advantages, mask, **dict(options))
    values = policy.clipped_ratio(
      logprobs,
      old,
      advantages,
      weights,
      mask,
      clip_low=0.2,
      clip_high=0.28,
      dual_clip=10.0,
    )
    return reduce.total(values, reduce.token_mean(mask)), values

  (value, values), gradient = jax.value_and_grad(loss, has_aux=True)(d)
  return jnp.where(mask, values, 0), value, gradient


def losses(d, advantages, mask, **options):
  return losses_of(d, advantages, mask, options=tuple(options.items()))


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
      SMALL,
      -1.0,
      [
        [0.953292, 0.859786, 1.051271, 1],
        [1, 1.112298, 0.8],
        [0.8, 0.8, 0.8, 0.8, 1],
      ],
    ),
    # No safety clamp: the weights are those that follow from the ratios.
    (
      SMALL,
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


@pytest.mark.parametrize(
  ("options", "expected", "mean"),
  [
    (
      LARGE,
      [
        [1.105171, 0.818731, 1.105171, 10, 0],
        [3.984140, 1.659354, 0.8, 0, 0],
        [10, 10, 1.105171, 0.8, 10],
        [0] * 5,
      ],
      2.781795,
    ),
    (
      SMALL,
      [
        [1.053550, 0.703933, 1.105171, 10, 0],
        [3.320117, 1.659354, 0.64, 0, 0],
        [8, 8, 0.884137, 0.64, 10],
        [0] * 5,
      ],
      2.640304,
    ),
  ],
)
def test_losses_golden(options, expected, mean):
  """The third answer, three tokens of which the dual clip hits, is removed."""
  values, _, _ = losses(D, ADVANTAGES, MASK, row_filter=False, **options)
  np.testing.assert_allclose(values[:, 0], expected, rtol=2e-6, atol=2e-6)
  filtered, value, gradient = losses(D, ADVANTAGES, MASK, **options)
  np.testing.assert_allclose(value, mean, atol=1e-6)
  assert (filtered[2] == 0).all() and (gradient[2] == 0).all()
  # 12 tokens, 7 of them left
  np.testing.assert_allclose(filtered[:2], 12 / 7 * values[:2], rtol=1e-6)
  rows = jnp.array([0, 1, 3])
  _, alone, slope = losses(D[rows], ADVANTAGES[rows], MASK[rows], **options)
  np.testing.assert_allclose(value, alone, rtol=1e-6)
  np.testing.assert_allclose(gradient[rows], slope, rtol=1e-6)


def test_safety_clamp_below_one_golden():
  # F = [-0.365715, -1.6], weights 0.8: it clips to [0.8, 1], not to 1
  d = jnp.array([[[1.2, -1.6]]], jnp.float32)
  values, value, _ = losses(
    d, -jnp.ones((1, 1)), jnp.ones((1, 1, 2), bool), **SMALL
  )
  np.testing.assert_allclose(values, [[[2.656094, 0.64]]], atol=1e-6)
  np.testing.assert_allclose(value, 1.648047, atol=1e-6)
  # Nor lower than 0.8, where other weights may be.
  weights = weights_of(
    d, 0 * d, -jnp.ones((1, 1)), jnp.ones((1, 1, 2), bool), low=0.0
  )
  np.testing.assert_allclose(weights, [[[0.8, 0.201897]]], atol=1e-6)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_default_options_are_those_of_7b(advantage):
  data = OLD + D, OLD, jnp.full_like(ADVANTAGES, advantage), MASK
  one = weights_of(*data, row_filter=False)
  options = SMALL | {"half_life": 32.0, "ratio_max": 10.0}
  two = weights_of(*data, row_filter=False, **options)
  np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_log_ratio_is_clamped(sign):
  d, mask = jnp.full((1, 1, 1), sign * 30.0), jnp.ones((1, 1, 1), bool)
  weights = future_kl(
    *(d, 0 * d, jnp.ones((1, 1)), mask),
    **{"low": 0.0, "high": 1e12, "ratio_max": 1e9, "half_life": 0.5},
    **{"safety": 0.5, "row_filter": False},
  )
  np.testing.assert_allclose(weights, np.exp([[[sign * 20.0]]]), rtol=1e-6)


def test_a_ratio_on_its_bounds_is_in_the_sum_and_safe():
  d, mask = jnp.full((1, 1, 1), 0.1), jnp.ones((1, 1, 1), bool)
  ratio = policy.token_ratio(d, 0 * d, mask)
  bounds = {"ratio_max": ratio.item(), "safety": ratio.item()}
  weights = future_kl(d, 0 * d, -jnp.ones((1, 1)), mask, **bounds)
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


@pytest.mark.parametrize("row", [2, 3])
def test_nothing_left_gives_zero(row):
  rows = slice(row, row + 1)
  _, value, gradient = losses(D[rows], ADVANTAGES[rows], MASK[rows])
  assert value == 0 and (gradient == 0).all()


def test_sum_equals_the_definition(half_life=8.0):
  """A scan in logarithmic time, and the quadratic sum of the paper."""
  values = np.random.default_rng(0).normal(size=(2, 3, 37))
  distance = np.arange(37) - np.arange(37)[:, None]
  decay = np.where(distance >= 0, 2.0 ** (-np.abs(distance) / half_life), 0)
  expected = np.einsum("tk,pgk->pgt", decay, values)
  found = jax.jit(discounted_sum, static_argnums=1)(
    jnp.asarray(values, jnp.float32), half_life
  )
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
