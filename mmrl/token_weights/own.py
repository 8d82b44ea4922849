"""Weights of what the policy wrote itself."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def own_tokens(
  environment: Bool[Array, "P G R"], mask: Bool[Array, "P G R"]
) -> Float[Array, "P G R"]:
  """Weighs the policy's tokens 1, and those of replies to it 0.

  `clipped_ratio` multiplies its terms by them; a likelihood with the reduction
  `weighted_token_mean` is divided by the number of the policy's own tokens.

  Args:
    environment: True on tokens of replies; see `rollouts.turns.conversed`.
    mask: True on answer tokens.
  """
  return jnp.where(mask & ~environment, 1.0, 0.0)
