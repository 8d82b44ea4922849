"""Likelihood of given answers: supervised learning."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.losses import surrogates


def likelihood(
  logprobs: Float[Array, "P G R"], mask: Bool[Array, "P G R"]
) -> Float[Array, "P G R"]:
  """Computes the negative log-likelihood of each answer token, in nats.

  Reduced by `token_mean` it is the cross-entropy of supervised fine-tuning.

  Args:
    logprobs: of the current policy.
    mask: True on answer tokens.

  Returns:
    The unreduced loss, 0 on padding.
  """
  return -jnp.where(mask, surrogates.upcast(logprobs), 0.0)
