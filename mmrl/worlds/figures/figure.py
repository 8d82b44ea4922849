"""Figures: a person of strokes in motion, and a thing beside.

Lengths are shares of the picture's side, x to the right and y downwards;
angles are radians from straight down, positive to the right.
"""

from collections.abc import Sequence
import dataclasses
import math

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw

from mmrl.worlds.palette import GROUNDS, Box, Colour, check_size

ACTIONS = ("walk", "wave", "stretch", "dance")
OTHER_ACTIONS = ("kick", "bow")
BESIDE = ("table", "chair", "crate")
SHIRTS: tuple[Colour, ...] = (
  *((176, 40, 46), (32, 92, 176), (26, 122, 84)),
  *((206, 130, 20), (112, 60, 150)),
)
TROUSERS: tuple[Colour, ...] = ((52, 56, 72), (92, 70, 54), (70, 84, 110))
SKINS: tuple[Colour, ...] = ((236, 190, 158), (198, 144, 108), (132, 88, 62))
SIDES = ("left", "right")
LIMBS = tuple(f"{side} {limb}" for limb in ("arm", "leg") for side in SIDES)
INK: Colour = (34, 32, 38)
_WOOD: Colour = (150, 104, 62)
# Samples along each side of a pixel, and steps of a smear.
_FINE, _STEPS = 4, 9
PHASES = 300  # Of a motion; a split has a third of them.
# Shares of the side: parts of the body.
HEAD, TORSO, UPPER, FORE, THIGH, SHIN = 0.085, 0.25, 0.15, 0.14, 0.175, 0.17

Point = tuple[float | int, float | int]


@dataclasses.dataclass(frozen=True, slots=True)
class Stroke:
  """One stroke.

  Attributes:
    name: such as "left arm 1".
    points: of a line; corners of an area; middle and radius of a disc.
    width: of a line.
    colour: of it.
    form: "line", "area" or "disc".
    smear: how far it is smeared to either side.
  """

  name: str
  points: tuple[Point, ...]
  width: float
  colour: Colour
  form: str = "line"
  smear: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
  """A fault of a drawn person or thing.

  Attributes:
    label: a key of `faults.FAULTS`.
    limb: of `LIMBS`, for faults of limbs; else "".
    amount: how strong it is, 0 to 1; the least is visible at 112 pixels.
  """

  label: str
  limb: str = ""
  amount: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
  """One frame, as data.

  Attributes:
    action: what the person does.
    phase: of 300, where in the motion the time 0 is.
    time: seconds.
    shirt, trousers, skin, ground: indices of colours.
    beside: the thing beside: "table", "chair" or "crate".
    faults: what is wrong.
  """

  action: str
  phase: int
  time: float
  shirt: int
  trousers: int
  skin: int
  ground: int
  beside: str
  faults: tuple[Fault, ...] = ()


def angles(action: str, phase: int, time: float) -> dict[str, float]:
  """Returns the angles of all joints at a time; a motion takes two seconds."""
  turn = 2 * math.pi * (time / 2 + phase / PHASES)
  swing, half = math.sin(turn), math.sin(turn / 2)
  found = {
    **{"torso": 0.0, "head": 0.0},
    **{"left arm": -0.45, "right arm": 0.45, "left fore": -0.2},
    **{"right fore": 0.2, "left leg": -0.16, "right leg": 0.16},
    **{"left shin": 0.0, "right shin": 0.0},
  }
  changes: dict[str, dict[str, float]] = {
    "walk": {
      **{"left arm": -0.3 + 0.5 * swing, "right arm": 0.3 + 0.5 * swing},
      **{"left leg": -0.15 - 0.3 * swing, "right leg": 0.15 - 0.3 * swing},
      **{"left shin": 0.25 * max(swing, 0), "torso": 0.05 * swing},
    },
    "wave": {
      **{"right arm": 2.2 + 0.2 * half, "right fore": 0.6 + 0.5 * swing},
      "head": 0.15 * half,
    },
    "stretch": {
      **{"left arm": -1.9 + 0.6 * swing, "right arm": 1.9 - 0.6 * swing},
      **{"left fore": -0.4, "right fore": 0.4},
    },
    "dance": {
      **{"left arm": -1.4 + 0.6 * swing, "left fore": -0.9},
      **{"right arm": 1.4 + 0.6 * swing, "right fore": 0.9},
      **{"torso": 0.16 * swing, "left leg": -0.3, "right leg": 0.3},
      **{"left shin": 0.25 * swing, "right shin": 0.25 * swing},
    },
    "kick": {
      **{"right leg": 0.6 + 0.5 * swing, "torso": -0.15},
      **{"right shin": 0.2 * half, "left arm": -1.0, "right arm": 0.9},
    },
    "bow": {
      **{"torso": 0.55 + 0.3 * swing, "head": 0.2, "left arm": -0.2},
      **{"right arm": 1.2, "left fore": 0.3},
    },
  }
  return found | changes[action]


def strokes(figure: Figure) -> tuple[Stroke, ...]:
  """Returns the strokes of a figure without faults, first drawn first."""
  turned = angles(figure.action, figure.phase, figure.time)
  shirt, skin = SHIRTS[figure.shirt], SKINS[figure.skin]
  trousers = TROUSERS[figure.trousers]
  hip = (0.42, 0.57)
  lean = turned["torso"]
  neck = _along(hip, math.pi - lean, TORSO)
  found = [*_thing(figure.beside)]
  for side, way in zip(SIDES, (-1, 1), strict=True):
    start = hip[0] + way * 0.045, hip[1]
    found += _limb(
      f"{side} leg",
      start,
      (turned[f"{side} leg"], turned[f"{side} leg"] + turned[f"{side} shin"]),
      (THIGH, SHIN),
      (0.062, 0.05),
      trousers,
    )
    foot = found[-1].points[-1]
    toes = foot[0] + way * 0.05, foot[1] + 0.008
    found.append(Stroke(f"{side} leg foot", (foot, toes), 0.042, INK))
  found.append(_torso(hip, neck, shirt))
  head = _along(neck, math.pi - lean - turned["head"], HEAD + 0.03)
  found += _head(head, skin)
  for side, way in zip(SIDES, (-1, 1), strict=True):
    across = math.cos(lean) * way * 0.075, math.sin(lean) * way * 0.075
    start = neck[0] + across[0], neck[1] + across[1] + 0.02
    first = turned[f"{side} arm"]
    found += _limb(
      f"{side} arm",
      start,
      (first, first + turned[f"{side} fore"]),
      (UPPER, FORE),
      (0.05, 0.042),
      shirt,
    )
    hand = found[-1].points[-1]
    found.append(
      Stroke(f"{side} arm hand", (hand, (0.034, 0)), 0.0, skin, "disc")
    )
  return tuple(found)


def _along(start: Point, angle: float, length: float) -> Point:
  return (
    start[0] + length * math.sin(angle),
    start[1] + length * math.cos(angle),
  )


def _limb(name, start, turns, lengths, widths, colour) -> list[Stroke]:
  """Returns the two strokes of a limb."""
  found = []
  for i, (turn, length, width) in enumerate(
    zip(turns, lengths, widths, strict=True)
  ):
    end = _along(start, turn, length)
    found.append(Stroke(f"{name} {i + 1}", (start, end), width, colour))
    start = end
  return found


def _torso(hip: Point, neck: Point, colour: Colour) -> Stroke:
  """Returns the torso: an area, wider at the shoulders."""
  across = neck[1] - hip[1], hip[0] - neck[0]
  length = math.hypot(*across)
  u = across[0] / length, across[1] / length
  corners = [
    (p[0] + w * u[0], p[1] + w * u[1])
    for p, w in ((hip, -0.07), (neck, -0.095), (neck, 0.095), (hip, 0.07))
  ]
  return Stroke("torso", tuple(corners), 0.0, colour, "area")


def _head(head: Point, skin: Colour) -> list[Stroke]:
  x, y = head
  mouth = ((x - 0.035, y + 0.034), (x, y + 0.046), (x + 0.035, y + 0.034))
  return [
    Stroke("head", (head, (HEAD, 0)), 0.0, skin, "disc"),
    *(
      Stroke(
        f"{side} eye",
        ((x + s * 0.032, y - 0.015), (0.014, 0)),
        0.0,
        INK,
        "disc",
      )
      for side, s in zip(SIDES, (-1, 1), strict=True)
    ),
    Stroke("mouth", mouth, 0.016, (150, 40, 40)),
  ]


def _thing(beside: str) -> list[Stroke]:
  """Returns the strokes of the thing beside, which stands on the floor."""
  x0, x1, floor = 0.72, 0.95, 0.92
  lines: dict[str, Sequence[Sequence[Point]]] = {
    "table": (
      ((x0 - 0.02, 0.66), (x1 + 0.01, 0.66)),
      ((x0 + 0.02, 0.66), (x0 + 0.02, floor)),
      ((x1 - 0.03, 0.66), (x1 - 0.03, floor)),
    ),
    "chair": (
      ((x1 - 0.02, 0.5), (x1 - 0.02, floor)),
      ((x0 + 0.02, 0.72), (x1 - 0.02, 0.72)),
      ((x0 + 0.02, 0.72), (x0 + 0.02, floor)),
    ),
    "crate": (
      ((x0, 0.68), (x1, 0.68), (x1, floor), (x0, floor), (x0, 0.68)),
      ((x0, 0.68), (x1, floor)),
      ((x1, 0.68), (x0, floor)),
    ),
  }
  return [
    Stroke(f"thing {i}", tuple(points), 0.04, _WOOD)
    for i, points in enumerate(lines[beside])
  ]


def draw(
  shown: Sequence[Stroke], ground: int, size: int = 112
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws strokes on a ground with a floor, anti-aliased.

  Args:
    shown: the strokes, first drawn first.
    ground: index of its colour.
    size: side of the picture, a multiple of 112.

  Raises:
    UserError: if the size is another.
  """
  check_size(size)
  steps = _STEPS if any(stroke.smear for stroke in shown) else 1
  total = np.zeros((size, size, 3), np.float32)
  for step in range(steps):
    share = 2 * step / (_STEPS - 1) - 1 if steps > 1 else 0.0
    total += _drawn(shown, ground, size, share)
  return (total / steps).round().astype(np.uint8)


def _drawn(shown, ground: int, size: int, share: float):
  """Draws once, smeared strokes shifted by a share of their smear."""
  fine = size * _FINE
  canvas = Image.new("RGB", (fine, fine), GROUNDS[ground])
  pen = ImageDraw.Draw(canvas)
  floor = tuple(v - 22 for v in GROUNDS[ground])
  pen.rectangle((0, 0.9 * fine, fine, fine), floor)
  for stroke in shown:
    shift = share * stroke.smear
    xy = [((x + shift) * fine, y * fine) for x, y in stroke.points]
    if stroke.form == "disc":
      (x, y), r = xy[0], stroke.points[1][0] * fine
      pen.ellipse((x - r, y - r, x + r, y + r), stroke.colour)
    elif stroke.form == "area":
      pen.polygon(xy, stroke.colour)
    else:
      r = stroke.width * fine / 2
      pen.line(xy, stroke.colour, round(2 * r), joint="curve")
      for x, y in (xy[0], xy[-1]):
        pen.ellipse((x - r, y - r, x + r, y + r), stroke.colour)
  return np.asarray(canvas.reduce(_FINE), np.float32)


def box(shown: Sequence[Stroke], size: int) -> Box | None:
  """Returns the box of strokes in a picture, or None of none."""
  xs, ys = [], []
  for stroke in shown:
    reach = stroke.points[1][0] if stroke.form == "disc" else stroke.width / 2
    points = stroke.points[:1] if stroke.form == "disc" else stroke.points
    for x, y in points:
      xs += [x - reach - stroke.smear, x + reach + stroke.smear]
      ys += [y - reach, y + reach]
  if not xs:
    return None
  # One more pixel: lines end on samples.
  return (
    max(0, math.floor(min(xs) * size) - 1),
    max(0, math.floor(min(ys) * size) - 1),
    min(size, math.ceil(max(xs) * size) + 1),
    min(size, math.ceil(max(ys) * size) + 1),
  )
