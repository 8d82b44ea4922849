"""Sheets of examples, which a person looks at before training on them."""

from collections.abc import Sequence
import dataclasses
import textwrap

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmrl.worlds.palette import Box

_GAP, _LINE = 8, 15
_FRAME = (255, 0, 255)


@dataclasses.dataclass(frozen=True)
class Panel:
  """One example of a sheet.

  Attributes:
    pictures: side by side.
    boxes: of each picture, drawn as frames.
    text: question and answer; a line break ends a paragraph.
  """

  pictures: Sequence[UInt8[np.ndarray, "h w 3"]]
  boxes: Sequence[Sequence[Box]]
  text: str


def draw(
  panels: Sequence[Panel], *, columns: int, scale: int = 1
) -> Image.Image:
  """Draws panels in rows.

  Args:
    panels: the examples, at least one.
    columns: panels of a row.
    scale: pixels of the sheet for one of a picture.
  """
  font = ImageFont.load_default(12)
  wide = max(
    sum(picture.shape[1] * scale + _GAP for picture in panel.pictures)
    for panel in panels
  )
  letters = max(20, int(wide / 6.1))
  texts = [
    [
      line
      for part in panel.text.split("\n")
      for line in textwrap.wrap(part, letters) or [""]
    ]
    for panel in panels
  ]
  rows = [
    range(i, len(panels))[:columns] for i in range(0, len(panels), columns)
  ]
  heights = [
    max(panels[i].pictures[0].shape[0] * scale for i in row)
    + max(len(texts[i]) for i in row) * _LINE
    + 3 * _GAP
    for row in rows
  ]
  size = columns * (wide + _GAP) + _GAP, sum(heights) + _GAP
  page = Image.new("RGB", size, (255, 255, 255))
  pen = ImageDraw.Draw(page)
  top = _GAP
  for row, high in zip(rows, heights, strict=True):
    for column, i in enumerate(row):
      left = _GAP + column * (wide + _GAP)
      bottom = _pictures(page, pen, panels[i], (left, top), scale)
      for number, line in enumerate(texts[i]):
        pen.text((left, bottom + 4 + number * _LINE), line, (0, 0, 0), font)
    top += high
  return page


def _pictures(page, pen, panel: Panel, corner: tuple[int, int], scale) -> int:
  """Draws the pictures of a panel; returns where they end."""
  left, top = corner
  high = 0
  for picture, boxes in zip(panel.pictures, panel.boxes, strict=True):
    shown = Image.fromarray(picture)
    shown = shown.resize((shown.width * scale, shown.height * scale), 0)
    page.paste(shown, (left, top))
    for x0, y0, x1, y1 in boxes:
      frame = [left + scale * x0 - 1, top + scale * y0 - 1]
      frame += [left + scale * x1, top + scale * y1]
      pen.rectangle(frame, outline=_FRAME)
    left += shown.width + _GAP
    high = max(high, shown.height)
  return top + high
