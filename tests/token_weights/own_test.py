"""Tokens of replies to a policy don't count as its own."""

import jax.numpy as jnp
import numpy as np

from mmrl import token_weights


def test_replies_and_padding_weigh_nothing():
  mask = jnp.array([[[True, True, True, False]]])
  reply = jnp.array([[[False, True, False, False]]])
  np.testing.assert_array_equal(
    token_weights.own_tokens(reply, mask), [[[1.0, 0.0, 1.0, 0.0]]]
  )
