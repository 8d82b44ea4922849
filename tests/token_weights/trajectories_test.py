"""Tests of the weights of experts' tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.token_weights import trajectories

visual = jax.jit(trajectories.expert_visual, static_argnames="strength")
unlikely = jax.jit(trajectories.expert_low_probability, static_argnames="alpha")


# One prompt, experts alone; a row of each kind. Padding is 0: were it read, it
# would have a rank.
SENSITIVITY = jnp.array(
  [
    [0, 0.8, 0.3, 2],
    [0.5, 0.5, 0.1, 0],
    [0.4, 0, 0, 0],
    [0, 0, 0, 0],
    [0.2, 0.2, 0.2, 0],
    [0.9, 0.5, 0.1, 0.5],
  ],
  jnp.float32,
)[None]
LENGTHS = np.array([4, 3, 1, 0, 3, 4])
MASK = jnp.asarray(np.arange(4) < LENGTHS[:, None])[None]
SAMPLED = jnp.zeros((1, 6), bool)
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
    [1.333333, 1, 0.666667, 1],
  ]
  for pair in ((OLD, BLIND), (BLIND, OLD), (BLIND + SENSITIVITY, BLIND)):
    found = visual(*pair, MASK, SAMPLED)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
  halved = visual(OLD, BLIND, MASK, SAMPLED, strength=0.5)
  expected = [0.8, 1.066667, 0.933333, 1.2]
  np.testing.assert_allclose(halved[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_visual_is_exactly_one_without_a_picture(strength):
  found = visual(OLD, OLD, MASK, SAMPLED, strength=strength)
  np.testing.assert_array_equal(found, jnp.where(MASK, 1.0, 0.0))


def test_visual_of_a_token_that_is_impossible_without_the_picture():
  """Infinite as it is, it's a token and not padding."""
  blind = BLIND.at[0, 1, 0].set(-jnp.inf)
  found = visual(OLD, blind, MASK, SAMPLED)
  # Ranks 1, 1/2, 0 instead of 3/4, 3/4, 0.
  expected = [4 / 3, 1, 2 / 3, 0]
  np.testing.assert_allclose(found[0, 1], expected, atol=1e-6)


@pytest.mark.parametrize(
  ("alpha", "expected"),
  [
    # 1 + 0.2 (1 - p)
    ({}, [1.1, 1.0, 1.15, 1.2]),
    ({"alpha": 2.0}, [2, 1, 2.5, 3]),
    # the probability itself
    ({"alpha": -1.0}, [0.5, 1, 0.25, 0]),
  ],
)
def test_low_probability_golden(alpha, expected):
  old = jnp.log(jnp.array([[[0.5, 1.0, 0.25, 0], [0.5, 0.1, 0.9, 0.1]]]))
  mask = jnp.array([[4 * [True], [True, False, False, False]]])
  found = unlikely(old, mask, jnp.zeros((1, 2), bool), **alpha)
  expected = [[expected, [expected[0], 0, 0, 0]]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["visual", "low_probability"])
def test_other_rows_weigh_one(method):
  def weights(sampled):
    if method == "visual":
      return visual(OLD, BLIND, MASK, sampled)
    return unlikely(OLD, MASK, sampled)

  mixed = SAMPLED.at[:, :2].set(True)
  assert (weights(mixed)[:, :2] == 1).all()
  np.testing.assert_array_equal(weights(mixed)[:, 2:], weights(SAMPLED)[:, 2:])
  assert (weights(None) == 1).all()
  assert (weights(~SAMPLED) == 1).all()


@pytest.mark.parametrize("sampled", [None, SAMPLED])
def test_hyper_parameters_outside_their_range_are_refused(sampled):
  with pytest.raises(ValueError, match="strength must be at least 0, got -1"):
    trajectories.expert_visual(OLD, BLIND, MASK, sampled, strength=-1.0)
  with pytest.raises(ValueError, match="alpha must be at least -1, got -2"):
    trajectories.expert_low_probability(OLD, MASK, sampled, alpha=-2.0)
