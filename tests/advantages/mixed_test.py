"""Tests of advantages in groups with experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.advantages import group, mixed

advantage = jax.jit(
  mixed.expert_group_normalised, static_argnames=("scale", "epsilon", "ddof")
)

# Four sampled answers and a right expert; the fourth question's isn't kept,
# and its reward isn't a number.
ANSWERS = [
  *([0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1])
]
REWARDS = jnp.array([[*row, 1] for row in ANSWERS], jnp.float32)
REWARDS = REWARDS.at[3, 4].set(jnp.nan)
SAMPLED = jnp.ones((5, 5), bool).at[:, 4].set(False)
MASK = jnp.ones((5, 5, 3), bool).at[3, 4].set(False)
# The first answer counts without tokens; the last question was dropped. One
# expert is shorter than others.
MASK = MASK.at[0, 0].set(False).at[4].set(False).at[1, 4, 1:].set(False)


@pytest.mark.parametrize(
  ("scale", "expected"),
  [
    (
      "group",
      [
        # mean 2/5, squares 6/5, std sqrt(0.3): -0.4 / 0.547723, 0.6 / 0.547723
        [-0.730295, -0.730295, 1.095443, -0.730295, 1.095443],
        [-0.447213, -0.447213, -0.447213, -0.447213, 1.788850],
        [0, 0, 0, 0, 0],
        # mean 3/4, std 1/2
        [0.499999, 0.499999, -1.499997, 0.499999, 0],
        [0, 0, 0, 0, 0],
      ],
    ),
    (
      "none",
      [
        [-0.4, -0.4, 0.6, -0.4, 0.6],
        [-0.2, -0.2, -0.2, -0.2, 0.8],
        [0, 0, 0, 0, 0],
        [0.25, 0.25, -0.75, 0.25, 0],
        [0, 0, 0, 0, 0],
      ],
    ),
  ],
)
def test_golden(scale, expected):
  values = advantage(REWARDS, MASK, SAMPLED, scale=scale)
  np.testing.assert_allclose(values, expected, atol=2e-6)
  assert (values[2::2] == 0).all() and values[3, 4] == 0


def test_epsilon_is_added_to_the_deviation():
  """Rewards 0 and 2 deviate by 1: 1 / (1 + 3), which is not 1 / root 4."""
  mask, sampled = jnp.ones((1, 2, 1), bool), jnp.array([[True, False]])
  values = advantage(
    jnp.array([[0.0, 2.0]]), mask, sampled, epsilon=3.0, ddof=0
  )
  np.testing.assert_allclose(values, [[-0.25, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("reward", [0.9, 0.1])
def test_equal_rewards_that_count_give_exactly_zero(reward):
  """In float32 the mean of eight times 0.9 isn't 0.9."""
  rewards = jnp.full((1, 10), reward, jnp.float32).at[0, 9].set(0.0)
  mask = jnp.ones((1, 10, 2), bool).at[0, 9].set(False)
  sampled = jnp.ones((1, 10), bool).at[:, 8:].set(False)
  assert (advantage(rewards, mask, sampled) == 0).all()


def test_one_row_that_counts_has_zero():
  rewards = jnp.array([[0.3, 1.0]], jnp.float32)
  mask = jnp.array([[[True], [False]]])
  sampled = jnp.array([[True, False]])
  for scale in ("group", "none"):
    assert (advantage(rewards, mask, sampled, scale=scale) == 0).all()


@pytest.mark.parametrize("options", [{"scale": "none"}, {"ddof": 0}])
def test_without_experts_it_is_the_program_of_the_plain_group(options):
  one, two = (
    str(jax.make_jaxpr(functools.partial(function, **options))(REWARDS, MASK))
    for function in (mixed.expert_group_normalised, group.group_normalised)
  )
  assert one == two


@pytest.mark.parametrize("sampled", [None, SAMPLED])
@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"scale": "batch"}, "'group' or 'none', got 'batch'"),
    ({"ddof": 2}, r"ddof must be 0 \(n\) or 1 .*, got 2"),
  ],
)
def test_mistakes_are_refused(options, message, sampled):
  with pytest.raises(ValueError, match=message):
    mixed.expert_group_normalised(REWARDS, MASK, sampled, **options)


def test_one_answer_is_refused():
  with pytest.raises(ValueError, match="at least 2 answers per prompt, got 1"):
    mixed.expert_group_normalised(REWARDS[:, :1], MASK[:, :1])
