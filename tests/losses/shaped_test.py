"""Tests of the term over sampled answers and experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.losses import reduce, shaped, surrogates

# A sampled answer of three tokens and an expert of two; [P=1, G=2, R=3]. What
# isn't read is not a number: NaN in a product would reach the gradient.
NAN = np.nan
LOGPROBS = jnp.array([[[-0.5, -1.2, -0.3], [-2.3, -0.7, NAN]]], jnp.float32)
OLD = jnp.array([[[-0.6, -1, -0.3], [NAN, NAN, NAN]]], jnp.float32)
ADVANTAGES = jnp.array([[-0.5, 1.5]], jnp.float32)
WEIGHTS = jnp.array([[[1, 1, 1], [0.8, 1.2, NAN]]], jnp.float32)
MASK = jnp.array([[[True, True, True], [True, True, False]]])
SAMPLED = jnp.array([[True, False]])
SPREAD = jnp.where(MASK, ADVANTAGES[..., None], NAN)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def mean_loss(logprobs, advantages, weights, mask=MASK):
  terms = shaped.expert_shaped(
    logprobs, OLD, advantages, weights, mask, SAMPLED
  )
  return reduce.total(terms, reduce.token_mean(mask)), terms


@pytest.mark.parametrize("advantages", [ADVANTAGES, SPREAD])
def test_golden(advantages):
  # ratio exp(0.1), exp(-0.2), 1; f = p / (p + 0.1) = 0.500646, 0.832379
  # terms 0.5 ratio; -0.8 f 1.5 and -1.2 f 1.5; their sum -0.637109, over 5
  (value, terms), (gradient, *others) = mean_loss(LOGPROBS, advantages, WEIGHTS)
  expected = [[0.552585, 0.409365, 0.5], [-0.600776, -1.498283, 0]]
  found = jnp.where(MASK, terms, 0.0)
  np.testing.assert_allclose(found[0], expected, atol=1e-6)
  np.testing.assert_allclose(value, -0.127422, atol=1e-6)
  expected = [[0.110517, 0.081873, 0.1], [-0.06, -0.050229, 0]]
  np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
  assert all((x == 0).all() for x in others)


def test_expert_left_out_golden():
  """And a sampled answer of two tokens: (0.552585 + 0.409365) / 2."""
  mask = MASK.at[0, 1].set(False).at[0, 0, 2].set(False)
  logprobs = jnp.where(mask, LOGPROBS, NAN)
  (value, _), (gradient, *_) = mean_loss(logprobs, ADVANTAGES, WEIGHTS, mask)
  np.testing.assert_allclose(value, 0.480975, atol=1e-6)
  expected = [[0.276293, 0.204683, 0], [0, 0, 0]]
  np.testing.assert_allclose(gradient[0], expected, atol=1e-6)


@jax.jit
@jax.value_and_grad
def minus_term(logprobs):
  """Of an expert's one token."""
  one = jnp.ones((1, 1, 1))
  return -shaped.expert_shaped(
    logprobs, -one, one[0], one, one > 0, one[0] < 0
  ).sum()


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
  with np.errstate(divide="ignore"):
    logprobs = np.full((1, 1, 1), np.log(probability), np.float32)
  found = minus_term(logprobs)
  np.testing.assert_allclose(found[0], value, atol=1e-6)
  np.testing.assert_allclose(found[1], [[[slope]]], atol=1e-6)


@pytest.mark.parametrize(
  "options", [{}, {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 3.0}]
)
def test_without_experts_it_is_the_program_of_clipped_ratio(options):
  data = LOGPROBS, OLD, ADVANTAGES, WEIGHTS, MASK
  one, two = (
    str(jax.make_jaxpr(functools.partial(function, **options))(*data))
    for function in (surrogates.clipped_ratio, shaped.expert_shaped)
  )
  assert one == two


@pytest.mark.parametrize("sampled", [None, SAMPLED])
@pytest.mark.parametrize("shape", [0.0, -0.1])
def test_shape_outside_its_range_is_refused(shape, sampled):
  with pytest.raises(ValueError, match=f"must be above 0, got {shape}"):
    shaped.expert_shaped(
      LOGPROBS, OLD, ADVANTAGES, WEIGHTS, MASK, sampled, shape=shape
    )
