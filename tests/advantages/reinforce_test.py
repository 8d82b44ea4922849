"""Tests of the returns of tokens, whitened over the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.advantages import reference, reinforce

advantages_of = jax.jit(
  reinforce.reinforce_plus_plus,
  static_argnames=(
    *("beta", "gamma", "baseline", "epsilon", "ddof", "estimator"),
  ),
)
returns_of = jax.jit(reinforce.returns, static_argnames="gamma")
# Three answers to one prompt, of 3, 2 and 1 tokens. Padding isn't a number, nor
# is the second prompt, which was dropped.
NAN = np.nan
REWARDS = jnp.array([[1, 0, 0.5], 3 * [NAN]], jnp.float32)
LENGTHS = np.array([[3, 2, 1], [0, 0, 0]])
MASK = jnp.asarray(np.arange(3) < LENGTHS[..., None])
OLD, REFERENCE = (
  jnp.array([rows, 3 * [3 * [NAN]]], jnp.float32)
  for rows in (
    [[-1, -0.5, -2], [-0.7, -1.5, NAN], [-0.3, NAN, NAN]],
    [[-1.1, -0.5, -1.8], [-0.9, -1.5, NAN], [-0.3, NAN, NAN]],
  )
)


@pytest.mark.parametrize(
  ("beta", "expected"),
  [
    # Returns [1 1 1], [0 0], [0.5]; mean 3.5 / 6, variance 0.241667
    (0.0, [3 * [0.847579], [-1.186611, -1.186611, 0], [-0.169516, 0, 0]]),
    # Returns [1.005 1.01 1.01], [-0.01 0], [0.5]; 0.585833, 0.248224
    (
      0.05,
      [
        [0.841327, 0.851362, 0.851362],
        [-1.195922, -1.175850, 0],
        [-0.172280, 0, 0],
      ],
    ),
  ],
)
def test_golden(beta, expected):
  values = advantages_of(REWARDS, OLD, MASK, REFERENCE, beta=beta)
  np.testing.assert_allclose(values[0], expected, atol=2e-6)
  assert (values[~MASK] == 0).all()


def test_baseline_golden():
  # Centred [0.5, -0.5], [0, 0] on 3, 2, 1, 2 tokens; mean 0.5 / 8, variance
  # 0.174107
  rewards = jnp.array([[1, 0], [0.5, 0.5], [NAN, NAN]], jnp.float32)
  mask = np.arange(3) < np.array([[3, 2], [1, 2], [0, 0]])[..., None]
  found = advantages_of(
    rewards, jnp.zeros((3, 2, 3)), jnp.asarray(mask), baseline=True
  )
  values = [[1.048503, -1.348076], [-0.149786, -0.149786], [0, 0]]
  expected = np.where(mask, np.array(values)[..., None], 0)
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_epsilon_is_added_to_the_variance():
  """Returns 0 and 2: variance 1 + 3 under the root, which is not 1 + root 3."""
  values = advantages_of(
    jnp.array([[0.0, 2.0]]),
    *(jnp.zeros((1, 2, 1)), jnp.ones((1, 2, 1), bool)),
    epsilon=3.0,
    ddof=0,
  )
  np.testing.assert_allclose(values, [[[-0.5], [0.5]]], rtol=1e-6)


@pytest.mark.parametrize(
  ("gamma", "expected"),
  [
    (1.0, [[6, 5, 3], [3, 0, 2]]),
    # 1 + 0.5 (2 + 0.5 * 3); across the gap 1 + 0.5 * 2
    (0.5, [[2.75, 3.5, 3], [2, 0, 2]]),
    (0.0, [[1, 2, 3], [1, 0, 2]]),
  ],
)
def test_returns_step_over_gaps(gamma, expected):
  rewards = jnp.array([[[1, 2, 3], [1, np.nan, 2]]], jnp.float32)
  mask = jnp.array([[[True, True, True], [True, False, True]]])
  found = returns_of(rewards, mask, gamma=gamma)
  np.testing.assert_allclose(found, [expected], atol=1e-6)


def test_reward_of_a_row_with_gaps_is_discounted_by_tokens():
  """Returns 0.25, 0.5, 1 and 0: mean 0.4375, squares 0.546875 / 3."""
  rewards = jnp.array([[1, 0]], jnp.float32)
  mask = jnp.array([[[1, 0, 1, 1, 0], [1, 0, 0, 0, 0]]]) > 0
  values = advantages_of(rewards, jnp.zeros(mask.shape), mask, gamma=0.5)
  centred = [[-0.1875, 0, 0.0625, 0.5625, 0], [-0.4375, 0, 0, 0, 0]]
  expected = np.array([centred]) / np.sqrt(0.546875 / 3)
  np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("reward", [0.9, 0.1])
def test_equal_rewards_give_exactly_zero(reward, baseline):
  """In float32 the mean of many times 0.9 isn't 0.9."""
  rewards = jnp.full((3, 8), reward, jnp.float32)
  mask = jnp.ones((3, 8, 5), bool).at[0, 0, 2:].set(False)
  values = advantages_of(
    rewards, jnp.zeros(mask.shape), mask, baseline=baseline
  )
  assert (values == 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_tokens_give_zero(count):
  mask = (jnp.arange(18) < count).reshape(2, 3, 3)
  values = advantages_of(REWARDS, OLD, mask, REFERENCE, beta=0.05)
  assert (values == 0).all()


def test_estimator_of_the_penalty():
  """The KL in the reward by k3 is never negative, and differs from k1's."""
  k3 = reference.penalty(OLD, REFERENCE, MASK, beta=0.5, estimator="k3")
  difference = np.where(MASK, REFERENCE - OLD, 0.0)
  expected = 0.5 * (np.expm1(difference) - difference)
  np.testing.assert_allclose(k3, expected, rtol=1e-5, atol=1e-7)
  found = [
    advantages_of(REWARDS, OLD, MASK, REFERENCE, beta=0.5, estimator=name)
    for name in ("k1", "k3")
  ]
  assert np.abs(found[0] - found[1]).max() > 1e-3


def test_the_plain_variant_takes_one_answer():
  one = (x[:1, :1] for x in (REWARDS, OLD, MASK))
  assert (reinforce.reinforce_plus_plus(*one) == 0).all()


@pytest.mark.parametrize(
  ("answers", "options", "message"),
  [
    (1, {"baseline": True}, "at least 2 answers per prompt, got 1"),
    (3, {"beta": 0.05}, r"beta=0.05 needs logprobs_ref.*; add probe"),
    (3, {"beta": -0.1}, "beta must be at least 0, got -0.1"),
    (3, {"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
    (3, {"gamma": -0.5}, r"gamma must be in \[0, 1\], got -0.5"),
    (3, {"ddof": 2}, r"ddof must be 0 \(n\) or 1 \(n - 1\), got 2"),
  ],
)
def test_mistakes_are_refused(answers, options, message):
  data = (x[:, :answers] for x in (REWARDS, OLD, MASK))
  with pytest.raises(ValueError, match=message):
    reinforce.reinforce_plus_plus(*data, **options)


def test_unknown_estimator_is_refused():
  with pytest.raises(ValueError, match="estimator must be one of k1, k2, k3"):
    reinforce.reinforce_plus_plus(
      REWARDS, OLD, MASK, REFERENCE, beta=0.1, estimator="k4"
    )


def test_whitened_golden():
  """Values 1, 2 and 6 have mean 3 and variance 7; the rest is no number."""
  values = jnp.array([[[1, 2, np.nan], [6, np.inf, np.nan]]], jnp.float32)
  mask = jnp.array([[[True, True, False], [True, False, False]]])
  found = reinforce.whitened(values, mask, epsilon=0.0)
  expected = np.array([[[-2, -1, 0], [3, 0, 0]]]) / np.sqrt(7)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_default_epsilon_is_felt_by_returns_that_hardly_differ():
  """Rewards 0 and 2e-4 have variance 2e-8, and epsilon is 1e-8."""
  rewards, mask = jnp.array([[0.0, 2e-4]]), jnp.ones((1, 2, 1), bool)
  values = advantages_of(rewards, jnp.zeros((1, 2, 1)), mask)
  np.testing.assert_allclose(values[0, 1, 0], 1 / np.sqrt(3), rtol=1e-5)


def test_no_return_of_later_tokens():
  """With gamma 0 the reward is the last token's alone: 1, 0 and 0."""
  mask = jnp.array([[[True, True, False], [True, False, False]]])
  rewards = jnp.array([[1.0, 0.0]])
  values = advantages_of(rewards, jnp.zeros(mask.shape), mask, gamma=0.0)
  expected = np.array([[[-1, 2, 0], [-1, 0, 0]]]) / 3 / np.sqrt(1 / 3)
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_the_baseline_is_computed_in_float32():
  """The mean of 1, 0 and 0 is no bfloat16."""
  rewards = jnp.array([[1.0, 0.0, 0.0]])
  data = jnp.zeros((1, 3, 2)), jnp.ones((1, 3, 2), bool)
  one, two = (
    advantages_of(x, *data, baseline=True, epsilon=1.0)
    for x in (rewards, rewards.astype(jnp.bfloat16))
  )
  np.testing.assert_array_equal(one, two)
