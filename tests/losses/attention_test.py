"""Tests of the attention-policy terms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
import small_models

from mmrl.errors import UserError
from mmrl.losses import attention, reduce

# Two answers of two tokens over four keys; the last row is padding.
NEW = jnp.array(
  [
    [[[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.4, 0.1]]],
    [[[0.7, 0.3, 0.0, 0.0], 4 * [np.nan]]],
  ],
  jnp.float32,
)
OLD = jnp.array(
  [
    [[[0.2, 0.3, 0.5, 0.0], [0.3, 0.3, 0.3, 0.1]]],
    [[[0.6, 0.4, 0.0, 0.0], 4 * [np.nan]]],
  ],
  jnp.float32,
)
ADVANTAGES = jnp.array([[1.0], [-0.5]], jnp.float32)
MASK = jnp.array([[[True, True]], [[True, False]]])


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def term_and_gradients(new, old, advantages, mask):
  values = attention.attention_jsd(new, old, advantages, mask)
  return reduce.total(values, reduce.token_sum(mask)), values


divergence = jax.jit(attention.jensen_shannon)
slopes_of = jax.jit(jax.value_and_grad(attention.jensen_shannon, (0, 1)))
attention_jsd = small_models.compiled(attention.attention_jsd)


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
  value, slopes = slopes_of(*map(jnp.asarray, pair))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(slopes[0], np.log(p / m) / 2, rtol=1e-6)
  np.testing.assert_allclose(slopes[1], np.log(q / m) / 2, rtol=1e-6)


@pytest.mark.parametrize("change", [1e-2, 1e-3, 1e-4])
def test_near_policies_equal_float64(change):
  """What 2 p / (p + q) rounds away: the gradient of a small move."""
  q = np.float32([0.2, 0.3, 0.5])
  p = q * np.float32([1 + change, 1 - change, 1])
  value, (slope, _) = slopes_of(jnp.array(p), jnp.array(q))
  p, q = np.float64(p), np.float64(q)
  of_p, of_q = (np.log1p(sign * (p - q) / (p + q)) for sign in (1, -1))
  # p - q is exact, and what follows is rounded a few times.
  np.testing.assert_allclose(slope, of_p / 2, rtol=1e-6)
  # Terms of size `change` cancel to its square.
  expected = (p * of_p + q * of_q).sum() / 2
  np.testing.assert_allclose(value, expected, atol=1e-7 * change)


@pytest.mark.parametrize("per_token", [False, True])
def test_term_golden(per_token):
  """Padding is 0, with gradient 0, whatever it holds."""
  advantages = ADVANTAGES
  if per_token:
    advantages = jnp.where(MASK, ADVANTAGES[..., None], jnp.nan)
  (_, values), (slope, *others) = term_and_gradients(NEW, OLD, advantages, MASK)
  expected = [[[0.066414, 0.005860]], [[-0.5 * 0.005509, 0.0]]]
  np.testing.assert_allclose(values, expected, atol=1e-6)
  assert np.isfinite(slope).all() and (slope[1, 0, 1] == 0).all()
  first = np.log(np.array([10 / 7, 1, 4 / 7])) / 2
  np.testing.assert_allclose(slope[0, 0, 0, :3], first, atol=1e-6)
  # A good answer is pulled back to where it looked, a bad one pushed away.
  assert slope[0, 0, 0, 0] > 0 > slope[1, 0, 0, 0]
  assert all((x == 0).all() for x in others)


def test_exactly_zero_at_the_behaviour_policy():
  """The fixed point of the method, not nearly but bit for bit."""
  rng = np.random.default_rng(4)
  old = jnp.asarray(rng.dirichlet(np.full(11, 0.5), (10, 10, 3)), jnp.float32)
  advantages = jnp.asarray(rng.normal(size=(10, 10)), jnp.float32)
  mask = jnp.ones((10, 10, 3), bool)
  (value, _), slopes = term_and_gradients(old, old, advantages, mask)
  assert value == 0.0
  assert all((x == 0.0).all() for x in slopes)


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


def half(p, q):
  """The share of one position in a divergence, by its definition."""
  m = (p + q) / 2
  return (p * math.log(p / m) if p else 0) / 2 + (
    q * math.log(q / m) if q else 0
  ) / 2


@pytest.mark.parametrize(
  ("over", "first", "second"),
  [
    (
      "visual",
      half(0.5, 0.2) + half(0.3, 0.3),
      2 * half(0.25, 0.3),
    ),
    ("visual_scaled", half(5 / 8, 2 / 5) + half(3 / 8, 3 / 5), 0.0),
    ("text", half(0.2, 0.5), half(0.4, 0.3) + half(0.1, 0.1)),
  ],
)
def test_positions_golden(over, first, second):
  """Visual are the first two of three; the last key is the answer's own."""
  values = attention_jsd(
    *(NEW, OLD, ADVANTAGES, MASK),
    prompt=small_models.marked_prompt(2 * [[True, True, False]]),
    over=over,
  )
  np.testing.assert_allclose(values[0, 0], [first, second], atol=1e-6)
  assert values[1, 0, 1] == 0


@pytest.mark.parametrize("over", attention.POSITIONS[1:])
@pytest.mark.parametrize("visual", [[True] * 3, [False] * 3])
def test_positions_have_finite_gradients(over, visual):
  """Where none or all of the prompt is visual; zero at theta_old."""

  @jax.jit
  @jax.value_and_grad
  def total(new):
    values = attention.attention_jsd(
      *(new, OLD, ADVANTAGES, MASK),
      prompt=small_models.marked_prompt(2 * [visual]),
      over=over,
    )
    return values.sum()

  mask, (_, found) = np.asarray(MASK), jax.device_get(total(NEW))
  assert np.isfinite(found[mask]).all() and (found[~mask] == 0).all()
  value, found = jax.device_get(total(OLD))
  assert (found[mask] == 0).all() and value == 0


def test_positions_are_known():
  with pytest.raises(UserError, match="over must be one of all, visual, "):
    attention.attention_jsd.check(over="image")


def test_target_of_a_probe():
  """It takes the place of the behaviour's attention, and of its divergence."""
  moved = jnp.full(MASK.shape, 9.0)
  found = attention.attention_jsd(
    NEW, NEW, ADVANTAGES, MASK, moved, attention_target=OLD
  )
  wanted = attention.attention_jsd(NEW, OLD, ADVANTAGES, MASK)
  np.testing.assert_array_equal(found, wanted)


def test_good_only():
  """Negative advantages count as 0."""
  options = {"good_only": True}
  values = attention.attention_jsd(NEW, OLD, ADVANTAGES, MASK, **options)
  every = attention.attention_jsd(NEW, OLD, ADVANTAGES, MASK)
  assert (values[1] == 0).all() and (every[1, 0, 0] < 0).all()
  np.testing.assert_array_equal(values[0], every[0])
