"""Tests of the term over sampled answers and experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.losses import experts, policy, reduce

# A sampled answer of three tokens and an expert of two; [P=1, G=2, R=3]. What
# isn't read is not a number: NaN in a product would reach the gradient.
NAN = np.nan
LOGPROBS = jnp.array([[[-0.5, -1.2, -0.3], [-2.3, -0.7, NAN]]], jnp.float32)
OLD = jnp.array([[[-0.6, -1, -0.3], [NAN, NAN, NAN]]], jnp.float32)
ADVANTAGES = jnp.array([[-0.5, 1.5]], jnp.float32)
WEIGHTS = jnp.array([[[1, 1, 1], [0.8, 1.2, NAN]]], jnp.float32)
MASK = jnp.array([[[True, True, True], [True, True, False]]])
EXPERT = jnp.array([[False, True]])
OPTIONS = ("shape", "clip_low", "clip_high", "dual_clip")

shaped = jax.jit(experts.expert_shaped, static_argnames=OPTIONS)
clipped = jax.jit(policy.clipped_ratio, static_argnames=OPTIONS[1:])


@functools.partial(jax.jit, static_argnames=OPTIONS)
@functools.partial(jax.value_and_grad, has_aux=True)
def mean_loss(
  logprobs, old=OLD, weights=WEIGHTS, mask=MASK, expert=EXPERT, **options
):
  terms = experts.expert_shaped(
    logprobs, old, ADVANTAGES, weights, mask, expert, **options
  )
  return reduce.total(terms, reduce.token_mean(mask)), terms


def test_golden():
  # ratio exp(0.1), exp(-0.2), 1; f = p / (p + 0.1) = 0.500646, 0.832379
  # terms 0.5 ratio; -0.8 f 1.5 and -1.2 f 1.5; their sum -0.637109, over 5
  (value, terms), gradient = mean_loss(LOGPROBS)
  expected = [[0.552585, 0.409365, 0.5], [-0.600776, -1.498283, 0]]
  found = jnp.where(MASK, terms, 0.0)
  np.testing.assert_allclose(found[0], expected, atol=1e-6)
  np.testing.assert_allclose(value, -0.127422, atol=1e-6)
  expected = [[0.110517, 0.081873, 0.1], [-0.06, -0.050229, 0]]
  np.testing.assert_allclose(gradient[0], expected, atol=1e-6)


def test_expert_left_out_golden():
  mask = MASK.at[0, 1].set(False)
  (value, terms), gradient = mean_loss(LOGPROBS, mask=mask)
  np.testing.assert_allclose(value, 0.487317, atol=1e-6)
  assert (gradient[0, 1] == 0).all()
  sampled = [x[:, :1] for x in (LOGPROBS, OLD, ADVANTAGES, WEIGHTS, MASK)]
  # Two programs: of one row and of two.
  np.testing.assert_allclose(terms[:, :1], clipped(*sampled), rtol=1e-6)


@pytest.mark.parametrize(
  ("probability", "value", "slope"),
  [
    # p / (p + 0.1) and 0.1 p / (p + 0.1)^2
    (0.01, 0.0909091, 0.082645),
    (0.1, 0.5, 0.25),
    (0.5, 0.8333333, 0.138889),
    (0.99, 0.9082569, 0.083326),
    (0.0, 0.0, 0.0),
  ],
)
def test_shaped_probability_golden(probability, value, slope):
  def minus_term(logprobs):
    one = jnp.ones((1, 1, 1))
    return -experts.expert_shaped(
      logprobs, -one, one[0], one, one > 0, one[0] > 0
    ).sum()

  with np.errstate(divide="ignore"):
    logprobs = jnp.full((1, 1, 1), np.log(probability), jnp.float32)
  found = jax.jit(jax.value_and_grad(minus_term))(logprobs)
  np.testing.assert_allclose(found[0], value, atol=1e-6)
  np.testing.assert_allclose(found[1], [[[slope]]], atol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 99.0])
def test_what_is_not_read_reaches_neither_value_nor_gradient(garbage):
  """Padding, and what the behaviour policy says of experts."""
  old = OLD.at[0, 1].set(garbage).at[0, 0, 2].set(garbage)
  mask = MASK.at[0, 0, 2].set(False)
  places = jnp.where(mask, 0.0, garbage)
  one = mean_loss(LOGPROBS.at[0, 0, 2].set(-9.0), mask=mask)
  two = mean_loss(
    jnp.where(mask, LOGPROBS, places),
    old,
    jnp.where(mask, WEIGHTS, places),
    mask,
  )
  assert one[0][0] == two[0][0]
  np.testing.assert_array_equal(one[1], two[1])
  assert (two[1][~mask] == 0).all()


@pytest.mark.parametrize("expert", [None, jnp.zeros((2, 3), bool)])
@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_without_experts_it_is_clipped_ratio(expert, dual_clip):
  """Bit for bit, in value and gradient."""
  rng = np.random.default_rng(0)
  old, logprobs, weights = -jnp.asarray(rng.exponential(size=(3, 2, 3, 4)))
  advantages = jnp.asarray(rng.normal(size=(2, 3)))
  mask = jnp.asarray(rng.uniform(size=(2, 3, 4)) < 0.8)
  options = {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": dual_clip}

  def values(function, *more):
    def loss(logprobs):
      terms = function(
        logprobs, old, advantages, -weights, mask, *more, **options
      )
      return reduce.total(terms, reduce.token_mean(mask)), terms

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(logprobs)

  one = values(policy.clipped_ratio)
  two = values(experts.expert_shaped, expert)
  jax.tree.map(np.testing.assert_array_equal, two, one)


def test_experts_are_not_clipped():
  """Wherever the policy has gone, an expert's token teaches."""
  logprobs = jnp.linspace(-6.0, -0.01, 3).reshape(1, 1, 3)
  logprobs = jnp.concatenate([logprobs, logprobs], axis=1)
  _, gradient = mean_loss(
    logprobs, weights=jnp.ones_like(WEIGHTS), clip_high=0.0
  )
  assert (gradient[0, 1, :2] < 0).all()


def test_only_the_current_policy_has_a_gradient():
  def loss(advantages, weights):
    return shaped(LOGPROBS, OLD, advantages, weights, MASK, EXPERT).sum()

  weights = jnp.where(MASK, WEIGHTS, 0.0)
  found = jax.grad(loss, argnums=(0, 1))(ADVANTAGES, weights)
  assert all((x == 0).all() for x in found)


def test_advantages_may_be_per_token():
  spread = jnp.broadcast_to(ADVANTAGES[..., None], MASK.shape)
  one = shaped(LOGPROBS, OLD, ADVANTAGES, WEIGHTS, MASK, EXPERT)
  two = shaped(LOGPROBS, OLD, spread, WEIGHTS, MASK, EXPERT)
  np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("expert", [None, EXPERT])
@pytest.mark.parametrize("shape", [0.0, -0.1])
def test_shape_outside_its_range_is_refused(shape, expert):
  with pytest.raises(ValueError, match=f"must be above 0, got {shape}"):
    experts.expert_shaped(
      LOGPROBS, OLD, ADVANTAGES, WEIGHTS, MASK, expert, shape=shape
    )
