"""Tests of the policy-gradient terms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import compiled

from mmrl.errors import UserError
from mmrl.losses import reduce, surrogates

NAN = np.nan
# Two answers, one of three tokens and one of two; [P=2, G=1, R=3]. Padding
# isn't a number: it reaches neither a value nor a gradient.
LOGPROBS = jnp.array([[[-0.7, -0.6, -2]], [[-1, -0.8, NAN]]], jnp.float32)
OLD = jnp.array([[[-1, -0.5, -2]], [[-0.7, -1.5, NAN]]], jnp.float32)
REFERENCE = jnp.array([[[-0.9, -0.6, -1.8]], [[-0.7, -1, NAN]]], jnp.float32)
ADVANTAGES = jnp.array([[1.0], [-1.0]], jnp.float32)
MASK = jnp.array([[[True, True, True]], [[True, True, False]]])
ONES = jnp.where(MASK, 1.0, NAN)


def test_whole_loss_golden():
  """That of GRPO; libraries_test has TRL's and verl's."""

  @jax.jit
  @jax.value_and_grad
  def loss(logprobs):
    weights = reduce.sequence_mean(MASK)
    clipped = surrogates.clipped_ratio(
      logprobs, OLD, ADVANTAGES, ONES, MASK, dual_clip=3.0
    )
    kl = surrogates.reference_kl(logprobs, REFERENCE, MASK)
    return reduce.total(clipped, weights) + 0.04 * reduce.total(kl, weights)

  value, found = loss(LOGPROBS)
  np.testing.assert_allclose(value, 0.186919, atol=1e-6)
  expected = [[0.001208, -0.150806, -0.168143], [-0.003499, 0.505251, 0]]
  np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)


def test_ratio_is_clamped():
  mask = jnp.ones((1, 1, 2), bool)
  new = jnp.array([[[500.0, -500.0]]], jnp.float32)
  ratio = surrogates.token_ratio(new, jnp.zeros_like(new), mask)
  np.testing.assert_allclose(ratio, np.exp([[[20.0, -20.0]]]), rtol=1e-6)


DAPO = {"clip_high": 0.28, "dual_clip": 10.0}
NO_WIDTH = {"clip_low": 0.0, "clip_high": 0.0}


@pytest.mark.parametrize(
  ("options", "advantage", "ratio", "expected"),
  [
    (DAPO, -1.0, 12.18, 10.0),  # dual clip bounds -A rho = 12.18
    (DAPO, 1.0, 12.18, -1.28),  # the upper clip, dual clip or not
    (DAPO, -1.0, 2.0, 2.0),  # below the bound: -A rho
    (DAPO, -1.0, 0.5, 0.8),  # the lower clip
    ({}, 1.0, 2.0, -1.2),
    # A good answer's ratio counts below 1 alone, a bad one's above.
    (NO_WIDTH, 1.0, 1.5, -1.0),
    (NO_WIDTH, 1.0, 0.5, -0.5),
    (NO_WIDTH, -1.0, 1.5, 1.5),
    (NO_WIDTH, -1.0, 0.5, 1.0),
  ],
)
def test_clips_golden(options, advantage, ratio, expected):
  ones = np.ones((1, 1, 1), np.float32)
  data = np.log(ratio) * ones, 0 * ones, advantage * ones[0], ones, ones > 0
  value = compiled(surrogates.clipped_ratio)(*data, **options)
  np.testing.assert_allclose(value, expected * ones, rtol=1e-6)


@functools.cache
def kl_of(**options):
  def kl(logprobs):
    zeros, mask = jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1), bool)
    return surrogates.reference_kl(logprobs, zeros, mask, **options).sum()

  return jax.jit(jax.value_and_grad(kl))


def kl_and_slope(logprob, **options):
  """Of one token whose reference has log-probability 0."""
  return kl_of(**options)(np.full((1, 1, 1), logprob, np.float32))


# Beyond 20 nats the value is e^20 - 21, or e^-20 + 19, and has no slope.
EDGE = np.exp(20) - 21


@pytest.mark.parametrize(
  ("estimator", "k", "bound", "expected", "slope"),
  [
    # k1 = -k, k2 = k^2 / 2, k3 = e^k - k - 1; slopes in logprobs
    ("k1", 0.3, None, -0.3, 1.0),
    ("k2", 0.3, None, 0.045, -0.3),
    ("k3", 0.3, None, 0.0498588, 1 - np.exp(0.3)),
    # Straight through: the slope is that of k2, clamped or bounded or not.
    ("k1+", 0.3, None, -0.3, -0.3),
    ("k3+", 0.3, None, 0.0498588, -0.3),
    ("k3", 0.3, 10.0, 0.0498588, 1 - np.exp(0.3)),
    ("k3", 19.0, None, np.exp(19) - 20, 1 - np.exp(19)),
    ("k3", -19.0, None, np.exp(-19) + 18, 1 - np.exp(-19)),
    *(("k3", k, None, EDGE, 0.0) for k in (21.0, 89.0, 1e4)),
    ("k3", -1e4, None, np.exp(-20) + 19, 0.0),
    ("k3+", 1e4, None, EDGE, -1e4),
    ("k3+", -1e4, None, np.exp(-20) + 19, 1e4),
    # Where it is bounded the slope is 0, never NaN.
    *(("k3", k, 10.0, 10.0, 0.0) for k in (3.0, 30.0, 500.0, -30.0, -500.0)),
    *(("k3+", k, 10.0, 10.0, -k) for k in (3.0, 500.0, -500.0)),
  ],
)
def test_reference_kl_golden(estimator, k, bound, expected, slope):
  value, gradient = kl_and_slope(-k, estimator=estimator, bound=bound)
  np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(gradient, [[[slope]]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "weights", "expected"),
  [
    (
      {"weight_min": 0.8, "weight_max": 1.28},
      [[1.28, 0.904837, 1], [0.8, 1.28, 0]],
      [[-0.256, -0.180967, -0.2], [0.16, 0.256, 0]],
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
    values = surrogates.clipped_weight(
      logprobs, OLD, ADVANTAGES, ONES, MASK, **options
    )
    return reduce.total(values, reduce.token_mean(MASK)), values

  gradient, values = jax.jit(jax.grad(loss, has_aux=True))(LOGPROBS)
  np.testing.assert_allclose(gradient[:, 0], expected, atol=1e-6)
  factor = np.where(MASK, -ADVANTAGES[..., None] * LOGPROBS, 0)[:, 0]
  np.testing.assert_allclose(values[:, 0], weights * factor, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, 5.0),
    ({"weight_min": 2.0, "weight_max": 2.0}, 2.0),
    ({"weight_min": 9.0, "weight_max": None}, 9.0),
  ],
)
def test_weight_is_bounded(options, expected):
  """A ratio of e^2 = 7.4, times -A ln pi = 1: at most 5 by default."""
  ones = np.ones((1, 1, 1), np.float32)
  values = compiled(surrogates.clipped_weight)(
    -ones, -3 * ones, ones[0], ones, ones > 0, **options
  )
  np.testing.assert_allclose(values, expected * ones, rtol=1e-6)


def test_policy_gradient_golden():
  """RLOO on-policy: a completion of three tokens, one of two, one of one."""
  # A sum(lp): .76 * -3.5, -.7625 * -2.2, .0025 * -.3; minus their mean
  logprobs = jnp.array([[[-1, -0.5, -2], [-0.7, -1.5, NAN], [-0.3, NAN, NAN]]])
  mask = ~jnp.isnan(logprobs)
  advantages = jnp.array([[0.76, -0.7625, 0.0025]])

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(logprobs):
    ones = jnp.where(mask, 1.0, NAN)
    values = surrogates.policy_gradient(logprobs, advantages, ones, mask)
    return reduce.total(values, reduce.sequence_sum(mask)), values

  (value, values), gradient = loss(logprobs)
  np.testing.assert_allclose(value, 0.327750, atol=1e-6)
  expected = np.where(mask, -advantages[..., None] / 3, 0)
  np.testing.assert_allclose(gradient, expected, atol=1e-7)
  assert (values[~mask] == 0).all()


@pytest.mark.parametrize(
  "loss",
  [
    surrogates.policy_gradient,
    surrogates.clipped_ratio,
    surrogates.clipped_weight,
  ],
)
def test_on_policy_the_gradient_is_the_score_functions(loss):
  """Of ratios of one; the loss of clipped_ratio is then -A: (-3 + 2) / 5."""
  old = () if loss is surrogates.policy_gradient else (OLD,)

  def total(logprobs):
    values = loss(logprobs, *old, ADVANTAGES, ONES, MASK)
    return reduce.total(values, reduce.token_mean(MASK))

  value, gradient = jax.jit(jax.value_and_grad(total))(OLD)
  expected = np.where(MASK, -ADVANTAGES[..., None] / 5, 0)
  np.testing.assert_allclose(gradient, expected, atol=1e-7)
  if loss is surrogates.clipped_ratio:
    np.testing.assert_allclose(value, -0.2, atol=1e-7)


@pytest.mark.parametrize(
  "loss",
  [
    functools.partial(surrogates.clipped_ratio, dual_clip=1.5),
    functools.partial(
      surrogates.clipped_weight, weight_min=0.8, weight_max=1.28
    ),
    lambda logprobs, old, *data: surrogates.policy_gradient(logprobs, *data),
  ],
)
def test_advantages_and_weights(loss):
  """Weights multiply the loss of their token; neither has a gradient."""

  @jax.jit
  def values(advantages, weights):
    found = loss(LOGPROBS, OLD, advantages, weights, MASK)
    return jnp.where(MASK, found, 0.0)

  slopes_of = jax.jit(jax.grad(lambda *x: values(*x).sum(), (0, 1)))
  plain = values(ADVANTAGES, ONES)
  weights = ONES * jnp.array([[[0.5, 1.5, 2.0]]])
  expected = np.where(MASK, plain * weights, 0)
  spread = jnp.where(MASK, ADVANTAGES[..., None], NAN)
  for advantages in (ADVANTAGES, spread):
    found = values(advantages, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    slopes = slopes_of(advantages, weights)
    assert all((np.asarray(x) == 0).all() for x in slopes)


CLIPPED = surrogates.clipped_ratio, OLD, ADVANTAGES, ONES
WEIGHTED = surrogates.clipped_weight, OLD, ADVANTAGES, ONES
KL = surrogates.reference_kl, REFERENCE
NO_ESTIMATOR = "k1, k2, k3, k1\\+, k3\\+, got"


@pytest.mark.parametrize(
  ("d", "value", "slope"),
  [
    # d = ref - current; e^d - d - 1, slope in the current 1 - e^d
    (-1.0, 0.367879, 0.632121),
    (0.0, 0.0, 0.0),
    (1.0, 0.718282, -1.718282),
    # Clamped to -11 and 11, without a gradient.
    (-12.0, 10.000017, 0.0),
    (12.0, 59862.14, 0.0),
  ],
)
def test_clamp_golden(d, value, slope):
  found, gradient = kl_and_slope(-d, clamp=11.0)
  np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(gradient, [[[slope]]], rtol=1e-6, atol=1e-6)


def test_on_policy_loss_golden():
  """SEED-Bench-R1's whole loss, beta 0.1."""
  logprobs = jnp.array([[[-1, -2, -0.5], [-0.3, -1, -4]]])
  reference = jnp.array([[[-1.5, -2, -0.2], [-0.3, -13, -4]]])
  advantages = jnp.array([[1.0, -0.5]])
  mask = jnp.array([[[1, 1, 1], [1, 1, 0]]], bool)
  weights = jnp.ones(mask.shape)

  @jax.jit
  def terms(logprobs):
    policy = surrogates.on_policy_ratio(logprobs, advantages, weights, mask)
    kl = surrogates.reference_kl(logprobs, reference, mask, clamp=11.0)
    return policy, kl

  def loss(logprobs, reduction=reduce.sequence_mean):
    policy, kl = terms(logprobs)
    return reduce.total(policy + 0.1 * kl, reduction(mask))

  policy, kl = terms(logprobs)
  wanted = [[[0.106531, 0, 0.049859], [0, 10.000017, 0]]]
  np.testing.assert_allclose(kl, wanted, atol=1e-6)
  rows = np.asarray(policy + 0.1 * kl).sum(-1) / np.asarray(mask).sum(-1)
  np.testing.assert_allclose(rows, [[-0.994787, 1.000001]], atol=1e-6)
  value, gradient = jax.jit(jax.value_and_grad(loss))(logprobs)
  np.testing.assert_allclose(value, 0.002607, atol=1e-6)
  np.testing.assert_allclose(
    loss(logprobs, reduce.token_mean), -0.196872, atol=1e-6
  )
  wanted = [[[-0.160109, -0.166667, -0.172498], [0.125, 0.125, 0]]]
  np.testing.assert_allclose(gradient, wanted, atol=1e-6)


@pytest.mark.parametrize(
  ("loss", "options", "message"),
  [
    (KL, {"clamp": 0.0}, "clamp must be above 0 and at most 80"),
    (KL, {"clamp": 81.0}, "clamp must be above 0 and at most 80"),
    (KL, {"estimator": "k2", "clamp": 11.0}, "of k3 only, got 11.0 for 'k2'"),
    (CLIPPED, {"clip_low": -0.5}, r"clip_low must be in \[0, 1\), got -0.5"),
    (CLIPPED, {"clip_low": 1.0}, r"clip_low must be in \[0, 1\), got 1.0"),
    (CLIPPED, {"clip_high": -0.1}, "clip_high must be at least 0, got -0.1"),
    (CLIPPED, {"dual_clip": 0.5}, "dual_clip must be above 1, got 0.5"),
    (CLIPPED, {"dual_clip": 1.0}, "dual_clip must be above 1, got 1.0"),
    (
      WEIGHTED,
      {"weight_min": 3.0, "weight_max": 2.0},
      "at most weight_max, got 3.0 and 2.0",
    ),
    (KL, {"estimator": "k4"}, f"{NO_ESTIMATOR} 'k4'"),
    (KL, {"estimator": "k3++"}, f"{NO_ESTIMATOR} 'k3\\+\\+'"),
    (KL, {"estimator": "k2+"}, f"{NO_ESTIMATOR} 'k2\\+'"),
    (KL, {"estimator": ""}, f"{NO_ESTIMATOR} ''"),
    (KL, {"estimator": "k1", "bound": 10.0}, "None for 'k1', got 10.0"),
    (KL, {"estimator": "k2", "bound": 10.0}, "None for 'k2', got 10.0"),
    (KL, {"estimator": "k1+", "bound": 10.0}, "bound must be None for 'k1\\+'"),
  ],
)
def test_bad_options_are_refused(loss, options, message):
  function, *data = loss
  with pytest.raises(UserError, match=message):
    function(LOGPROBS, *data, MASK, **options)
