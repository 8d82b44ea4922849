"""Regions of a picture: boxes or visual tokens, and the cells that they cover.

A region is a box x0, y0, x1, y1 in pixels, a list of them, or an object that
says more:

  {"boxes": [[0.1, 0.2, 0.5, 0.6]], "unit": "share"}
  {"tokens": [[39, 47], [55, 63]]}

Units are "pixels" of the picture's file, a "share" of its sides, or
"thousandths" of them; they are never guessed. `tokens` are ranges of visual
tokens, the last one included, counted row by row from the picture's first.
Several boxes are one region, their union.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.types import Box, Prompt

Unit = Literal["pixels", "share", "thousandths"]
# Units along a side of the picture; of pixels there are as many as it has.
_SIDES = {"share": 1.0, "thousandths": 1000.0}
# How far beyond the picture a box may reach, as boxes of published data do.
_BEYOND = 0.05
# Width of EASE's Gaussians, of a box's side.
_SIGMA = 0.25
# What a cell counts that a box touches without covering a part of it.
_TOUCHED = 1e-6


class OutsideError(ValueError):
  """A region lies outside of its picture: not the picture is wrong."""


@dataclasses.dataclass(frozen=True)
class Region:
  """A region as the data give it.

  Attributes:
    boxes: in `unit`.
    unit: of the boxes.
    tokens: first and last of each range of visual tokens; instead of boxes.
  """

  boxes: tuple[Box, ...] = ()
  unit: Unit = "pixels"
  tokens: tuple[tuple[int, int], ...] = ()

  def in_pixels(
    self, size: tuple[int, int], grid: tuple[int, int]
  ) -> list[Box]:
    """Returns its boxes in pixels of the picture.

    Args:
      size: width and height of the picture.
      grid: rows and columns of its visual tokens.
    """
    if self.tokens:
      across, down = size[0] / grid[1], size[1] / grid[0]
      return [
        (across * x0, down * y0, across * x1, down * y1)
        for x0, y0, x1, y1 in _of_ranges(self.tokens, grid)
      ]
    if self.unit == "pixels":
      return list(self.boxes)
    across, down = (side / _SIDES[self.unit] for side in size)
    return [
      (across * x0, down * y0, across * x1, down * y1)
      for x0, y0, x1, y1 in self.boxes
    ]


def read(value: Any) -> Region:
  """Reads and checks a region of the data; see the module.

  Raises:
    UserError: if it is none, or its unit can't be the one that is stated.
  """
  if isinstance(value, Region):
    return value
  if not isinstance(value, Mapping):
    return _of_boxes(value, "pixels")
  if {*value} == {"tokens"}:
    return Region(tokens=_ranges(value["tokens"]))
  unit: Any = value.get("unit")
  if {*value} != {"boxes", "unit"} or unit not in get_args(Unit):
    raise UserError(
      "expected a region as 'boxes' and their 'unit', one of"
      f" {', '.join(get_args(Unit))}, or as 'tokens', found {value!r:.80}"
    )
  return _of_boxes(value["boxes"], unit)


def _of_boxes(value: Any, unit: Unit) -> Region:
  listed = isinstance(value, Sequence) and not isinstance(value, str)
  several = listed and value and isinstance(value[0], Sequence)
  boxes = tuple(_box(one, unit) for one in (value if several else [value]))
  return Region(boxes, unit)


def _box(values: Any, unit: Unit) -> Box:
  """Checks one box."""
  if (
    not isinstance(values, Sequence)
    or len(values) != 4
    or not all(map(_is_number, values))
  ):
    raise UserError(
      "expected 'region' as four numbers x0, y0, x1, y1, or a list of such"
      f" boxes, found {values!r:.80}"
    )
  x0, y0, x1, y1 = map(float, values)
  if x0 >= x1 or y0 >= y1:
    raise UserError(
      "expected 'region' as x0, y0, x1, y1 with x0 < x1 and y0 < y1, found"
      f" {values!r:.80}; a region has no width and height of its own"
    )
  if unit == "pixels":
    if min(x1 - x0, y1 - y0) < 1:
      raise UserError(
        "expected 'region' in pixels, found a box narrower than one,"
        f' {values!r:.80}; of shares write {{"boxes": [..], "unit": "share"}}'
      )
  else:
    side = _SIDES[unit]
    if min(x0, y0) < -_BEYOND * side or max(x1, y1) > (1 + _BEYOND) * side:
      raise UserError(
        f"expected 'region' in {unit}, 0 to {side:g} of the picture, found"
        f" {values!r:.80}; correct its unit"
      )
  return x0, y0, x1, y1


def _ranges(values: Any) -> tuple[tuple[int, int], ...]:
  """Checks ranges of visual tokens."""
  good = isinstance(values, Sequence) and len(values) > 0
  for one in values if good else ():
    good = (
      isinstance(one, Sequence)
      and len(one) == 2
      and all(type(x) is int for x in one)
      and 0 <= one[0] <= one[1]
    ) and good
  if not good:
    raise UserError(
      "expected ranges of visual tokens as a list of [first, last], at least"
      f" one, found {values!r:.80}"
    )
  return tuple((first, last) for first, last in values)


def _is_number(value: Any) -> bool:
  """Tells whether a value is a number, neither infinite nor a boolean."""
  return type(value) in (int, float) and abs(value) < 1e9


def _of_ranges(
  ranges: Sequence[tuple[int, int]], grid: tuple[int, int]
) -> list[Box]:
  """Returns ranges of tokens as boxes in cells, one for each row of each."""
  columns = grid[1]
  return [
    (
      max(first - row * columns, 0),
      row,
      min(last - row * columns, columns - 1) + 1,
      row + 1,
    )
    for first, last in ranges
    for row in range(first // columns, last // columns + 1)
  ]


def cells(
  value: Any, size: tuple[int, int], grid: tuple[int, int], cell: int
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
  """Computes what a region covers of each visual token, and EASE's target.

  Args:
    value: the region, see the module.
    size: width and height of the picture, in pixels.
    grid: rows and columns of its visual tokens.
    cell: side of a visual token, in pixels of the picture as it is shown.

  Returns:
    (share, evidence). The share of each cell that one of the boxes covers, the
    largest of them; `1e-6` where a box only touches it, so that those above 0
    are SAYO's tokens: `touched`. The evidence sums to 1: see `_gaussian`.

  Raises:
    OutsideError: if a box or a range lies outside of the picture.
  """
  region, (rows, columns) = read(value), grid
  last = max((last for _, last in region.tokens), default=0)
  if last >= rows * columns:
    raise OutsideError(
      f"expected a region among the picture's {rows} x {columns} visual tokens,"
      f" found token {last}"
    )
  boxes = region.in_pixels(size, grid)
  shown = (columns * cell, rows * cell)
  share, evidence = np.zeros(rows * columns), np.zeros(rows * columns)
  for first, last in region.tokens:
    share[first : last + 1] = 1
  for box in boxes:
    if min(box[2:]) <= 0 or box[0] >= size[0] or box[1] >= size[1]:
      raise OutsideError(
        f"expected a region inside of the picture, {size[0]} x {size[1]}"
        f" pixels, found a box at {', '.join(f'{x:g}' for x in box)}"
      )
    factor = np.array([shown[0] / size[0], shown[1] / size[1]] * 2)
    scaled = np.array(box) * factor
    if not region.tokens:
      covered = coverage(scaled, cell, shown[::-1])
      covered = np.maximum(covered, _TOUCHED * touched(scaled, grid, cell))
      share = np.maximum(share, covered)
    evidence += _gaussian(scaled / cell, grid) / len(boxes)
  return share, evidence


def coverage(
  box: Float[np.ndarray, "4"], cell: int, size: tuple[int, int]
) -> Float[np.ndarray, "N"]:
  """Computes the share of each square cell that a box covers, row by row."""

  def overlap(low, high, length):
    start = np.arange(0, length, cell)
    inside = np.minimum(high, start + cell) - np.maximum(low, start)
    return np.clip(inside, 0, None) / cell

  x0, y0, x1, y1 = box
  return np.outer(overlap(y0, y1, size[0]), overlap(x0, x1, size[1])).ravel()


def touched(
  box: Float[np.ndarray, "4"], grid: tuple[int, int], cell: int
) -> Float[np.ndarray, "N"]:
  """Marks the cells that a box touches with 1, as SAYO chooses them.

  Args:
    box: in pixels of the picture as it is shown; scaled, it is clamped to
      [0, side - 1] and then divided, rounding down.
    grid: rows and columns.
    cell: side of a cell, in pixels.

  Reference: the data script of SAYO, arXiv 2602.08241.
  Differs from it: it clamps before it scales, which is wrong where a picture
  is made smaller.
  """
  marks = []
  for low, high, count in (
    (box[1], box[3], grid[0]),
    (box[0], box[2], grid[1]),
  ):
    first, last = np.clip((low, high), 0, count * cell - 1) // cell
    index = np.arange(count)
    marks.append((index >= first) & (index <= last))
  return np.outer(*marks).astype(float).ravel()


def _gaussian(
  box: Float[np.ndarray, "4"], grid: tuple[int, int]
) -> Float[np.ndarray, "N"]:
  """Computes the mass of a Gaussian on the box's centre in each cell.

  Its deviations are a quarter of the box's sides, and its mass is that inside
  of the picture, 1.

  Args:
    box: in cells.
    grid: rows and columns.

  Reference: EASE, arXiv 2605.30912.
  Reconstructed: only another's account could be read. The quarter is of the
  box's side, boxes count alike, and a cell has the mass inside of it, so that
  a box smaller than a cell has one, too.
  """
  sides = []
  for low, high, count in (
    (box[1], box[3], grid[0]),
    (box[0], box[2], grid[1]),
  ):
    # A box that reaches beyond the picture ends with it.
    low, high = max(low, 0.0), min(high, float(count))
    middle, sigma = (low + high) / 2, max(_SIGMA * (high - low), 1e-6)
    edges = (np.arange(count + 1) - middle) / (sigma * math.sqrt(2))
    mass = np.diff([math.erf(edge) for edge in edges])
    sides.append(mass / mass.sum())
  return np.outer(*sides).ravel()


def rolled(prompt: Prompt) -> Prompt:
  """Moves the region and the evidence to a wrong place, as a placebo.

  It is half of the prompt's visual tokens further on: about half a picture's
  height. What is no larger than half a picture has nothing in common with it.
  """
  visual = prompt.visual_index >= 0
  order = jnp.argsort(~visual, axis=-1, stable=True)
  count = jnp.maximum(visual.sum(-1, keepdims=True), 1)
  rank = jnp.cumsum(visual, axis=-1) - 1
  source = jnp.take_along_axis(order, (rank - count // 2) % count, axis=-1)

  def move(values):
    moved = jnp.take_along_axis(values, source, axis=-1)
    return jnp.where(visual, moved, values)

  assert prompt.evidence is not None
  return dataclasses.replace(
    prompt, region=move(prompt.region), evidence=move(prompt.evidence)
  )
