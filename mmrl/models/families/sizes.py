"""Sizes that pictures and frames are scaled to."""

import math
from typing import Protocol, runtime_checkable


def square(side: int, factor: int) -> tuple[int, int]:
  """Returns height and width of the square of whole cells nearest to a side.

  Args:
    side: pixels.
    factor: side of a visual token.
  """
  rounded = max(round(side / factor), 1) * factor
  return rounded, rounded


def fit(
  height: int,
  width: int,
  factor: int,
  min_pixels: int,
  max_pixels: int | float,
  *,
  frames: int = 1,
  rounded: int = 1,
) -> tuple[int, int]:
  """Chooses the size a picture is scaled to, as the Qwen-VL processors do.

  Both sides become multiples of `factor`, the pixels of all frames land in
  [min_pixels, max_pixels], and the aspect ratio is kept as well as that
  allows.

  Args:
    height, width: pixels.
    factor: side of a visual token.
    min_pixels, max_pixels: of all frames together.
    frames: number of frames that share the budget.
    rounded: `frames` as a multiple of the temporal patch size.

  Raises:
    ValueError: if one side is more than 200 times the other.
  """
  if max(height, width) > 200 * min(height, width):
    raise ValueError(
      f"expected sides within a ratio of 200, found {width} x {height} pixels"
    )
  rows = round(height / factor) * factor
  columns = round(width / factor) * factor
  if rounded * rows * columns > max_pixels:
    shrink = math.sqrt(frames * height * width / max_pixels)
    rows = max(factor, math.floor(height / shrink / factor) * factor)
    columns = max(factor, math.floor(width / shrink / factor) * factor)
  elif rounded * rows * columns < min_pixels:
    grow = math.sqrt(min_pixels / (frames * height * width))
    rows = math.ceil(height * grow / factor) * factor
    columns = math.ceil(width * grow / factor) * factor
  return rows, columns


@runtime_checkable
class Budget(Protocol):
  """The sizes of `mmrl.prompts.pictures.PictureConfig`."""

  @property
  def min_pixels(self) -> int:
    """The least area."""

  @property
  def max_pixels(self) -> int:
    """The largest area."""

  @property
  def side(self) -> int:
    """Side of the square that every picture becomes, pixels; 0 for none."""


def fitted(
  sides: tuple[int, int], budget: Budget, factor: int
) -> tuple[tuple[int, int], bool]:
  """Chooses the size that a picture is scaled to.

  Args:
    sides: height and width in pixels.
    budget: pixels, or the side of a square.
    factor: side of a visual token.

  Returns:
    (height and width, whether the budget of pixels made it smaller).

  Raises:
    ValueError: see `fit`.
  """
  if budget.side:
    return square(budget.side, factor), False
  low = budget.min_pixels
  size = fit(*sides, factor, low, budget.max_pixels)
  return size, size != fit(*sides, factor, low, math.inf)
