"""Things of a scene: eight shapes, their boxes and masks."""

from collections.abc import Sequence
import dataclasses
import functools
import math

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw

from mmrl.worlds.palette import Box

SHAPES = (
  *("circle", "square", "triangle", "star"),
  *("cross", "ring", "heart", "arrow"),
)
DIRECTIONS = ("up", "right", "down", "left")
# Corners of shapes whose number nobody disputes.
CORNERS = {"triangle": 3, "square": 4}
# Pixels; the least is a visual token of published models.
SIZES = (28, 30, 34)
# Samples along each side of a pixel.
_FINE = 8
_HOLE = 0.27  # Where a ring begins to be open, as a share of its side.

Corner = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
  """One thing of a scene.

  Attributes:
    shape: one of `SHAPES`.
    colour: a name of `palette.COLOURS`.
    size: side of its box in pixels, even.
    place: x, y of its centre in pixels.
    direction: where an arrow points; "" for other shapes.
  """

  shape: str
  colour: str
  size: int
  place: tuple[int, int]
  direction: str = ""

  @property
  def box(self) -> Box:
    """The smallest box around it: x0, y0, x1, y1 in pixels, x1 excluded."""
    (x, y), half = self.place, self.size // 2
    return x - half, y - half, x + half, y + half


def plural(shape: str) -> str:
  """Returns the name of several of a shape."""
  return shape + ("es" if shape == "cross" else "s")


@functools.lru_cache(1024)
def alpha(shape: str, direction: str, size: int) -> UInt8[np.ndarray, "s s"]:
  """Draws a shape's opacity in its box, 0 to 255, anti-aliased.

  It touches every side of the box.

  Args:
    shape: one of `SHAPES`.
    direction: of an arrow; "" for others.
    size: side of the box in pixels.
  """
  side = size * _FINE
  canvas = Image.new("L", (side, side), 0)
  draw = ImageDraw.Draw(canvas)
  if shape in ("circle", "ring"):
    draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    if shape == "ring":
      hole = _HOLE * side
      draw.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)
  else:
    corners = _outline(shape, direction)
    draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in corners], 255)
  found = np.asarray(canvas.reduce(_FINE))
  found.setflags(write=False)
  return found


def _outline(shape: str, direction: str) -> Sequence[Corner]:
  """Returns the corners of a shape that fills the unit square."""
  corners: Sequence[Corner]
  if shape == "square":
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
  elif shape == "triangle":
    corners = [(0.5, 0), (1, 1), (0, 1)]
  elif shape == "cross":
    a, b = 0.34, 0.66
    corners = [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b)]
    corners += [(b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
  elif shape == "star":
    corners = [
      (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
      for i, r in enumerate([1, 0.42] * 5)
    ]
  elif shape == "heart":
    turns = [2 * math.pi * i / 80 for i in range(80)]
    corners = [(16 * math.sin(t) ** 3, -_heart(t)) for t in turns]
  else:
    corners = [(0.5, 0), (1, 0.5), (0.7, 0.5), (0.7, 1)]
    corners += [(0.3, 1), (0.3, 0.5), (0, 0.5)]
    for _ in range(DIRECTIONS.index(direction)):
      corners = [(1 - y, x) for x, y in corners]
  low_x, low_y = (min(c[i] for c in corners) for i in (0, 1))
  wide, high = (max(c[i] for c in corners) for i in (0, 1))
  wide, high = wide - low_x, high - low_y
  return [((x - low_x) / wide, (y - low_y) / high) for x, y in corners]


def _heart(turn: float) -> float:
  """Returns the height of the heart curve at an angle."""
  waves = (13, -5, -2, -1)
  return sum(w * math.cos((i + 1) * turn) for i, w in enumerate(waves))
