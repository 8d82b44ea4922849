"""Tests of the group advantages."""

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
    # mean 1/8, std 1 / sqrt 8: SEED-Bench-R1's.
    ([1, *[0] * 7], 1e-4, [2.474174, *[-0.353453] * 7]),
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
@pytest.mark.parametrize(
  ("reward", "epsilon"), [(0.9, 1e-6), (0.1, 1e-6), (1.0, 0.0)]
)
def test_equal_rewards_give_exactly_zero(reward, epsilon, scale):
  """In float32 the mean of eight times 0.9 isn't 0.9."""
  rewards = jnp.array([8 * [reward], 4 * [1.0] + 4 * [0.0]], jnp.float32)
  values = advantages_of(rewards, scale=scale, epsilon=epsilon)
  assert (values[0] == 0.0).all()
  assert (group.centred(rewards)[0] == 0.0).all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("garbage", [50.0, np.nan, np.inf])
def test_dropped_groups_count_nowhere(garbage, scale):
  mask = jnp.ones((3, 4, 2), bool).at[1].set(False)
  mask = mask.at[0, 1].set(False)  # one answer without tokens drops nothing
  rewards = jnp.array([REWARDS[0], 2 * [garbage, 7], REWARDS[1]], jnp.float32)
  values = advantages_of(rewards, mask, scale=scale)
  kept = advantages_of(jnp.array(REWARDS), scale=scale)
  np.testing.assert_allclose(values[::2], kept, rtol=1e-6)
  assert (values[1] == 0).all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_nothing_but_dropped_groups_gives_zero(scale):
  mask = jnp.zeros((2, 4, 3), bool)
  assert (advantages_of(jnp.array(REWARDS), mask, scale=scale) == 0).all()


@pytest.mark.parametrize("scale", ["group", "batch"])
@pytest.mark.parametrize("mask", [None, jnp.ones((1, 2, 1), bool)])
def test_epsilon_is_added_to_the_deviation(scale, mask):
  """Rewards 0 and 2 deviate by 1: 1 / (1 + 3), which is not 1 / root 4."""
  values = advantages_of(
    jnp.array([[0.0, 2.0]]), mask, scale=scale, epsilon=3.0, ddof=0
  )
  np.testing.assert_allclose(values, [[-0.25, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("library", [np, jnp])
def test_informative_groups(library):
  accuracy = [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
  found = group.informative_groups(library.array(accuracy, library.float32))
  np.testing.assert_array_equal(found, [True, False, False, True])
  assert isinstance(found, np.ndarray) == (library is np)


# Stds of 4, 8 and 4 rewards; the third prompt may be invalid.
POOLED = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
  ("valid", "ddof", "expected"),
  [
    # 5 of 8 rewards are 1: sqrt(8 * 5/8 * 3/8 / 7)
    ([True, True, True, True], 1, [0.5, 0.5175492, 0, 0]),
    ([True, True, True, True], 0, [0.433013, 0.484123, 0, 0]),
    ([True, True, False, True], 1, [0.5, 0.577350, 0, 0]),
    ([False, True, False, True], 1, [0, 0.577350, 0, 0]),
  ],
)
def test_pooled_std_golden(valid, ddof, expected):
  """The fourth bin is empty."""
  valid = jnp.array(valid)
  rewards = jnp.where(valid[:, None], jnp.array(POOLED, jnp.float32), np.nan)
  bin_of = jnp.array([0, 1, 1, 2])
  options = {} if ddof == 1 else {"ddof": ddof}
  found = group.pooled_std(rewards, bin_of, valid, bins=4, **options)
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  ("answers", "options", "message"),
  [
    (1, {}, "group_normalised needs at least 2 answers per prompt, got 1"),
    (2, {"scale": "x"}, "'group', 'batch' or 'none', got 'x'"),
    (2, {"ddof": 2}, r"ddof must be 0 \(n\) or 1 .*, got 2"),
  ],
)
def test_mistakes_are_refused(answers, options, message):
  with pytest.raises(ValueError, match=message):
    group.group_normalised(jnp.ones((3, answers)), **options)
