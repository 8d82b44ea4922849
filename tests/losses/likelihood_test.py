"""Tests of the likelihood of given answers."""

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.losses import likelihood, reduce

LOGPROBS = jnp.log(jnp.array([[[0.5, 0.25, 0.9]], [[0.1, 0.3, 0.7]]]))
MASK = jnp.array([[[True, True, False]], [[True, False, False]]])


def test_cross_entropy_by_hand():
  """Of three tokens; its gradient pulls each of them up alike."""

  def loss(logprobs):
    return reduce.total(likelihood(logprobs, MASK), reduce.token_mean(MASK))

  value, slope = jax.value_and_grad(loss)(LOGPROBS)
  np.testing.assert_allclose(value, -np.log(0.5 * 0.25 * 0.1) / 3, rtol=1e-6)
  np.testing.assert_allclose(slope, -np.float32(MASK) / 3, rtol=1e-6)


def test_padding_is_zero_whatever_it_holds():
  spoiled = jnp.where(MASK, LOGPROBS, -jnp.inf)
  found = likelihood(spoiled, MASK)
  assert not found[~MASK].any()
  np.testing.assert_array_equal(found, likelihood(LOGPROBS, MASK))


def test_bfloat16_is_computed_in_float32():
  found = likelihood(LOGPROBS.astype(jnp.bfloat16), MASK)
  assert found.dtype == jnp.float32
