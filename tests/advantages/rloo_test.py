"""Tests of the advantage against the other answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.advantages import group

# The package may export a function of the module's name.
from mmrl.advantages.rloo import leave_one_out

advantages_of = jax.jit(leave_one_out, static_argnames="beta")
# Three answers to one prompt, of 3, 2 and 1 tokens.
REWARDS = jnp.array([[1, 0, 0.5]], jnp.float32)
OLD = jnp.array([[[-1, -0.5, -2], [-0.7, -1.5, 9], [-0.3, 9, 9]]], jnp.float32)
REFERENCE = jnp.array(
  [[[-1.1, -0.5, -1.8], [-0.9, -1.5, 7], [-0.3, 7, 7]]], jnp.float32
)
MASK = jnp.arange(3)[None, None] < jnp.array([[3, 2, 1]])[..., None]


def tokens(rewards):
  """Log-probabilities and a mask that change nothing."""
  shape = (*rewards.shape, 2)
  return jnp.zeros(shape), jnp.ones(shape, bool)


@pytest.mark.parametrize(
  ("rewards", "expected"),
  [
    # 1 - 0; 0 - 1/3
    ([1, 0, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3]),
    # 4/3 of [0.5, -0.4, -0.5, 0.4]
    ([1, 0.1, 0, 0.9], [0.666667, -0.533333, -0.666667, 0.533333]),
    ([0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0]),
  ],
)
def test_golden(rewards, expected):
  rewards = jnp.array([rewards], jnp.float32)
  values = advantages_of(rewards, *tokens(rewards))
  np.testing.assert_allclose(values, [expected], atol=1e-6)


def test_kl_in_the_reward_golden():
  # Sums of k1: -0.1, 0.2, 0; R = [1.005, -0.01, 0.5]; 1.005 - 0.49 / 2
  values = advantages_of(REWARDS, OLD, MASK, REFERENCE, beta=0.05)
  np.testing.assert_allclose(values, [[0.76, -0.7625, 0.0025]], atol=1e-6)
  # Loss of the paper: -A sum_t logprobs; mean of 2.66, -1.6775, 0.00075
  sums = jnp.where(MASK, OLD, 0).sum(-1)
  np.testing.assert_allclose(-(values * sums).mean(), 0.327750, atol=1e-6)


def test_is_what_it_says_and_centred_rewards_scaled():
  rewards = np.random.default_rng(0).uniform(size=(5, 6)).astype(np.float32)
  values = advantages_of(jnp.asarray(rewards), *tokens(rewards))
  others = (rewards.sum(axis=1, keepdims=True) - rewards) / 5
  np.testing.assert_allclose(values, rewards - others, atol=1e-6)
  centred = group.group_normalised(jnp.asarray(rewards), scale="none")
  np.testing.assert_allclose(values, 6 / 5 * centred, atol=1e-6)


@pytest.mark.parametrize("reward", [0.9, 0.1])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_equal_rewards_give_exactly_zero(reward, beta):
  """In float32 the mean of eight times 0.9 isn't 0.9."""
  rewards = jnp.full((1, 8), reward, jnp.float32)
  logprobs, mask = tokens(rewards)
  values = advantages_of(rewards, logprobs, mask, logprobs, beta=beta)
  assert (values == 0).all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_padding_may_hold_anything(garbage):
  one = advantages_of(REWARDS, OLD, MASK, REFERENCE, beta=0.05)
  dirty = [jnp.where(MASK, x, garbage) for x in (OLD, REFERENCE)]
  two = advantages_of(REWARDS, dirty[0], MASK, dirty[1], beta=0.05)
  np.testing.assert_array_equal(one, two)


def test_dropped_groups_get_zero_and_change_no_other():
  def twice(values, second):
    return jnp.concatenate([values, jnp.full_like(values, second)])

  one = advantages_of(REWARDS, OLD, MASK, REFERENCE, beta=0.05)
  two = advantages_of(
    twice(REWARDS, np.nan),
    twice(OLD, np.nan),
    twice(MASK, False),
    twice(REFERENCE, np.nan),
    beta=0.05,
  )
  # Two programs: of one group and of two.
  np.testing.assert_allclose(two, twice(one, 0), rtol=1e-6)


def test_one_answer_is_refused():
  message = "leave_one_out needs at least 2 answers per prompt, got 1"
  with pytest.raises(ValueError, match=message):
    leave_one_out(REWARDS[:, :1], OLD[:, :1], MASK[:, :1])


@pytest.mark.parametrize(
  ("beta", "message"),
  [
    (0.05, r"beta=0.05 needs logprobs_ref.*; add probe 'reference' to"),
    (-0.1, "beta must be at least 0, got -0.1"),
  ],
)
def test_beta_that_cannot_be_is_refused(beta, message):
  with pytest.raises(ValueError, match=message):
    leave_one_out(REWARDS, OLD, MASK, beta=beta)
