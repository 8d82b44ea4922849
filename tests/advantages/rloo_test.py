"""Tests of the advantage against the other answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantages.reinforce_test import MASK, OLD, REFERENCE, REWARDS

# The package may export a function of the module's name.
from mmrl.advantages.rloo import leave_one_out

advantages_of = jax.jit(leave_one_out, static_argnames="beta")


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
  """Of padding and of a dropped group, which aren't numbers, there is none."""
  # Sums of k1: -0.1, 0.2, 0; R = [1.005, -0.01, 0.5]; 1.005 - 0.49 / 2
  values = advantages_of(REWARDS, OLD, MASK, REFERENCE, beta=0.05)
  expected = [[0.76, -0.7625, 0.0025], [0, 0, 0]]
  np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("reward", [0.9, 0.1])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_equal_rewards_give_exactly_zero(reward, beta):
  """In float32 the mean of eight times 0.9 isn't 0.9."""
  rewards = jnp.full((1, 8), reward, jnp.float32)
  logprobs, mask = tokens(rewards)
  values = advantages_of(rewards, logprobs, mask, logprobs, beta=beta)
  assert (values == 0).all()


@pytest.mark.parametrize(
  ("answers", "beta", "message"),
  [
    (1, 0.0, "leave_one_out needs at least 2 answers per prompt, got 1"),
    (3, 0.05, r"beta=0.05 needs logprobs_ref.*; add probe 'reference' to"),
    (3, -0.1, "beta must be at least 0, got -0.1"),
  ],
)
def test_mistakes_are_refused(answers, beta, message):
  data = (x[:, :answers] for x in (REWARDS, OLD, MASK))
  with pytest.raises(ValueError, match=message):
    leave_one_out(*data, beta=beta)
