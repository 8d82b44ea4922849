"""Drawing of kitchens: frames, boxes in them, and mp4 files.

From above, a fixture is 28 x 28 pixels of a picture of 112 pixels: one visual
token of published models. The turning view is from above too, the viewer in
the lower half and what he looks at ahead of him, upwards.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
import math
import os
from typing import no_type_check

import av
from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw

from mmrl.worlds.kitchens.kitchen import HANDS, Kitchen, Stand
from mmrl.worlds.kitchens.plan import DOORS, KNOWN, SIDE, Fixture, Point
from mmrl.worlds.palette import COLOURS, Box, Colour

VIEWS = ("above", "turning")
# Samples along each side of a pixel.
_FINE = 4
_FLOORS: tuple[Colour, ...] = (
  (238, 228, 208),
  (226, 234, 226),
  (228, 228, 240),
)
_OTHER_FLOORS: tuple[Colour, ...] = ((206, 196, 190), (196, 210, 220))
_FRONTS: dict[str, Colour] = {
  "sink": (150, 190, 214),
  "hob": (140, 140, 150),
  "fridge": (246, 248, 252),
  "table": (190, 140, 90),
  "counter": (204, 200, 190),
  "drawer": (150, 118, 84),
}
_THINGS: dict[str, str] = {
  **{"cup": "red", "knife": "black", "box": "orange", "bowl": "blue"},
  **{"bottle": "green", "plate": "yellow", "pan": "purple"},
}
_LINE: Colour = (60, 56, 60)
_HALF = 0.25  # Half a thing's side, in metres; 14 pixels of 112.
_BEHIND = 1.2  # Metres from the viewer to the lower edge of the turning view.


# It is called a hundred times a frame, too often to be checked each time.
@no_type_check
class _Sight:
  """Metres to pixels, as seen from above or by the viewer."""

  def __init__(self, viewer: Stand, view: str, size: int):
    self._turn = view == "turning"
    self.per_metre = size / SIDE
    self._size, self._place = size, viewer.place
    angle = math.pi / 2 - viewer.heading
    self._cos, self._sin = math.cos(angle), math.sin(angle)

  def __call__(self, point: Point) -> Point:
    x, y = point
    if self._turn:
      dx, dy = x - self._place[0], y - self._place[1]
      x = SIDE / 2 + dx * self._cos - dy * self._sin
      y = _BEHIND + dx * self._sin + dy * self._cos
    return x * self.per_metre, self._size - y * self.per_metre


def frame(
  kitchen: Kitchen, time: float, *, size: int = 112, view: str = "above"
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws what is seen at a time.

  Args:
    kitchen: the video.
    time: seconds.
    size: side of the picture, a multiple of 112.
    view: "above", or "turning" with the viewer.
  """
  viewer = kitchen.viewer(time)
  fine = size * _FINE
  sight = _Sight(viewer, view, fine)
  canvas = Image.new("RGB", (fine, fine), (252, 252, 252))
  pen = ImageDraw.Draw(canvas)
  number = kitchen.plan.number
  floors = _FLOORS if number in KNOWN else _OTHER_FLOORS
  edge: list[Point] = [(0, 0), (SIDE, 0), (SIDE, SIDE), (0, SIDE)]
  floor = floors[number % len(floors)]
  pen.polygon([*map(sight, edge)], floor, _LINE)
  for one in kitchen.plan.fixtures:
    _fixture(pen, sight, one, kitchen.is_open(one.name, time))
  spots = {
    thing.name: spot_of(kitchen, thing.name, time) for thing in kitchen.things
  }
  carried = {n for n in spots if kitchen.place(n, time) == HANDS}
  for name, spot in spots.items():
    if spot is not None and name not in carried:
      _thing(canvas, sight, name, spot)
  _person(pen, sight, viewer)
  for name in carried:
    _thing(canvas, sight, name, _in_hands(viewer))
  return np.asarray(canvas.reduce(_FINE))


def times(kitchen: Kitchen, fps: float) -> list[float]:
  """Lists the times of a video's frames, from 0 on."""
  return [i / fps for i in range(max(1, math.floor(kitchen.seconds * fps)))]


def frames(
  kitchen: Kitchen, fps: float = 2.0, *, size: int = 112, view: str = "above"
) -> UInt8[np.ndarray, "frames h w 3"]:
  """Draws the frames of a video; see `frame`."""
  return np.stack(
    [frame(kitchen, t, size=size, view=view) for t in times(kitchen, fps)]
  )


def spot_of(kitchen: Kitchen, thing: str, time: float) -> Point | None:
  """Returns where a thing is, in metres; None where a door hides it."""
  where = kitchen.place(thing, time)
  if where == HANDS:
    return _in_hands(kitchen.viewer(time))
  fixture = kitchen.plan.fixture(where)
  if fixture.kind in DOORS and not kitchen.is_open(where, time):
    return None
  # Each thing has its own place on a fixture, whatever else is there.
  slot = kitchen.thing(thing).slot
  shift = (-0.22, 0.22)[slot % 2], (-0.22, 0.22)[slot // 2 % 2]
  return fixture.middle[0] + shift[0], fixture.middle[1] + shift[1]


def _in_hands(viewer: Stand) -> Point:
  """Returns where something is that the viewer carries: before him."""
  (x, y), reach = viewer.place, 0.42
  return (
    x + reach * math.cos(viewer.heading),
    y + reach * math.sin(viewer.heading),
  )


def thing_box(
  kitchen: Kitchen, thing: str, time: float, *, size: int, view: str
) -> Box | None:
  """Returns the box of a thing in a frame; None if it isn't all there."""
  spot = spot_of(kitchen, thing, time)
  if spot is None:
    return None
  sight = _Sight(kitchen.viewer(time), view, size)
  x, y = sight(spot)
  half = _HALF * sight.per_metre
  return _whole([(x - half, y - half), (x + half, y + half)], size)


def fixture_box(
  kitchen: Kitchen, fixture: Fixture, time: float, *, size: int, view: str
) -> Box | None:
  """Returns the box of a fixture in a frame; None if it isn't all there."""
  sight = _Sight(kitchen.viewer(time), view, size)
  return _whole([*map(sight, _square(fixture.middle, 0.5))], size)


def _whole(points: Sequence[Point], size: int) -> Box | None:
  xs, ys = ([p[i] for p in points] for i in (0, 1))
  low, high = (min(xs), min(ys)), (max(xs), max(ys))
  if min(low) < -0.01 or max(high) > size + 0.01:
    return None
  x0, y0 = (math.floor(v + 0.01) for v in low)
  x1, y1 = (math.ceil(v - 0.01) for v in high)
  return x0, y0, x1, y1


def write(
  kitchen: Kitchen,
  path: str | os.PathLike,
  fps: float = 2.0,
  *,
  size: int = 112,
  view: str = "above",
) -> None:
  """Writes an mp4 file (H.264, 4:2:0) of a video; see `frame`."""
  write_frames(frames(kitchen, fps, size=size, view=view), path, fps)


def write_frames(
  shown: UInt8[np.ndarray, "frames h w 3"],
  path: str | os.PathLike,
  fps: float,
) -> None:
  """Writes an mp4 file (H.264, 4:2:0) of frames."""
  rate = Fraction(fps).limit_denominator(1000)
  with av.open(os.fspath(path), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate, {"crf": "8"})
    stream.height, stream.width = shown.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for pixels in shown:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
    container.mux(stream.encode())


def _square(middle: Point, half: float) -> list[Point]:
  x, y = middle
  corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
  return [(x + half * dx, y + half * dy) for dx, dy in corners]


def _disc(pen, sight: _Sight, middle: Point, radius: float, fill, outline=None):
  (x, y), r = sight(middle), radius * sight.per_metre
  width = max(1, int(sight.per_metre / 28))
  pen.ellipse((x - r, y - r, x + r, y + r), fill, outline, width)


def _fixture(pen, sight: _Sight, one: Fixture, is_open: bool) -> None:
  """Draws a fixture: its colour, what tells its kind, and its door."""
  (x, y), front = one.middle, _FRONTS[one.kind]
  pen.polygon([*map(sight, _square((x, y), 0.48))], front, _LINE)
  if one.kind == "sink":
    _disc(pen, sight, (x, y), 0.34, (214, 232, 242), _LINE)
    _disc(pen, sight, (x, y), 0.07, _LINE)
  elif one.kind == "hob":
    for spot in _square((x, y), 0.22):
      _disc(pen, sight, spot, 0.16, (176, 60, 50), (220, 220, 220))
  elif one.kind == "table":
    pen.polygon([*map(sight, _square((x, y), 0.36))], (222, 180, 132), _LINE)
  elif one.kind in DOORS:
    inside = (30, 28, 36) if is_open else front
    pen.polygon([*map(sight, _square((x, y), 0.38))], inside, _LINE)
    if is_open:
      _door(pen, sight, one)
    elif one.kind == "drawer":
      bar = [(x - 0.2, y), (x + 0.2, y)]
      pen.line([*map(sight, bar)], (250, 250, 250), int(sight.per_metre * 0.1))
    else:
      _disc(pen, sight, (x, y), 0.14, (120, 170, 220), _LINE)


def _door(pen, sight: _Sight, one: Fixture) -> None:
  """Draws a door that stands open, towards who stands before it."""
  (x, y), (u, v) = one.middle, one.stand
  across = (u - x, v - y)
  length = math.hypot(*across)
  across = across[0] / length, across[1] / length
  ends = [
    (x + across[0] * 0.45 - across[1] * s, y + across[1] * 0.45 + across[0] * s)
    for s in (-0.45, 0.45)
  ]
  wide = int(sight.per_metre * 0.12)
  pen.line([*map(sight, ends)], (250, 210, 60), wide)


def _person(pen, sight: _Sight, viewer: Stand) -> None:
  """Draws the viewer: head, and a nose that says where he looks."""
  (x, y), angle = viewer.place, viewer.heading

  def ahead(turn: float, reach: float) -> Point:
    return x + reach * math.cos(angle + turn), y + reach * math.sin(
      angle + turn
    )

  nose = [ahead(0.7, 0.24), ahead(0.0, 0.45), ahead(-0.7, 0.24)]
  pen.polygon([*map(sight, nose)], (90, 70, 60))
  _disc(pen, sight, (x, y), 0.27, (236, 190, 160), _LINE)
  _disc(pen, sight, (x, y), 0.17, (90, 70, 60))


def _thing(canvas: Image.Image, sight: _Sight, kind: str, spot: Point) -> None:
  """Draws a thing in its box, out of which no line goes; it doesn't turn."""
  (x, y), half = sight(spot), _HALF * sight.per_metre
  left, top = math.ceil(x - half), math.ceil(y - half)
  part = canvas.crop((left, top, int(x + half), int(y + half)))
  pen = ImageDraw.Draw(part)
  middle = x - left, y - top

  def at(*points):
    return [(middle[0] + half * a, middle[1] + half * b) for a, b in points]

  def disc(radius, fill):
    pen.ellipse([*at((-radius, -radius), (radius, radius))], fill, (255,) * 3)

  _DRAWN[kind](pen, at, disc, COLOURS[_THINGS[kind]])
  canvas.paste(part, (left, top))


def _cup(pen, at, disc, colour) -> None:
  pen.rectangle([*at((0.3, -0.25), (1, 0.25))], None, colour, 6)
  disc(0.72, colour)
  disc(0.42, (255, 240, 230))


def _knife(pen, at, disc, colour) -> None:
  blade = at((-0.3, 0.1), (0.7, -1), (1, -1), (1, -0.7), (0.1, 0.45))
  pen.polygon(blade, (240, 246, 255), colour, 2)
  pen.line(at((-0.15, 0.3), (-0.8, 0.95)), colour, 11)


def _box(pen, at, disc, colour) -> None:
  pen.rectangle([*at((-0.9, -0.9), (0.9, 0.9))], colour, (255,) * 3, 3)
  pen.line(at((-0.9, 0), (0.9, 0)), (110, 50, 20), 5)


def _bowl(pen, at, disc, colour) -> None:
  disc(0.95, colour)
  disc(0.6, (220, 226, 255))


def _bottle(pen, at, disc, colour) -> None:
  pen.rectangle([*at((-0.45, -0.3), (0.45, 1))], colour, (255,) * 3, 2)
  pen.rectangle([*at((-0.18, -1), (0.18, -0.3))], colour)


def _plate(pen, at, disc, colour) -> None:
  disc(1.0, colour)
  disc(0.62, (255, 250, 224))


def _pan(pen, at, disc, colour) -> None:
  pen.line(at((0, 0), (1, -1)), colour, 12)
  disc(0.7, colour)


_DRAWN: dict[str, Callable[..., None]] = {
  "cup": _cup,
  "knife": _knife,
  "box": _box,
  "bowl": _bowl,
  "bottle": _bottle,
  "plate": _plate,
  "pan": _pan,
}
