"""Rewards of an answer's length."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.errors import UserError


def soft_overlong(
  length: Int[Array, "P G"], *, longest: int, buffer: int
) -> Float[Array, "P G"]:
  """Punishes answers that come near the longest length.

  0 up to the buffer before the longest length, then falling to -1:

      R = clip((longest - buffer - length) / buffer, -1, 0)

  Its weight in the config is the paper's factor, 1.

  Args:
    length: number of tokens of each answer.
    longest: from here on the reward is -1; DAPO has 20480 tokens.
    buffer: over how many tokens the reward falls, in [1, longest]; DAPO has
      4096.

  Returns:
    In [-1, 0].

  Raises:
    UserError: if the buffer is empty, or greater than the longest length.

  Reference: DAPO's soft overlong punishment, arXiv 2503.14476.
  """
  if not 0 < buffer <= longest:
    raise UserError(
      f"buffer must be in [1, longest], got buffer={buffer}, longest={longest}"
    )
  return jnp.clip((longest - buffer - length) / buffer, -1.0, 0.0)
