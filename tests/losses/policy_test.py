"""Tests of the policy-gradient terms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.losses import attention, policy, reduce

# Two answers, one of three tokens and one of two; [P=2, G=1, R=3].
LOGPROBS = jnp.array([[[-0.7, -0.6, -2]], [[-1, -0.8, -99]]], jnp.float32)
OLD = jnp.array([[[-1, -0.5, -2]], [[-0.7, -1.5, 0]]], jnp.float32)
REFERENCE = jnp.array([[[-0.9, -0.6, -1.8]], [[-0.7, -1, 0]]], jnp.float32)
ADVANTAGES = jnp.array([[1.0], [-1.0]], jnp.float32)
MASK = jnp.array([[[True, True, True]], [[True, True, False]]])
ONES = jnp.ones_like(LOGPROBS)


def drgrpo(mask):
  """Sum over tokens over the budget of 3, mean over answers."""
  return reduce.sequence_sum(mask) / 3


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
    drgrpo,
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


def test_unknown_estimator_is_refused():
  with pytest.raises(ValueError, match="'k1', 'k2' or 'k3', got 'k4'"):
    policy.reference_kl(LOGPROBS, REFERENCE, MASK, estimator="k4")


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


@pytest.mark.parametrize("argument", ["old", "advantages", "token_weights"])
def test_only_the_current_policy_has_a_gradient(argument):
  data = {"old": OLD, "advantages": ADVANTAGES, "token_weights": ONES}

  def loss(value):
    arrays = dict(data, **{argument: value})
    return clipped_ratio(
      LOGPROBS,
      arrays["old"],
      arrays["advantages"],
      arrays["token_weights"],
      MASK,
    ).sum()

  gradient = jax.jit(jax.grad(loss))(data[argument])
  if argument == "old":  # data: the objective never differentiates it
    assert np.isfinite(gradient).all()
  else:
    assert (gradient == 0).all()


def test_advantages_may_be_per_token():
  spread = jnp.broadcast_to(ADVANTAGES[..., None], MASK.shape)
  one = clipped_ratio(LOGPROBS, OLD, ADVANTAGES, ONES, MASK)
  two = clipped_ratio(LOGPROBS, OLD, spread, ONES, MASK)
  np.testing.assert_array_equal(one, two)
