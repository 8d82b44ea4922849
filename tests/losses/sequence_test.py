"""Tests of the term whose ratio is that of a whole answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import compiled

from losses.surrogates_test import ADVANTAGES, LOGPROBS, MASK, OLD, ONES
from mmrl.errors import UserError
from mmrl.losses import reduce, sequence

WIDTHS = (("clip_low", 0.2), ("clip_high", 0.2))
sequence_ratio = compiled(sequence.clipped_sequence_ratio)


@functools.partial(jax.jit, static_argnames=("level", "options"))
def gradient_of(
  logprobs, level, advantages=ADVANTAGES, weights=ONES, options=()
):
  """((reduced value, unreduced values), gradient)."""

  def loss(logprobs):
    values = sequence.clipped_sequence_ratio(
      logprobs, OLD, advantages, weights, MASK, level=level, **dict(options)
    )
    return reduce.total(values, reduce.sequence_mean(MASK)), values

  return jax.value_and_grad(loss, has_aux=True)(logprobs)


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize(
  ("options", "good", "gradient"),
  [
    # s = exp(0.2 / 3), exp(0.4 / 2); (-1.0004 + 1.221403) / 2
    ((), -1.0004, [[0, 0, 0], [0.305351, 0.305351, 0]]),
    # (-1.068939 + 1.221403) / 2
    (
      WIDTHS,
      -1.068939,
      [[-0.178157, -0.178157, -0.178157], [0.305351, 0.305351, 0]],
    ),
  ],
)
def test_golden(level, options, good, gradient, weight):
  """Every token carries the loss of its answer."""
  weights = jnp.where(MASK, weight, jnp.nan)
  (value, values), found = gradient_of(
    LOGPROBS, level, weights=weights, options=options
  )
  bad = 1.221403
  np.testing.assert_allclose(value, weight * (good + bad) / 2, atol=1e-6)
  expected = weight * np.array([3 * [good], [bad, bad, 0]])
  np.testing.assert_allclose(values[:, 0], expected, atol=1e-6)
  np.testing.assert_allclose(
    found[:, 0], weight * np.array(gradient), atol=1e-6
  )


def test_ratio_golden():
  # d = 0.02, -0.01, 0.03: exp(0.04 / 3), or exp(0.04) of the sum
  logprobs = np.array([[[0.02, -0.01, 0.03]]], np.float32)
  for normalize, expected in ((True, 1.0134226), (False, 1.0408108)):
    values = sequence_ratio(
      logprobs,
      np.zeros_like(logprobs),
      -np.ones((1, 1), np.float32),
      np.ones_like(logprobs),
      np.ones(logprobs.shape, bool),
      length_normalize=normalize,
    )
    np.testing.assert_allclose(values, expected * ONES[:1], rtol=1e-6)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_answer_without_tokens_has_no_loss(level):
  values = sequence_ratio(
    LOGPROBS, OLD, ADVANTAGES, ONES, MASK.at[0].set(False), level=level
  )
  assert (values[0] == 0).all()


def test_ratio_is_clipped_from_below():
  """The means of d are -0.067 and -0.2: e^-0.067, and 1 - 3e-4."""
  values = sequence_ratio(2 * OLD - LOGPROBS, OLD, ADVANTAGES, ONES, MASK)
  expected = [[-0.935507, -0.935507, -0.935507], [0.9997, 0.9997, 0]]
  np.testing.assert_allclose(values[:, 0], expected, atol=1e-6)


def test_levels_differ_in_whom_the_advantage_of_a_token_reaches():
  advantages = jnp.where(MASK, 0, jnp.nan).at[0, 0, 1].set(1.0)
  _, whole = gradient_of(LOGPROBS, "sequence", advantages, options=WIDTHS)
  _, token = gradient_of(LOGPROBS, "token", advantages, options=WIDTHS)
  # s = 1.068939, 1/3 of the answer's mean, 1/2 of the answers'
  third = -1.068939 / 6
  np.testing.assert_allclose(token[0, 0], [0, third, 0], atol=1e-6)
  np.testing.assert_allclose(whole[0, 0], [third / 3] * 3, atol=1e-6)
  assert (whole[1] == 0).all() and (token[1] == 0).all()


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_only_the_current_policy_has_a_gradient(level):
  def total(old, advantages, weights):
    return sequence.clipped_sequence_ratio(
      LOGPROBS, old, advantages, weights, MASK, level=level
    ).sum()

  found = jax.jit(jax.grad(total, (1, 2)))(OLD, ADVANTAGES, ONES)
  assert all((x == 0).all() for x in found)


@pytest.mark.parametrize("normalize", [True, False])
def test_log_ratio_is_clamped(normalize):
  """Its exponential would overflow; the gradient is then 0, not NaN."""

  def loss(logprobs):
    values = sequence.clipped_sequence_ratio(
      logprobs, OLD, ADVANTAGES, ONES, MASK, length_normalize=normalize
    )
    return reduce.total(values, reduce.sequence_mean(MASK))

  value, slope = jax.jit(jax.value_and_grad(loss))(OLD + 200.0)
  np.testing.assert_allclose(value, (-1.0004 + np.exp(10)) / 2, rtol=1e-6)
  assert (slope == 0).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"level": "turn"}, "'sequence' or 'token', got 'turn'"),
    ({"level": "token", "length_normalize": False}, "must have length_norm"),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    sequence.clipped_sequence_ratio(
      LOGPROBS, OLD, ADVANTAGES, ONES, MASK, **options
    )
