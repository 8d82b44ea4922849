"""Eight faults of figures, as REACT labels them (arXiv 2601.04033).

Each is a function of a figure's strokes: (strokes, fault) -> strokes.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

from jaxtyping import UInt8
import numpy as np

from mmrl.worlds.figures import figure as figures
from mmrl.worlds.figures.figure import INK, Fault, Figure, Point, Stroke
from mmrl.worlds.palette import Box

Strokes = tuple[Stroke, ...]
CLEAN = "no distortion"


def _of(shown: Strokes, limb: str) -> list[Stroke]:
  return [stroke for stroke in shown if stroke.name.startswith(limb)]


def _put(shown: Strokes, changed: Sequence[Stroke]) -> Strokes:
  """Puts changed strokes in the place of those of their names."""
  named = {stroke.name: stroke for stroke in changed}
  return tuple(named.get(stroke.name, stroke) for stroke in shown)


def _limb_deformation(shown: Strokes, fault: Fault) -> Strokes:
  """A limb winds like a hose, swollen, where it has no joints."""
  changed = []
  for stroke in _of(shown, fault.limb):
    if len(stroke.points) == 2 and stroke.form == "line":
      (x0, y0), (x1, y1) = stroke.points
      wave = 0.05 + 0.03 * fault.amount
      across = y1 - y0, x0 - x1
      length = math.hypot(*across)
      points = []
      for i in range(13):
        along, out = i / 12, wave * math.sin(2 * math.pi * i / 12) / length
        points.append(
          (
            x0 + along * (x1 - x0) + out * across[0],
            y0 + along * (y1 - y0) + out * across[1],
          )
        )
      wide = stroke.width * (1.25 + 0.4 * fault.amount)
      changed.append(
        dataclasses.replace(stroke, points=tuple(points), width=wide)
      )
  return _put(shown, changed)


def _extra_limb(shown: Strokes, fault: Fault) -> Strokes:
  """A limb is there once more, turned about where it begins."""
  own = _of(shown, fault.limb)
  (x0, y0), (x1, y1) = own[0].points
  now = math.atan2(x1 - x0, y1 - y0)
  out = -1 if "left" in fault.limb else 1
  # Outwards, as far as can be from where the limb itself is.
  aims = (0.75, 1.2) if "leg" in fault.limb else (0.7, 1.4, 2.1)
  aim = max((out * a for a in aims), key=lambda a: abs(a - now))
  turn = aim - now + 0.15 * out * fault.amount
  center = own[0].points[0]
  added = []
  for stroke in own:
    first = _turned(stroke.points[0], center, turn)
    points = (
      (first, stroke.points[1])
      if stroke.form == "disc"
      else tuple(_turned(p, center, turn) for p in stroke.points)
    )
    name = f"extra {stroke.name}"
    added.append(dataclasses.replace(stroke, name=name, points=points))
  return (*shown, *added)


def _turned(point: Point, center: Point, angle: float) -> Point:
  x, y = point[0] - center[0], point[1] - center[1]
  c, s = math.cos(angle), math.sin(angle)
  return center[0] + c * x + s * y, center[1] - s * x + c * y


def _missing_limb(shown: Strokes, fault: Fault) -> Strokes:
  """A limb isn't there."""
  gone = _of(shown, fault.limb)
  return tuple(stroke for stroke in shown if stroke not in gone)


def _torso_deformation(shown: Strokes, fault: Fault) -> Strokes:
  """The torso is pinched in the middle and bulges beside."""
  (torso,) = _of(shown, "torso")
  a, b, c, d = torso.points
  wide = 0.09 + 0.05 * fault.amount
  left = [
    _between(a, b, t, w * wide)
    for t, w in ((0.2, -1.0), (0.5, 0.6), (0.8, -0.9))
  ]
  right = [
    _between(d, c, t, w * wide)
    for t, w in ((0.8, 0.4), (0.5, -0.6), (0.2, 1.2))
  ]
  points = (a, *left, b, c, *right, d)
  return _put(shown, [dataclasses.replace(torso, points=points)])


def _between(start: Point, end: Point, along: float, out: float) -> Point:
  """Returns a point beside the line between two."""
  dx, dy = end[0] - start[0], end[1] - start[1]
  length = math.hypot(dx, dy)
  return (
    start[0] + along * dx + out * dy / length,
    start[1] + along * dy - out * dx / length,
  )


def _facial_deformation(shown: Strokes, fault: Fault) -> Strokes:
  """Eyes and mouth are of wrong sizes, at wrong places."""
  changed = []
  for stroke in shown:
    x, y = stroke.points[0]
    if stroke.name == "left eye":
      big = 0.034 + 0.012 * fault.amount
      changed.append(
        dataclasses.replace(stroke, points=((x - 0.012, y + 0.03), (big, 0)))
      )
    elif stroke.name == "right eye":
      changed.append(
        dataclasses.replace(stroke, points=((x + 0.03, y - 0.05), (0.02, 0)))
      )
    elif stroke.name == "mouth":
      points = (
        (x + 0.05, y - 0.02),
        (x + 0.085, y + 0.02),
        (x + 0.06, y + 0.07),
      )
      changed.append(dataclasses.replace(stroke, points=points, width=0.03))
  return _put(shown, changed)


def _collapse(shown: Strokes, fault: Fault) -> Strokes:
  """The thing beside melts: its lines sag and wind."""
  changed = []
  for number, stroke in enumerate(_of(shown, "thing")):
    points: list[Point] = []
    for start, end in zip(stroke.points, stroke.points[1:], strict=False):
      for i in range(9):
        out = (0.035 + 0.02 * fault.amount) * math.sin(i * 2.1 + 2 * number)
        x, y = _between(start, end, i / 8, out)
        points.append((x, min(y + 0.12 * (0.95 - y) / 0.3, 0.94)))
    changed.append(dataclasses.replace(stroke, points=tuple(points)))
  return _put(shown, changed)


def _motion_blur(shown: Strokes, fault: Fault) -> Strokes:
  """Head and arms are smeared sideways."""
  smear = 0.09 + 0.04 * fault.amount
  parts = ("head", "left eye", "right eye", "mouth", "left arm", "right arm")
  return tuple(
    dataclasses.replace(stroke, smear=smear)
    if stroke.name.startswith(parts)
    else stroke
    for stroke in shown
  )


def _mesh_penetration(shown: Strokes, fault: Fault) -> Strokes:
  """An arm goes into the torso and comes out of it on the other side."""
  own = _of(shown, fault.limb)
  (torso,) = _of(shown, "torso")
  mid = [sum(p[i] for p in torso.points) / 4 for i in (0, 1)]
  way = 1 if "left" in fault.limb else -1
  upper, fore, hand = own[0], own[1], own[2]
  height = mid[1] + 0.03 - 0.06 * fault.amount
  enter = mid[0] - way * 0.045, height - 0.01
  leave = mid[0] + way * 0.055, height
  end = mid[0] + way * 0.22, height - 0.04
  elbow = mid[0] - way * 0.17, height + 0.05
  skin = hand.colour
  changed = [
    dataclasses.replace(upper, points=(upper.points[0], elbow)),
    dataclasses.replace(fore, points=(elbow, enter), colour=skin),
    dataclasses.replace(hand, points=(end, hand.points[1])),
  ]
  holes = [
    Stroke(f"hole {i} {fault.limb}", (p, (0.036, 0)), 0.0, INK, "disc")
    for i, p in enumerate((enter, leave))
  ]
  out = Stroke(f"through {fault.limb}", (leave, end), fore.width, skin)
  kept = [stroke for stroke in shown if stroke not in own]
  return (*kept, changed[0], *holes, changed[1], out, changed[2])


FAULTS: dict[str, Callable[[Strokes, Fault], Strokes]] = {
  "limb deformation": _limb_deformation,
  "extra limb": _extra_limb,
  "missing limb": _missing_limb,
  "torso deformation": _torso_deformation,
  "facial deformation": _facial_deformation,
  "non-animal collapse": _collapse,
  "motion blur": _motion_blur,
  "mesh penetration": _mesh_penetration,
}
# Which limbs a fault may be of. Two faults of one figure never share a limb.
LIMBS_OF = {
  "limb deformation": figures.LIMBS,
  "extra limb": figures.LIMBS,
  "missing limb": figures.LIMBS,
  "mesh penetration": ("left arm", "right arm"),
}
# Faults whose traces another fault's would hide.
APART = (
  frozenset(("motion blur", "facial deformation")),
  frozenset(("mesh penetration", "torso deformation")),
)


def strokes(figure: Figure) -> Strokes:
  """Returns the strokes of a figure with its faults, in order."""
  shown = figures.strokes(figure)
  for fault in figure.faults:
    shown = FAULTS[fault.label](shown, fault)
  return shown


def render(figure: Figure, size: int = 112) -> UInt8[np.ndarray, "h w 3"]:
  """Draws a figure; `size` is a multiple of 112."""
  return figures.draw(strokes(figure), figure.ground, size)


def heal(figure: Figure, index: int) -> Figure:
  """Returns the figure without one of its faults, all else as it is."""
  left = figure.faults[:index] + figure.faults[index + 1 :]
  return dataclasses.replace(figure, faults=left)


def fault_box(figure: Figure, index: int, size: int = 112) -> Box:
  """Returns the box of what a fault changes: outside of it, healing doesn't."""
  with_, without = strokes(figure), strokes(heal(figure, index))
  changed = [s for s in with_ if s not in without]
  changed += [s for s in without if s not in with_]
  found = figures.box(changed, size)
  assert found is not None
  return found
