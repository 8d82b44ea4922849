"""Tests of the policy-gradient terms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import attention, policy, reduce, sequence

# Two answers, one of three tokens and one of two; [P=2, G=1, R=3].
LOGPROBS = jnp.array([[[-0.7, -0.6, -2]], [[-1, -0.8, -99]]], jnp.float32)
OLD = jnp.array([[[-1, -0.5, -2]], [[-0.7, -1.5, 0]]], jnp.float32)
REFERENCE = jnp.array([[[-0.9, -0.6, -1.8]], [[-0.7, -1, 0]]], jnp.float32)
ADVANTAGES = jnp.array([[1.0], [-1.0]], jnp.float32)
MASK = jnp.array([[[True, True, True]], [[True, True, False]]])
ONES = jnp.ones_like(LOGPROBS)


METHODS = {
  "grpo": (
    reduce.sequence_mean,
    {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0},
    0.04,
    0.186919,
    [[0.001208, -0.150806, -0.168143], [-0.003499, 0.505251, 0]],
  ),
  "dapo": (
    reduce.token_mean,
    {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0},
    0.0,
    -0.074217,
    [[0, -0.180967, -0.2], [0, 0.402751, 0]],
  ),
  "drgrpo": (
    functools.partial(reduce.sequence_sum, horizon=3),
    {"clip_low": 0.2, "clip_high": 0.2},
    0.0,
    -0.048514,
    [[0, -0.150806, -0.166667], [0, 0.335625, 0]],
  ),
}


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, logprobs, old=OLD, reference=REFERENCE):
  reduction, options, beta, _, _ = METHODS[method]
  weights = reduction(MASK)
  clipped = policy.clipped_ratio(
    logprobs, old, ADVANTAGES, ONES, MASK, **options
  )
  kl = policy.reference_kl(logprobs, reference, MASK)
  return reduce.total(clipped, weights) + beta * reduce.total(kl, weights)


gradient_of = jax.jit(jax.value_and_grad(loss_of, argnums=1), static_argnums=0)
clipped_ratio = jax.jit(
  policy.clipped_ratio, static_argnames=("clip_low", "clip_high", "dual_clip")
)


@pytest.mark.parametrize("method", METHODS)
def test_whole_loss_golden(method):
  *_, expected, gradient = METHODS[method]
  value, found = gradient_of(method, LOGPROBS)
  np.testing.assert_allclose(value, expected, atol=1e-6)
  np.testing.assert_allclose(found[:, 0], gradient, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, -99.0])
def test_padding_reaches_neither_value_nor_gradient(method, garbage):
  arrays = [x.at[1, 0, 2].set(garbage) for x in (LOGPROBS, OLD, REFERENCE)]
  one = gradient_of(method, LOGPROBS)
  two = gradient_of(method, *arrays)
  assert one[0] == two[0]
  np.testing.assert_array_equal(one[1], two[1])
  assert two[1][1, 0, 2] == 0


def test_ratio_golden():
  ratio = policy.token_ratio(LOGPROBS, OLD, MASK)
  expected = [[[1.349859, 0.904837, 1]], [[0.740818, 2.013753, 1]]]
  np.testing.assert_allclose(ratio, expected, atol=1e-6)


def test_ratio_is_clamped():
  mask = jnp.ones((1, 1, 2), bool)
  new = jnp.array([[[500.0, -500.0]]], jnp.float32)
  ratio = policy.token_ratio(new, jnp.zeros_like(new), mask)
  np.testing.assert_allclose(ratio, np.exp([[[20.0, -20.0]]]), rtol=1e-6)


def test_surrogate_and_total_of_the_attention_method_golden():
  # rho = [[1.221403, 1], [0.606531, *]]; clipped to 1.2 and, A = -0.5, to 0.8
  # terms max(-A rho, -A clip): -1.2, -1, 0.5 * 0.8; token mean -1.8 / 3 = -0.6
  logprobs = jnp.array([[[-1, -0.5]], [[-2, -9]]], jnp.float32)
  old = jnp.array([[[-1.2, -0.5]], [[-1.5, 0]]], jnp.float32)
  reference = jnp.array([[[-1.1, -0.7]], [[-2.2, 0]]], jnp.float32)
  advantages = jnp.array([[1.0], [-0.5]], jnp.float32)
  mask = jnp.array([[[True, True]], [[True, False]]])
  weights = reduce.token_mean(mask)
  clipped = clipped_ratio(logprobs, old, advantages, jnp.ones_like(old), mask)
  np.testing.assert_allclose(
    np.where(mask, clipped, 0), [[[-1.2, -1]], [[0.4, 0]]], atol=1e-6
  )
  kl = policy.reference_kl(logprobs, reference, mask)
  np.testing.assert_allclose(
    kl, [[[0.004837, 0.018731]], [[0.018731, 0]]], atol=1e-6
  )
  token = reduce.total(clipped, weights) + 0.04 * reduce.total(kl, weights)
  np.testing.assert_allclose(reduce.total(clipped, weights), -0.6, atol=1e-6)
  np.testing.assert_allclose(reduce.total(kl, weights), 0.014100, atol=1e-6)
  np.testing.assert_allclose(token, -0.599436, atol=1e-6)
  new_rows = jnp.array(
    [
      [[[0.5, 0.3, 0.2, 0], [0.25, 0.25, 0.4, 0.1]]],
      [[[0.7, 0.3, 0, 0], [0.9, 0.05, 0.05, 0]]],
    ],
    jnp.float32,
  )
  old_rows = jnp.array(
    [
      [[[0.2, 0.3, 0.5, 0], [0.3, 0.3, 0.3, 0.1]]],
      [[[0.6, 0.4, 0, 0], [0.1, 0.8, 0.1, 0]]],
    ],
    jnp.float32,
  )
  looks = attention.attention_jsd(new_rows, old_rows, advantages, mask)
  looks = reduce.total(looks, reduce.sequence_mean(mask))
  np.testing.assert_allclose(token + looks, -0.582745, atol=2e-6)
  np.testing.assert_allclose(token + 0.5 * looks, -0.591090, atol=2e-6)


@pytest.mark.parametrize(
  ("advantage", "ratio", "expected"),
  [
    (-1.0, 12.18, 10.0),  # dual clip bounds -A rho = 12.18
    (1.0, 12.18, -1.28),  # the upper clip, dual clip or not
    (-1.0, 2.0, 2.0),  # below the bound: -A rho
    (-1.0, 0.5, 0.8),  # the lower clip
  ],
)
def test_clips_golden(advantage, ratio, expected):
  shape = (1, 1, 1)
  value = clipped_ratio(
    jnp.full(shape, np.log(ratio), jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.full((1, 1), advantage, jnp.float32),
    jnp.ones(shape, jnp.float32),
    jnp.ones(shape, bool),
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=10.0,
  )
  np.testing.assert_allclose(value, jnp.full(shape, expected), rtol=1e-6)


@pytest.mark.parametrize(
  ("estimator", "expected", "slope"),
  [
    # k = 0.3: k1 = -k, k2 = k^2 / 2, k3 = e^k - k - 1; slopes in logprobs
    ("k1", -0.3, 1.0),
    ("k2", 0.045, -0.3),
    ("k3", 0.0498588, 1 - np.exp(0.3)),
  ],
)
def test_reference_kl_golden(estimator, expected, slope):
  def kl(logprobs):
    zeros = jnp.zeros((1, 1, 1))
    mask = jnp.ones((1, 1, 1), bool)
    return policy.reference_kl(logprobs, zeros, mask, estimator=estimator).sum()

  value, gradient = jax.jit(jax.value_and_grad(kl))(jnp.full((1, 1, 1), -0.3))
  np.testing.assert_allclose(value, expected, atol=1e-6)
  np.testing.assert_allclose(gradient, [[[slope]]], atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_straight_through_has_the_gradient_of_k2(estimator):
  def kl(logprobs, estimator):
    values = policy.reference_kl(logprobs, REFERENCE, MASK, estimator=estimator)
    return values.sum(), values

  gradient = jax.jit(jax.grad(kl, has_aux=True), static_argnums=1)
  slope, value = gradient(LOGPROBS, f"{estimator}+")
  plain = gradient(LOGPROBS, estimator)[1]
  # Two programs; values of 1e-3 that are differences of numbers of size one.
  np.testing.assert_allclose(value, plain, rtol=1e-6, atol=2e-7)
  np.testing.assert_allclose(slope, gradient(LOGPROBS, "k2")[0], atol=1e-7)


@pytest.mark.parametrize("k", [3.0, 30.0, 500.0, -30.0, -500.0])
@pytest.mark.parametrize("estimator", ["k3", "k3+"])
def test_bounded_k3(k, estimator):
  """Where it is bounded its gradient is 0, never NaN."""

  def kl(logprobs):
    zeros, mask = jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1), bool)
    values = policy.reference_kl(
      logprobs, zeros, mask, estimator=estimator, bound=10.0
    )
    return values.sum()

  value, slope = jax.jit(jax.value_and_grad(kl))(jnp.full((1, 1, 1), -k))
  assert value == 10
  np.testing.assert_allclose(slope, [[[0 if estimator == "k3" else -k]]])


@pytest.mark.parametrize("k", [19.0, 21.0, 89.0, 1e4, -19.0, -1e4])
@pytest.mark.parametrize("estimator", ["k3", "k3+"])
def test_k3_is_clamped(k, estimator):
  """As the ratio is: e^20 - 21, or e^-20 + 19, and no slope beyond.

  Under k3+ the slope is that of k2 all the same.
  """

  def kl(logprobs):
    zeros, mask = jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1), bool)
    values = policy.reference_kl(logprobs, zeros, mask, estimator=estimator)
    return values.sum()

  value, slope = jax.jit(jax.value_and_grad(kl))(jnp.full((1, 1, 1), -k))
  edge = np.clip(k, -20, 20)
  np.testing.assert_allclose(value, np.exp(edge) - edge - 1, rtol=1e-6)
  expected = -k if estimator == "k3+" else (abs(k) < 20) * -np.expm1(edge)
  np.testing.assert_allclose(slope, [[[expected]]], rtol=1e-6)


def test_bound_changes_nothing_below_it():
  one = policy.reference_kl(LOGPROBS, REFERENCE, MASK)
  two = policy.reference_kl(LOGPROBS, REFERENCE, MASK, bound=10.0)
  np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("estimator", ["k4", "k3++", "k2+", ""])
def test_unknown_estimator_is_refused(estimator):
  with pytest.raises(
    UserError, match=f"k1\\+, k3\\+, got '{re.escape(estimator)}'"
  ):
    policy.reference_kl(LOGPROBS, REFERENCE, MASK, estimator=estimator)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k1+"])
def test_bound_of_another_estimator_is_refused(estimator):
  with pytest.raises(UserError, match="bound must be None"):
    policy.reference_kl(
      LOGPROBS, REFERENCE, MASK, estimator=estimator, bound=10.0
    )


def test_on_policy_the_ratio_is_one():
  """The loss is then -A and its gradient the score function's."""
  # DAPO at theta_old: (-3 + 2) / 5
  np.testing.assert_array_equal(policy.token_ratio(OLD, OLD, MASK), ONES)
  value, gradient = gradient_of("dapo", OLD)
  np.testing.assert_allclose(value, -0.2, atol=1e-7)
  expected = np.where(MASK, -ADVANTAGES[..., None] / 5, 0)
  np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_token_weights_of_one_are_bit_equal():
  def values(weights):
    def loss(logprobs):
      terms = clipped_ratio(logprobs, OLD, ADVANTAGES, weights, MASK)
      return reduce.total(terms, reduce.token_mean(MASK)), terms

    return jax.jit(jax.grad(loss, has_aux=True))(LOGPROBS)

  gradient, terms = values(ONES)
  ratio = policy.token_ratio(LOGPROBS, OLD, MASK)
  advantages = ADVANTAGES[..., None]
  plain = jnp.maximum(
    -advantages * ratio, -advantages * jnp.clip(ratio, 0.8, 1.2)
  )
  np.testing.assert_array_equal(terms, plain)
  halves, _ = values(0.5 * ONES)
  np.testing.assert_array_equal(halves, 0.5 * gradient)


def test_advantages_may_be_per_token():
  spread = jnp.broadcast_to(ADVANTAGES[..., None], MASK.shape)
  one = clipped_ratio(LOGPROBS, OLD, ADVANTAGES, ONES, MASK)
  two = clipped_ratio(LOGPROBS, OLD, spread, ONES, MASK)
  np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
  ("options", "weights", "expected"),
  [
    (
      {"weight_min": 0.8, "weight_max": 1.28},
      [[1.28, 0.904837, 1], [0.8, 1.28, 0]],
      [[-0.256, -0.180967, -0.2], [0.16, 0.256, 0]],
    ),
    (
      {},  # at most 5
      [[1.349859, 0.904837, 1], [0.740818, 2.013753, 0]],
      [[-0.269972, -0.180967, -0.2], [0.148164, 0.402751, 0]],
    ),
    (
      {"weight_max": None},
      [[1.349859, 0.904837, 1], [0.740818, 2.013753, 0]],
      [[-0.269972, -0.180967, -0.2], [0.148164, 0.402751, 0]],
    ),
  ],
)
def test_clipped_weight_golden(options, weights, expected):
  def loss(logprobs):
    values = policy.clipped_weight(
      logprobs, OLD, ADVANTAGES, ONES, MASK, **options
    )
    return reduce.total(values, reduce.token_mean(MASK)), values

  gradient, values = jax.jit(jax.grad(loss, has_aux=True))(LOGPROBS)
  np.testing.assert_allclose(gradient[:, 0], expected, atol=1e-6)
  factor = np.where(MASK, -ADVANTAGES[..., None] * LOGPROBS, 0)[:, 0]
  np.testing.assert_allclose(values[:, 0], weights * factor, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "expected"),
  [({}, 5.0), ({"weight_min": 2.0, "weight_max": 2.0}, 2.0)],
)
def test_weight_is_bounded(options, expected):
  """A ratio of e^2 = 7.4, times -A ln pi = 1: at most 5 by default."""
  ones = jnp.ones((1, 1, 1))
  values = policy.clipped_weight(
    -ones, -3 * ones, ones[0], ones, ones > 0, **options
  )
  np.testing.assert_allclose(values, expected * ones, rtol=1e-6)


def test_weight_bounds_the_wrong_way_round_are_refused():
  with pytest.raises(UserError, match="at most weight_max, got 3.0 and 2.0"):
    policy.clipped_weight(
      LOGPROBS, OLD, ADVANTAGES, ONES, MASK, weight_min=3.0, weight_max=2.0
    )


def test_policy_gradient_golden():
  """RLOO on-policy: a completion of three tokens, one of two, one of one."""
  # A sum(lp): .76 * -3.5, -.7625 * -2.2, .0025 * -.3; minus their mean
  logprobs = jnp.array([[[-1, -0.5, -2], [-0.7, -1.5, 9], [-0.3, 9, 9]]])
  mask = jnp.arange(3)[None, None] < jnp.array([[[3], [2], [1]]])
  advantages = jnp.array([[0.76, -0.7625, 0.0025]])

  def loss(logprobs):
    values = policy.policy_gradient(
      logprobs, advantages, jnp.ones_like(logprobs), mask
    )
    return reduce.total(values, reduce.sequence_sum(mask))

  value, gradient = jax.jit(jax.value_and_grad(loss))(logprobs)
  np.testing.assert_allclose(value, 0.327750, atol=1e-6)
  expected = np.where(mask, -advantages[..., None] / 3, 0)
  np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_policy_gradient_is_the_clipped_ratio_on_policy():
  """And clipped_weight: all three have the score function's gradient."""

  def gradient(loss):
    def total(logprobs):
      return reduce.total(loss(logprobs), reduce.token_mean(MASK))

    return jax.jit(jax.grad(total))(OLD)

  expected = gradient(
    lambda lp: policy.policy_gradient(lp, ADVANTAGES, ONES, MASK)
  )
  for loss in (policy.clipped_ratio, policy.clipped_weight):
    found = gradient(
      lambda lp, loss=loss: loss(lp, OLD, ADVANTAGES, ONES, MASK)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# Every loss as a function of (logprobs, old, advantages, weights, mask).
LOSSES = {
  "clipped_ratio": functools.partial(policy.clipped_ratio, dual_clip=3.0),
  "clipped_weight": functools.partial(
    policy.clipped_weight, weight_min=0.8, weight_max=1.28
  ),
  "sequence": functools.partial(
    sequence.clipped_sequence_ratio, clip_low=0.2, clip_high=0.2
  ),
  "token": functools.partial(
    sequence.clipped_sequence_ratio, level="token", clip_low=0.2, clip_high=0.2
  ),
  "sum": functools.partial(
    sequence.clipped_sequence_ratio,
    length_normalize=False,
    clip_low=0.2,
    clip_high=0.2,
  ),
  "policy_gradient": lambda lp, old, a, w, mask: policy.policy_gradient(
    lp, a, w, mask
  ),
  **{
    estimator: lambda lp, old, a, w, mask, estimator=estimator: (
      policy.reference_kl(lp, old, mask, estimator=estimator)
    )
    for estimator in ("k1", "k2", "k3", "k1+", "k3+")
  },
}


def random_data(seed=0):
  """Four answers of 5, 3, 0 and 1 tokens, advantages and weights per token."""
  rng = np.random.default_rng(seed)
  shape = (2, 2, 5)
  mask = np.arange(5) < np.array([[[5], [3]], [[0], [1]]])
  old = -rng.exponential(size=shape)
  return (
    old + 0.4 * rng.normal(size=shape),
    old,
    rng.normal(size=shape),
    rng.uniform(0.5, 1.5, shape),
    mask,
  )


@functools.partial(jax.jit, static_argnames="name")
def value_and_gradient(name, logprobs, *data):
  *_, mask = data

  def total(logprobs):
    values = LOSSES[name](logprobs, *data)
    return reduce.total(values, reduce.sequence_mean(mask)), values

  return jax.value_and_grad(total, has_aux=True)(logprobs)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_padding_of_any_argument_may_hold_anything(name, garbage):
  *arrays, mask = random_data()
  arrays = [np.where(mask, x, 0).astype(np.float32) for x in arrays]
  dirty = [np.where(mask, x, np.float32(garbage)) for x in arrays]
  (one, values), slope = value_and_gradient(name, *arrays, mask)
  (two, spoiled), other = value_and_gradient(name, *dirty, mask)
  assert one == two and np.isfinite(one)
  np.testing.assert_array_equal(slope, other)
  assert (np.where(mask, 0, other) == 0).all()
  np.testing.assert_array_equal(values[mask], spoiled[mask])
  if name != "clipped_ratio":
    assert (spoiled[~mask] == 0).all()


@pytest.mark.parametrize("name", [n for n in LOSSES if n[0] != "k"])
def test_advantages_and_weights_have_no_gradient(name):
  logprobs, old, advantages, weights, mask = map(jnp.asarray, random_data())

  def total(advantages, weights):
    values = LOSSES[name](logprobs, old, advantages, weights, mask)
    return jnp.where(mask, values, 0.0).sum()

  for slope in jax.grad(total, argnums=(0, 1))(advantages, weights):
    assert (slope == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_differences(name, seed):
  """What is under a stop-gradient is held where it was."""
  data = random_data(seed)
  with jax.enable_x64(True):
    logprobs, *rest = map(jnp.asarray, data)
    old, _, weights, mask = rest
    d = jnp.where(mask, logprobs - old, 0.0)
    frozen = name.removesuffix("+")
    if name == "clipped_weight":
      frozen = "policy_gradient"
      rest[2] = weights * jnp.clip(jnp.exp(d), 0.8, 1.28)
    elif name == "token":
      # s exp(lp - lp_0) is the ratio to a policy with lp_0 - ln s.
      frozen = "clipped_ratio"
      mean = d.sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1), 1)[..., None]
      rest[0] = logprobs - mean
    elif name != frozen:
      frozen = "k2"
    _, found = value_and_gradient(name, *map(jnp.asarray, data))
    step = 1e-6
    for index in np.ndindex(*logprobs.shape):
      change = np.zeros(logprobs.shape)
      change[index] = step
      rise, fall = (
        value_and_gradient(frozen, x, *rest)[0][0]
        for x in (logprobs + change, logprobs - change)
      )
      numeric = (rise - fall) / (2 * step)
      np.testing.assert_allclose(found[index], numeric, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in LOSSES if n[0] != "k"])
def test_loss_is_linear_in_weights_and_zero_without_advantages(name):
  logprobs, old, advantages, weights, mask = random_data()
  results = [
    value_and_gradient(name, logprobs, old, a, w, mask)
    for a, w in (
      (advantages, weights),
      (advantages, 2 * weights),
      (0 * advantages, weights),
    )
  ]
  (_, one), (_, two), ((_, values), slope) = results
  np.testing.assert_array_equal(2 * one, two)
  assert (values[mask] == 0).all() and (slope == 0).all()


@pytest.mark.parametrize("name", [n for n in LOSSES if n[0] != "k"])
def test_weights_multiply_the_loss_of_their_token(name):
  logprobs, old, advantages, weights, mask = random_data()
  ones = np.ones_like(weights)
  (_, plain), _ = value_and_gradient(
    name, logprobs, old, advantages, ones, mask
  )
  (_, weighed), _ = value_and_gradient(
    name, logprobs, old, advantages, weights, mask
  )
  weights = weights.astype(np.float32)
  np.testing.assert_allclose(
    weighed[mask], plain[mask] * weights[mask], rtol=1e-6
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"clip_low": -0.5}, r"clip_low must be in \[0, 1\), got -0.5"),
    ({"clip_low": 1.0}, r"clip_low must be in \[0, 1\), got 1.0"),
    ({"clip_high": -0.1}, "clip_high must be at least 0, got -0.1"),
    ({"dual_clip": 0.5}, "dual_clip must be above 1, got 0.5"),
    ({"dual_clip": 1.0}, "dual_clip must be above 1, got 1.0"),
  ],
)
def test_bounds_without_a_ratio_of_one_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    policy.clipped_ratio(LOGPROBS, OLD, ADVANTAGES, ONES, MASK, **options)


def test_clip_widths_may_be_zero():
  """Then a good answer's ratio counts below 1 alone, a bad one's above."""
  values = policy.clipped_ratio(
    LOGPROBS, OLD, ADVANTAGES, ONES, MASK, clip_low=0.0, clip_high=0.0
  )
  expected = [[-1, -0.904837, -1], [1, 2.013753]]
  np.testing.assert_allclose(values[0, 0], expected[0], rtol=1e-6)
  np.testing.assert_allclose(values[1, 0, :2], expected[1], rtol=1e-6)
