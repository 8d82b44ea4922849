"""Tests of the attention-policy terms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy.spatial import distance

from mmrl.losses import attention, reduce

# Two answers of two tokens over four keys; the last row is masked.
NEW = jnp.array(
  [
    [[[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.4, 0.1]]],
    [[[0.7, 0.3, 0.0, 0.0], [0.9, 0.05, 0.05, 0.0]]],
  ],
  jnp.float32,
)
OLD = jnp.array(
  [
    [[[0.2, 0.3, 0.5, 0.0], [0.3, 0.3, 0.3, 0.1]]],
    [[[0.6, 0.4, 0.0, 0.0], [0.1, 0.8, 0.1, 0.0]]],
  ],
  jnp.float32,
)
ADVANTAGES = jnp.array([[1.0], [-0.5]], jnp.float32)
MASK = jnp.array([[[True, True]], [[True, False]]])
REDUCTIONS = {
  "seq_mean": reduce.sequence_mean,
  "token_mean": reduce.token_mean,
  "sum": reduce.sequence_sum,
}


def random_policies(count, keys, seed):
  rng = np.random.default_rng(seed)
  policies = rng.dirichlet(np.full(keys, 0.5), count)
  return jnp.asarray(policies, jnp.float32)


def normal(*shape, seed):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


@functools.partial(jax.jit, static_argnames="reduction")
def term(new, old, advantages, mask, reduction):
  """The reduced term, as the objective computes it."""
  values = attention.attention_jsd(new, old, advantages, mask)
  return reduce.total(values, REDUCTIONS[reduction](mask))


term_and_gradient = jax.jit(
  jax.value_and_grad(term), static_argnames="reduction"
)
divergence = jax.jit(attention.jensen_shannon)


@pytest.mark.parametrize(
  ("p", "q", "expected"),
  [
    ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 0.066414),
    # m = [3/4, 1/4]: 1/2 ln 4/3 + 1/4 ln 2/3 + 1/4 ln 2 = 0.215762
    ([1.0, 0.0], [0.5, 0.5], 0.215762),
    ([0.6, 0.4, 0.0], [0.5, 0.4, 0.1], 0.036933),
    # disjoint: m is half of each, 1/2 ln 2 + 1/2 ln 2
    ([1.0, 0.0], [0.0, 1.0], math.log(2)),
    ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5], 0.0),
    ([0.0, 0.0], [0.0, 0.0], 0.0),
  ],
)
def test_divergence_golden(p, q, expected):
  value = divergence(jnp.array(p), jnp.array(q))
  np.testing.assert_allclose(value, expected, atol=1e-6)


def test_divergence_equals_scipy():
  p, q = random_policies(50, 7, 0), random_policies(50, 7, 1)
  p = p.at[:10, 2:].set(0.0)
  p /= p.sum(-1, keepdims=True)
  expected = [
    distance.jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)
  ]
  value = divergence(p, q)
  np.testing.assert_allclose(value, expected, atol=1e-6)


@pytest.mark.parametrize("rare", [1e-6, 1e-9, 1e-20, 1e-37])
@pytest.mark.parametrize("side", [0, 1])
def test_far_policies_equal_scipy(rare, side):
  """Quotients that 1 - (p - q) / (p + q) can't tell from 0, either way round.

  Value and gradient by both policies, against float64; each is a sum of three
  logarithms of at most 90, rounded to float32.
  """
  pair = [np.float32([rare, 1e-3, 0.999]), np.float32([0.4, 0.6, rare])]
  pair = pair[::-1] if side else pair
  p, q = np.float64(pair)
  m = (p + q) / 2
  expected = (special.rel_entr(p, m) + special.rel_entr(q, m)).sum() / 2
  both = jax.jit(jax.value_and_grad(attention.jensen_shannon, (0, 1)))
  value, slopes = both(*map(jnp.asarray, pair))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(slopes[0], np.log(p / m) / 2, rtol=1e-6)
  np.testing.assert_allclose(slopes[1], np.log(q / m) / 2, rtol=1e-6)


@pytest.mark.parametrize("change", [1e-2, 1e-3, 1e-4])
def test_near_policies_equal_float64(change):
  """What 2 p / (p + q) rounds away: the gradient of a small move."""
  q = np.float32([0.2, 0.3, 0.5])
  p = q * np.float32([1 + change, 1 - change, 1])
  value, slope = jax.value_and_grad(divergence)(jnp.array(p), jnp.array(q))
  p, q = np.float64(p), np.float64(q)
  of_p, of_q = (np.log1p(sign * (p - q) / (p + q)) for sign in (1, -1))
  # p - q is exact, and what follows is rounded a few times.
  np.testing.assert_allclose(slope, of_p / 2, rtol=1e-6)
  # Terms of size `change` cancel to its square.
  expected = (p * of_p + q * of_q).sum() / 2
  np.testing.assert_allclose(value, expected, atol=1e-7 * change)


def test_divergence_is_symmetric_and_bounded():
  p, q = random_policies(200, 5, 2), random_policies(200, 5, 3)
  forward = divergence(p, q)
  np.testing.assert_allclose(forward, divergence(q, p), atol=1e-7)
  assert (forward >= -1e-7).all() and (forward <= math.log(2) + 1e-6).all()


@pytest.mark.parametrize(
  ("reduction", "expected"),
  [
    # rows (0.066414 + 0.005860) / 2 and -0.5 * 0.005509, mean of the two
    ("seq_mean", 0.016691),
    # (0.066414 + 0.005860 - 0.5 * 0.005509) / 3
    ("token_mean", 0.023173),
    # (0.066414 + 0.005860 - 0.5 * 0.005509) / 2
    ("sum", 0.034760),
  ],
)
def test_term_golden(reduction, expected):
  value = term(NEW, OLD, ADVANTAGES, MASK, reduction)
  np.testing.assert_allclose(value, expected, atol=2e-6)


def test_term_is_unreduced_and_zero_on_padding():
  values = attention.attention_jsd(NEW, OLD, ADVANTAGES, MASK)
  expected = [[[0.066414, 0.005860]], [[-0.5 * 0.005509, 0.0]]]
  np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", [0.3, -1.0, np.inf, np.nan])
def test_masked_rows_never_matter(reduction, garbage):
  new = NEW.at[1, 0, 1].set(garbage)
  old = OLD.at[1, 0, 1].set(garbage)
  one = term_and_gradient(NEW, OLD, ADVANTAGES, MASK, reduction)
  two = term_and_gradient(new, old, ADVANTAGES, MASK, reduction)
  assert one[0] == two[0]
  valid = MASK[..., None]
  np.testing.assert_array_equal(
    np.where(valid, one[1], 0), np.where(valid, two[1], 0)
  )
  assert (np.where(valid, 0, np.nan_to_num(two[1], nan=7.0)) == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_answer_without_tokens_changes_nothing(reduction):
  def pad(x):
    return jnp.concatenate([x, x[:1]])

  mask = pad(MASK).at[2].set(False)
  value = term(pad(NEW), pad(OLD), pad(ADVANTAGES), mask, reduction)
  expected = term(NEW, OLD, ADVANTAGES, MASK, reduction)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_token_at_all_gives_zero(reduction):
  value, gradient = term_and_gradient(
    NEW, OLD, ADVANTAGES, jnp.zeros_like(MASK), reduction
  )
  assert value == 0
  assert (gradient == 0).all()


def test_advantage_of_a_token_is_used_where_there_is_one():
  spread = jnp.broadcast_to(ADVANTAGES[..., None], MASK.shape)
  one = attention.attention_jsd(NEW, OLD, ADVANTAGES, MASK)
  two = attention.attention_jsd(NEW, OLD, spread, MASK)
  np.testing.assert_array_equal(one, two)


def test_exactly_zero_at_the_behaviour_policy():
  """The fixed point of the method, not nearly but bit for bit."""
  old = random_policies(300, 11, 4).reshape(10, 10, 3, 11)
  advantages = normal(10, 10, seed=5)
  value, gradient = term_and_gradient(
    old,
    old,
    advantages,
    jnp.ones((10, 10, 3), bool),
    "seq_mean",
  )
  assert value == 0.0
  assert (gradient == 0.0).all()


def test_zero_gradient_through_the_softmax_of_the_behaviour_policy():
  logits = normal(4, 2, 3, 9, seed=0)
  old = jax.nn.softmax(logits)
  mask, advantages = jnp.ones((4, 2, 3), bool), jnp.full((4, 2), 3.0)

  def loss(logits):
    return term(jax.nn.softmax(logits), old, advantages, mask, "sum")

  value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
  assert value == 0.0
  assert (gradient == 0.0).all()


def test_only_the_current_policy_has_a_gradient():
  gradients = jax.grad(term, argnums=(1, 2))(
    NEW, OLD, ADVANTAGES, MASK, reduction="seq_mean"
  )
  assert all((g == 0).all() for g in gradients)


def policy_of_heads(logits):
  """Heads averaged, the diagonal (last column) dropped, the rest rescaled."""
  kept = jax.nn.softmax(logits, axis=-1).mean(0)[:-1]
  return kept / kept.sum()


# Logits over three earlier keys and the diagonal, one row per head.
HEAD = [0.2, -0.1, 0.4, 1.5]
HEADS = {
  1: (
    [HEAD],
    [0.337585, 0.250089, 0.412327],
    0.017972,
    # With one head the diagonal is out of the softmax altogether: 0.
    [[-0.039365, -0.002186, 0.041551, 0.0]],
  ),
  2: (
    [HEAD, [-0.3, 0.6, 0.0, -0.5]],
    [0.252434, 0.421702, 0.325864],
    0.034349,
    [
      [-0.023569, 0.009439, 0.008210, 0.005921],
      [-0.031574, 0.027572, 0.005559, -0.001557],
    ],
  ),
}


@pytest.mark.parametrize("heads", HEADS)
def test_gradient_golden(heads):
  logits, policy, divergence, gradient = HEADS[heads]
  with jax.enable_x64(True):
    logits, q = jnp.array(logits), jnp.array([0.5, 0.25, 0.25])

    @jax.jit
    def of_logits(logits):
      return attention.jensen_shannon(policy_of_heads(logits), q)

    np.testing.assert_allclose(policy_of_heads(logits), policy, atol=1e-6)
    value, found = jax.jit(jax.value_and_grad(of_logits))(logits)
    np.testing.assert_allclose(value, divergence, atol=1e-6)
    np.testing.assert_allclose(found, gradient, atol=1e-6)
    if heads == 1:  # dJ/de_i = p_i (g_i - sum_j p_j g_j)
      p = policy_of_heads(logits)
      g = 0.5 * jnp.log(2 * p / (p + q))
      closed = p * (g - p @ g)
      np.testing.assert_allclose(found[0, :3], closed, atol=1e-12)
    step = 1e-6
    for index in np.ndindex(*logits.shape):
      change = np.zeros(logits.shape)
      change[index] = step
      rise = of_logits(logits + change) - of_logits(logits - change)
      np.testing.assert_allclose(found[index], rise / (2 * step), atol=1e-9)


@pytest.mark.parametrize("side", [0, 1])
def test_derivative_of_both_arguments(side):
  """The written derivative is that of the written value."""
  with jax.enable_x64(True):
    p = jnp.array([0.6, 0.3, 0.1])
    q = jnp.array([0.2, 0.3, 0.5])
    found = jax.grad(divergence, argnums=side)(p, q)
    for i in range(3):
      sides = []
      for sign in (1, -1):
        moved = [np.array(p), np.array(q)]
        moved[side][i] += sign * 1e-6
        sides.append(divergence(*map(jnp.asarray, moved)))
      numeric = (sides[0] - sides[1]) / 2e-6
      np.testing.assert_allclose(found[i], numeric, atol=1e-8)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_step_pulls_good_answers_back_and_pushes_bad_ones_away(advantage):
  old = jax.nn.softmax(normal(1, 1, 1, 6, seed=1))
  logits = normal(1, 1, 1, 6, seed=2)
  mask = jnp.ones((1, 1, 1), bool)

  def loss(logits):
    advantages = jnp.full((1, 1), advantage)
    return term(jax.nn.softmax(logits), old, advantages, mask, "token_mean")

  def distance_of(logits):
    return divergence(jax.nn.softmax(logits), old).item()

  moved = logits - 0.01 * jax.jit(jax.grad(loss))(logits)
  change = distance_of(moved) - distance_of(logits)
  assert change * advantage < -1e-6
