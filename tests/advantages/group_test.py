"""Tests of the group advantages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.advantages import group

advantages_of = jax.jit(
  group.group_normalised, static_argnames=("scale", "epsilon", "ddof")
)
# The second group has no spread: its advantages are exactly 0.
REWARDS = [[1, 0.1, 0, 0.9], [0.1, 0.1, 0.1, 0.1]]


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, [0.956363, -0.765091, -0.956363, 0.765091]),
    ({"ddof": 0}, [1.104313, -0.883450, -1.104313, 0.883450]),
    ({"scale": "batch"}, [1.238983, -0.991187, -1.238983, 0.991187]),
    # minus the mean 0.5
    ({"scale": "none"}, [0.5, -0.4, -0.5, 0.4]),
  ],
)
def test_two_groups_golden(options, expected):
  values = advantages_of(jnp.array(REWARDS), **options)
  np.testing.assert_allclose(values[0], expected, atol=1e-6)
  assert (values[1] == 0).all()


@pytest.mark.parametrize(
  ("rewards", "epsilon", "expected"),
  [
    # mean 1/4, std 1/2: 0.75 / (0.5 + eps)
    ([1, 0, 0, 0], 1e-4, [1.4997, -0.4999, -0.4999, -0.4999]),
    ([1, 0, 0, 0], 1e-6, [1.499997, -0.499999, -0.499999, -0.499999]),
    # mean 0.55, std 0.9 / sqrt 2
    ([1, 0.1], 1e-6, [0.707106, -0.707106]),
    (
      [1, 0.1, 0.1, 0, 0.9, 1, 0.1, 0],
      1e-6,
      [
        *(1.270975, -0.635488, -0.635488, -0.847317),
        *(1.059146, 1.270975, -0.635488, -0.847317),
      ],
    ),
  ],
)
def test_one_group_golden(rewards, epsilon, expected):
  values = advantages_of(jnp.array([rewards], jnp.float32), epsilon=epsilon)
  np.testing.assert_allclose(values[0], expected, atol=2e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("reward", [0.9, 0.1])
def test_equal_rewards_give_exactly_zero(reward, scale):
  """In float32 the mean of eight times 0.9 isn't 0.9."""
  rewards = jnp.array([8 * [reward], 4 * [1.0] + 4 * [0.0]], jnp.float32)
  assert (advantages_of(rewards, scale=scale)[0] == 0.0).all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_a_group_sum_to_zero(scale):
  rewards = np.random.default_rng(0).integers(0, 3, (6, 8)) / 2
  values = advantages_of(jnp.asarray(rewards, jnp.float32), scale=scale)
  np.testing.assert_allclose(values.sum(axis=1), np.zeros(6), atol=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_permuting_answers_or_groups_permutes_advantages(scale):
  rng = np.random.default_rng(1)
  rewards = rng.uniform(size=(5, 6)).astype(np.float32)
  rows, columns = rng.permutation(5), rng.permutation(6)
  advantages = functools.partial(advantages_of, scale=scale)
  moved = advantages(jnp.asarray(rewards[rows][:, columns]))
  expected = np.asarray(advantages(jnp.asarray(rewards)))[rows][:, columns]
  np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_one_answer_is_refused():
  with pytest.raises(ValueError, match="at least 2 answers per prompt, got 1"):
    group.group_normalised(jnp.ones((3, 1)))


def test_unknown_scale_is_refused():
  with pytest.raises(ValueError, match="'group', 'batch' or 'none', got 'x'"):
    group.group_normalised(jnp.ones((3, 2)), scale="x")
