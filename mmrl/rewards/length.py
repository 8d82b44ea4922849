"""Rewards that depend on an answer's length."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.errors import UserError


def soft_overlong(
  length: Int[Array, "P G"], *, longest: int, buffer: int
) -> Float[Array, "P G"]:
  """Penalises answers whose length is near the longest allowed.

  The reward is 0 up to `longest - buffer` tokens, then falls linearly to -1:

      R = clip((longest - buffer - length) / buffer, -1, 0)

  Its weight in the config is the paper's factor, 1.

  Args:
    length: number of tokens of each answer.
    longest: length from which on the reward is -1; 20480 tokens in DAPO.
    buffer: number of tokens over which the reward falls, in [1, longest];
      4096 in DAPO.

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
