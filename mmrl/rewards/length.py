"""Rewards that depend on an answer's length."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked


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


def _check_window(
  *, low: int = 60, high: int = 100, outside: float = 0.6
) -> None:
  if not 0 < low <= high or not 0 <= outside <= 1:
    raise UserError(
      "expected 0 < low <= high and outside in [0, 1], found"
      f" {low}, {high} and {outside}"
    )


@marked(
  check=_check_window,
  hint=(
    "it wants <answer>...</answer> at the end: let the prompt ask for these"
    " tags"
  ),
)
def length_window(
  text: Sequence[Sequence[str]],
  length: Int[np.ndarray, "P G"] | Int[Array, "P G"],
  *,
  low: int = 60,
  high: int = 100,
  outside: float = 0.6,
) -> Float[np.ndarray, "P G"]:
  """Rewards answers with a closed answer block and `low` to `high` tokens.

      R = closed * c(length)
      c = 1 within,  outside length / low below,  outside high / length above

  The jump at either end is meant: an answer must reason a little, and stop.
  A block is closed if the last `<answer>` has a `</answer>` behind it; it may
  be empty.

  Args:
    text: P lists of G answers.
    length: number of tokens of each, the end of sequence included.
    low, high: of the window.
    outside: factor beyond its ends, in [0, 1].

  Returns:
    In [0, 1].

  Raises:
    UserError: if an option is outside its range.

  Reference: SAYO's format reward, arXiv 2602.08241, as in its published code.
  """
  closed = np.array([[_is_closed(one) for one in group] for group in text])
  count = np.maximum(np.asarray(length, np.float32), 0)
  below = np.where(count < low, outside * count / low, 1)
  above = np.where(count > high, outside * high / np.maximum(count, 1), 1)
  return (closed * below * above).astype(np.float32)


def _is_closed(text: str) -> bool:
  """Tells whether the last answer block of a text is closed."""
  _, opened, block = text.rpartition("<answer>")
  return bool(opened) and "</answer>" in block
