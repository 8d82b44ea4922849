"""Tests of the weights of experts' tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.token_weights import experts

visual = jax.jit(experts.expert_visual, static_argnames="strength")
unlikely = jax.jit(experts.expert_low_probability, static_argnames="alpha")

# One prompt, experts alone; a row of each kind.
SENSITIVITY = jnp.array(
  [
    [0, 0.8, 0.3, 2],
    [0.5, 0.5, 0.1, 9],
    [0.4, 9, 9, 9],
    [9, 9, 9, 9],
    [0.2, 0.2, 0.2, 9],
  ],
  jnp.float32,
)[None]
LENGTHS = np.array([4, 3, 1, 0, 3])
MASK = jnp.asarray(np.arange(4) < LENGTHS[:, None])[None]
EXPERT = jnp.ones((1, 5), bool)
# The picture makes some tokens more likely and others less.
OLD = -2 + jnp.array([[[1, -1, 1, -1]]]) * SENSITIVITY
BLIND = jnp.full_like(OLD, -2)


def test_visual_golden():
  # Ranks 0, 2/3, 1/3, 1: u = 1 + rank, over their mean 3/2.
  # Ranks of a tie at the top: 3/4, 3/4, 0.
  expected = [
    [0.666667, 1.111111, 0.888889, 1.333333],
    [1.166667, 1.166667, 0.666667, 0],
    [1, 0, 0, 0],
    [0, 0, 0, 0],
    [1, 1, 1, 0],
  ]
  found = visual(BLIND + SENSITIVITY, BLIND, MASK, EXPERT)
  np.testing.assert_allclose(found[0], expected, atol=1e-6)
  halved = visual(OLD, BLIND, MASK, EXPERT, strength=0.5)
  expected = [0.8, 1.066667, 0.933333, 1.2]
  np.testing.assert_allclose(halved[0, 0], expected, atol=1e-6)


def test_visual_counts_either_direction():
  one = visual(OLD, BLIND, MASK, EXPERT)[0, 0]
  two = visual(BLIND, OLD, MASK, EXPERT)[0, 0]
  three = visual(BLIND + SENSITIVITY, BLIND, MASK, EXPERT)[0, 0]
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one, three)


def random_rows(seed=0, shape=(3, 4, 20)):
  rng = np.random.default_rng(seed)
  # Few values, so that there are ties.
  old, blind = -jnp.asarray(rng.integers(0, 4, (2, *shape)), jnp.float32)
  lengths = rng.integers(0, shape[-1] + 1, shape[:2])
  return old, blind, jnp.asarray(np.arange(shape[-1]) < lengths[..., None])


def pairwise(old, blind, mask, strength):
  """The same by comparing all pairs of tokens of a trajectory."""
  weights = np.zeros(old.shape)
  for row in np.ndindex(*old.shape[:2]):
    values = np.abs(np.asarray(old - blind)[row][np.asarray(mask)[row]])
    others = values[:, None]
    rank = (others < values).sum(0) + ((others == values).sum(0) - 1) / 2
    one = 1 + strength * rank / max(len(values) - 1, 1)
    if len(values):
      weights[row][np.asarray(mask)[row]] = one / one.mean()
  return weights


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 3.0])
def test_visual_equals_all_pairs(strength):
  old, blind, mask = random_rows()
  everyone = jnp.ones(mask.shape[:2], bool)
  found = visual(old, blind, mask, everyone, strength=strength)
  expected = pairwise(old, blind, mask, strength)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_visual_has_mean_one():
  old, blind, mask = random_rows(1)
  everyone = jnp.ones(mask.shape[:2], bool)
  sums = visual(old, blind, mask, everyone).sum(-1)
  np.testing.assert_allclose(sums, mask.sum(-1), rtol=1e-5)


def test_visual_is_exactly_one_without_a_picture():
  old, _, mask = random_rows(2)
  everyone = jnp.ones(mask.shape[:2], bool)
  for strength in (0.3, 1.0):
    found = visual(old, old, mask, everyone, strength=strength)
    np.testing.assert_array_equal(found, jnp.where(mask, 1.0, 0.0))


def test_visual_of_a_token_that_is_impossible_without_the_picture():
  """Infinite as it is, it's a token and not padding."""
  blind = BLIND.at[0, 1, 0].set(-jnp.inf)
  found = visual(OLD, blind, MASK, EXPERT)
  # Ranks 1, 1/2, 0 instead of 3/4, 3/4, 0.
  expected = [4 / 3, 1, 2 / 3, 0]
  np.testing.assert_allclose(found[0, 1], expected, atol=1e-6)


def test_low_probability_golden():
  # 1 + 0.2 (1 - p)
  old = jnp.log(jnp.array([[[0.5, 1.0, 0.25], [0.5, 0.1, 0.9]]], jnp.float32))
  mask = jnp.array([[[True, True, True], [True, False, False]]])
  expected = [[[1.1, 1.0, 1.15], [1.1, 0, 0]]]
  everyone = jnp.ones((1, 2), bool)
  np.testing.assert_allclose(unlikely(old, mask, everyone), expected, rtol=1e-6)
  expected = [[[2, 1, 2.5], [2, 0, 0]]]
  found = unlikely(old, mask, everyone, alpha=2.0)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # alpha of -1: the probability itself
  expected = [[[0.5, 1, 0.25], [0.5, 0, 0]]]
  found = unlikely(old, mask, everyone, alpha=-1.0)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  never = unlikely(jnp.full_like(old, -jnp.inf), mask, everyone)
  np.testing.assert_allclose(never[0, 0], [1.2, 1.2, 1.2], rtol=1e-6)


@pytest.mark.parametrize("method", ["visual", "low_probability"])
def test_other_rows_weigh_one(method):
  old, blind, mask = random_rows(3)
  expert = jnp.zeros(mask.shape[:2], bool).at[:, 2:].set(True)

  def weights(expert):
    if method == "visual":
      return visual(old, blind, mask, expert)
    return unlikely(old, mask, expert)

  assert (weights(expert)[:, :2] == 1).all()
  everyone = weights(jnp.ones_like(expert))
  np.testing.assert_array_equal(weights(expert)[:, 2:], everyone[:, 2:])
  assert (weights(None) == 1).all()
  assert (weights(jnp.zeros_like(expert)) == 1).all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 100.0])
def test_padding_may_hold_anything(garbage):
  old, blind = (jnp.where(MASK, x, garbage) for x in (OLD, BLIND))
  for one, two in [
    (visual(OLD, BLIND, MASK, EXPERT), visual(old, blind, MASK, EXPERT)),
    (unlikely(OLD, MASK, EXPERT), unlikely(old, MASK, EXPERT)),
  ]:
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("expert", [None, EXPERT])
def test_hyper_parameters_outside_their_range_are_refused(expert):
  with pytest.raises(ValueError, match="strength must be at least 0, got -1"):
    experts.expert_visual(OLD, BLIND, MASK, expert, strength=-1.0)
  with pytest.raises(ValueError, match="alpha must be at least -1, got -2"):
    experts.expert_low_probability(OLD, MASK, expert, alpha=-2.0)
