"""Tests of preferences over three samples, against numbers worked before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import picture_preference as losses
from mmrl.losses import preference, reduce

# Of each pair the log-probabilities of the samples ++, +-, -+.
POLICY = np.array([[-10.0, -12, -11], [-20, -18, -25], [-5, -5, -5]])
REFERENCE = np.array([[-11.0, -11, -11], [-20, -20, -20], [-5, -5, -5]])
REWARDS = jnp.array([[0.1, -0.1, 0], [0, 0.2, -0.5], [0, 0, 0]])
GRADIENT = [
  [-0.632835, 0.300610, 0.332225],
  [-0.646385, 0.431906, 0.214478],
  [-2 / 3, 1 / 3, 1 / 3],
]
CHOSEN = jnp.tile(jnp.array([[True, False]]), (6, 1))
TWIN = jnp.arange(6) % 2 == 1
MASK = jnp.ones((6, 2, 1), bool).at[1::2, 1].set(False)


def of_prompts(samples):
  """[pairs, 3] as two prompts each, whose missing answer holds anything."""
  right, language, vision = np.asarray(samples, np.float32).T
  other = np.full(right.shape, 7.0, np.float32)
  rows = np.stack([right, language, vision, other], axis=1)
  return jnp.asarray(rows.reshape(-1, 2, 1))


sample_rewards = jax.jit(losses.sample_rewards, static_argnames="beta")
joint_of = jax.jit(losses.joint)
joint_preference = jax.jit(losses.joint_preference, static_argnames="beta")
mixed_preference = jax.jit(
  losses.mixed_preference, static_argnames=("beta", "vision_weight")
)


def rewards_of(mask=MASK, twin=TWIN, chosen=CHOSEN, policy=POLICY):
  data = of_prompts(policy), of_prompts(REFERENCE), chosen, twin, mask
  return sample_rewards(*data, beta=0.1)


def joint(mask=MASK, policy=POLICY):
  data = of_prompts(policy), of_prompts(REFERENCE), CHOSEN, TWIN, mask
  return joint_preference(*data, beta=0.1)


def mixed(weight, mask=MASK):
  data = of_prompts(POLICY), of_prompts(REFERENCE), CHOSEN, TWIN, mask
  return mixed_preference(*data, beta=0.1, vision_weight=weight)


@jax.jit
def mean(found, mask=MASK):
  return reduce.total(found.values, reduce.prompt_mean(mask))


def test_rewards_golden():
  np.testing.assert_allclose(rewards_of(), REWARDS, atol=1e-6)


def test_the_chosen_answer_may_be_the_second():
  """Of the second pair, whose answers and mask change places."""
  swapped = of_prompts(POLICY).at[2:4].set(of_prompts(POLICY)[2:4, ::-1])
  reference = of_prompts(REFERENCE)
  reference = reference.at[2:4].set(reference[2:4, ::-1])
  mask = MASK.at[2:4].set(MASK[2:4, ::-1])
  chosen = CHOSEN.at[2:4].set(CHOSEN[2:4, ::-1])
  found = sample_rewards(swapped, reference, chosen, TWIN, mask, beta=0.1)
  np.testing.assert_allclose(found, REWARDS, atol=1e-6)


def test_joint_golden():
  found = joint_of(REWARDS)
  np.testing.assert_allclose(found, [1.001943, 1.039546, 1.098612], rtol=1e-6)
  large = joint_of(jnp.array([[2.0, -1, 1], [-3, 2, 2]]))
  np.testing.assert_allclose(large, [0.349012, 5.696510], rtol=2e-6)
  np.testing.assert_allclose(mean(joint()), 1.046701, rtol=1e-6)


def test_pairs_that_are_left_out_count_in_no_mean():
  """The second, whose masks are cleared; then all."""
  mask = MASK.at[2:4].set(False)
  np.testing.assert_allclose(mean(joint(mask), mask), 1.050278, rtol=1e-6)
  none = jnp.zeros_like(MASK)
  assert mean(joint(none), none) == 0


def test_gradient_is_the_softmax_less_the_right_sample():
  """By automatic and by finite differences, which float64 would sharpen."""

  found = jax.jit(jax.grad(lambda rewards: losses.joint(rewards).sum()))(
    REWARDS
  )
  np.testing.assert_allclose(found, GRADIENT, atol=1e-6)
  p = np.exp(REWARDS) / np.exp(REWARDS).sum(-1, keepdims=True)
  expected = p - np.array([1, 0, 0])
  np.testing.assert_allclose(found, expected, atol=1e-6)
  step = 1e-2
  for pair, sample in np.ndindex(3, 3):
    by = np.zeros((3, 3), np.float32)
    by[pair, sample] = step
    up, down = (
      np.asarray(joint_of(np.asarray(REWARDS) + x))[pair] for x in (by, -by)
    )
    # Rounding 1e-7 / step, curvature step^2.
    difference = (up - down) / (2 * step)
    assert difference == pytest.approx(expected[pair, sample], abs=5e-5)


def test_gradient_of_the_log_probabilities():
  """beta times that of the rewards, over three pairs; nothing elsewhere."""

  def loss(logprobs):
    data = logprobs, of_prompts(REFERENCE), CHOSEN, TWIN, MASK
    return mean(losses.joint_preference(*data, beta=0.1))

  found = jax.jit(jax.grad(loss))(of_prompts(POLICY)).reshape(3, 4)
  np.testing.assert_allclose(
    found[:, :3], 0.1 * np.array(GRADIENT) / 3, atol=1e-7
  )
  np.testing.assert_array_equal(found[:, 3], 0)


def test_without_a_vision_negative_it_is_dpo():
  """By hand for r = (1, -2, -inf); then value and gradient beside `dpo`."""
  rewards = jnp.array([[1.0, -2, -jnp.inf]])
  first = jax.jit(jax.value_and_grad(lambda r: losses.joint(r)[0]))
  value, slope = first(rewards)
  assert value == pytest.approx(0.048587, rel=1e-4)
  np.testing.assert_allclose(slope, [[-0.047426, 0.047426, 0]], atol=1e-6)
  mask = jnp.asarray(np.asarray(MASK) & (np.arange(6) % 2 == 0)[:, None, None])
  assert (np.asarray(rewards_of(mask))[:, 2] == -np.inf).all()
  own = slice(None, None, 2)
  reference = of_prompts(REFERENCE)

  def joint_(logprobs):
    data = logprobs, reference, CHOSEN, TWIN, mask
    return mean(losses.joint_preference(*data, beta=0.1), mask)

  def mixed_(logprobs):
    data = logprobs, reference, CHOSEN, TWIN, mask
    return mean(losses.mixed_preference(*data, beta=0.1), mask)

  def dpo(logprobs):
    data = logprobs[own], reference[own], CHOSEN[own], mask[own]
    return preference.dpo(*data).values.mean()

  expected = jax.jit(jax.value_and_grad(dpo))(of_prompts(POLICY))
  for function in (joint_, mixed_):
    value, slope = jax.jit(jax.value_and_grad(function))(of_prompts(POLICY))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(slope, expected[1], atol=1e-7)


def test_a_prompt_that_is_no_twin_is_no_vision_negative():
  assert (rewards_of(twin=jnp.zeros(6, bool))[:, 2] == -jnp.inf).all()


@pytest.mark.parametrize(
  "weight, expected", [(0.0, 0.696475), (0.5, 0.998412), (1.0, 1.300349)]
)
def test_mixed_golden(weight, expected):
  np.testing.assert_allclose(mean(mixed(weight)), expected, rtol=1e-6)


def test_numbers_to_log():
  """Of the first prompts; twins have none, nor has vision where it lacks."""
  mask = MASK.at[5].set(False)
  found = {name: x[::2] for name, x in joint(mask).numbers.items()}
  p = np.array(GRADIENT)
  expected = {
    "reward": [0.1, 0, 0],
    "reward_language": [-0.1, 0.2, 0],
    "reward_vision": [0, -0.5, np.nan],
    "probability": [1 + p[0, 0], 1 + p[1, 0], 0.5],
    "weight_language": [p[0, 1], p[1, 1], 0.5],
    "weight_vision": [p[0, 2], p[1, 2], np.nan],
    "log_weight_ratio": [np.log(1.105171), np.log(0.496585), np.nan],
    "margin_language": [0.2, -0.2, 0],
    "margin_vision": [0.1, 0.5, np.nan],
    "accuracy_language": [1, 0, 0],
    "accuracy_vision": [1, 1, np.nan],
    "pictured": [1, 1, 0],
  }
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)
  twins = [x[1::2] for name, x in joint().numbers.items() if name != "pictured"]
  assert np.isnan(twins).all()
  both = mixed(0.5, mask).numbers
  np.testing.assert_allclose(
    both["margin_vision"][::2], expected["margin_vision"], atol=1e-6
  )


def test_what_does_not_fit_is_refused():
  odd = [x[:5] for x in (of_prompts(POLICY), CHOSEN, TWIN, MASK)]
  logprobs, *rest = odd
  with pytest.raises(UserError, match="belong together in twos, got 5; make"):
    losses.joint_preference(logprobs, logprobs, *rest)
  data = of_prompts(POLICY), of_prompts(REFERENCE), CHOSEN, TWIN, MASK
  for function in (losses.joint_preference, losses.mixed_preference):
    with pytest.raises(UserError, match="beta must be above 0, got 0.0"):
      function(*data, beta=0.0)
  with pytest.raises(
    UserError, match="vision_weight must be at least 0, got -1.0"
  ):
    losses.mixed_preference(*data, vision_weight=-1.0)
