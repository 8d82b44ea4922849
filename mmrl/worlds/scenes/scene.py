"""Scenes: sampling, drawing, interventions, and what occurs together.

Splits: "train", "validation", "test" and "novel". The sum of the coordinates
of a scene's things, modulo 3, tells the first three apart, so that none shares
a scene with another, whatever the seeds. 24 of the 64 pairs of shape and
colour (`HELD_OUT`) are in no scene of them: "novel" has at least one of these
in every scene. Shapes, colours, places and phrasings are those of training in
each.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math

from jaxtyping import Int, UInt8
import numpy as np

from mmrl.errors import UserError
from mmrl.worlds import palette
from mmrl.worlds.draws import Draws
from mmrl.worlds.scenes.things import DIRECTIONS, SHAPES, SIZES, Thing, alpha

SPLITS = ("train", "validation", "test", "novel")
COLOURS = tuple(palette.COLOURS)
# Shape and colour; each shape and each colour is three times among them, so
# that none tells the other.
HELD_OUT = tuple(
  (shape, COLOURS[(5 * i + shift) % 8])
  for i, shape in enumerate(SHAPES)
  for shift in (2, 5, 7)
)
MOST = 6
# Share of the smaller box that another may cover, where things may overlap.
_COVERED = 0.35

Kind = tuple[str, str]
Matrix = Sequence[Sequence[float]]
Place = tuple[int, int]
# Least and greatest coordinate along one axis.
Range = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
  """All things in a picture, and its ground.

  Attributes:
    things: later ones cover earlier ones.
    size: side of the picture in pixels.
    ground: index of its colour in `palette.GROUNDS`.
    slope: levels that the ground becomes darker from left to right and from
      top to bottom.
  """

  things: tuple[Thing, ...]
  size: int = palette.SIDE
  ground: int = 0
  slope: tuple[int, int] = (0, 0)


def compose(
  draws: Draws,
  cast: Sequence[Kind],
  split: str,
  *,
  size: int = palette.SIDE,
  overlap: bool = False,
) -> Scene:
  """Puts things of given shapes and colours into a picture of a split.

  Args:
    draws: of the item.
    cast: shape and colour of each, one to six.
    split: one of `SPLITS`.
    size: side of the picture, a multiple of 112.
    overlap: whether things may cover each other in part; else they are apart.
  """
  sizes = [draws.pick(SIZES) for _ in cast]
  spread = _scattered if overlap else _apart
  ranges = spread(draws, sizes, size)
  places = [(draws.between(*x), draws.between(*y)) for x, y in ranges]
  if split != "novel":
    rest = sum(map(sum, places[1:]))
    residue = SPLITS.index(split)
    (x0, x1), (y0, y1) = ranges[0]
    places[0] = draws.pick(
      [
        (x, y)
        for x in range(x0, x1 + 1)
        for y in range(y0, y1 + 1)
        if (x + y + rest) % 3 == residue
      ]
    )
  things = [
    Thing(*kind, s, p, draws.pick(DIRECTIONS) if kind[0] == "arrow" else "")
    for kind, s, p in zip(cast, sizes, places, strict=True)
  ]
  slope = draws.between(-8, 8), draws.between(-8, 8)
  ground = draws.below(len(palette.GROUNDS))
  return Scene(tuple(things), size, ground, slope)


def _apart(
  draws: Draws, sizes: Sequence[int], size: int
) -> list[tuple[Range, Range]]:
  """Draws a cell of a grid for each thing; returns where it may be in it."""
  count = 3 * size // palette.SIDE
  wide, found = size / count, []
  for side, cell in zip(
    sizes, draws.some(range(count**2), len(sizes)), strict=True
  ):
    row, column = divmod(cell, count)
    slack = (side / 2, wide - side / 2)
    x, y = (
      (math.ceil(i * wide + slack[0]), int(i * wide + slack[1]))
      for i in (column, row)
    )
    found.append((x, y))
  return found


def _scattered(
  draws: Draws, sizes: Sequence[int], size: int
) -> list[tuple[Range, Range]]:
  """Draws where things may be that cover each other in part."""
  found: list[tuple[int, int, int]] = []
  while len(found) < len(sizes):
    half = sizes[len(found)] // 2
    # Two pixels are left, by which the first may still move.
    x, y = (draws.between(half + 1, size - half - 1) for _ in range(2))
    near = [_shared((x, y, half), other) for other in found]
    if max(near, default=0) <= _COVERED:
      found.append((x, y, half))
  return [((x - 1, x + 1), (y - 1, y + 1)) for x, y, _ in found]


def _shared(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
  """Computes what two squares share, as a share of the smaller one."""
  reach, least = one[2] + other[2], 2 * min(one[2], other[2])
  wide, high = (
    max(0, min(reach - abs(one[i] - other[i]), least)) for i in (0, 1)
  )
  return wide * high / least**2


def allowed(kind: Kind, split: str) -> bool:
  """Tells whether a split may have a thing of a shape and a colour."""
  return split == "novel" or kind not in HELD_OUT


def extend(
  draws: Draws,
  cast: Sequence[Kind],
  count: int,
  split: str,
  keep: Callable[[str, str], bool],
  cooccurrence: Matrix | None = None,
) -> list[Kind]:
  """Adds things to a cast that don't change what is asked.

  Args:
    draws: of the item.
    cast: what is there.
    count: how many there are to be.
    split: may forbid some.
    keep: (shape, colour) -> whether such a thing may be added.
    cooccurrence: weight of a shape (column) beside a shape (row), in the order
      of `SHAPES`; shapes are equally frequent without.
  """
  found = list(cast)
  while len(found) < count:
    for attempt in range(200):
      if cooccurrence is None or not found or attempt > 50:
        shape = draws.pick(SHAPES)
      else:
        row = cooccurrence[SHAPES.index(draws.pick(found)[0])]
        shape = SHAPES[draws.weighted(row)]
      kind = shape, draws.pick(COLOURS)
      if allowed(kind, split) and keep(*kind):
        found.append(kind)
        break
    else:
      raise RuntimeError("nothing may be added to the scene")
  return found


def render(scene: Scene, size: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
  """Draws a scene.

  Args:
    scene: what to draw.
    size: side of the picture, the scene's or a multiple of it.

  Raises:
    UserError: if the size is another.
  """
  size = scene.size if size is None else size
  if size < scene.size or size % scene.size:
    raise UserError(
      f"size: expected a multiple of the scene's, {scene.size}, found {size}"
    )
  scale = size // scene.size
  steps = np.linspace(0, 1, size, dtype=np.float32)
  shade = scene.slope[0] * steps + scene.slope[1] * steps[:, None]
  tint = np.array(palette.GROUNDS[scene.ground], np.float32)
  picture = np.clip(tint - shade[..., None], 0, 255).round().astype(np.uint8)
  for thing in scene.things:
    x0, y0, x1, y1 = (scale * v for v in thing.box)
    part = picture[y0:y1, x0:x1].astype(np.int32)
    covers = alpha(thing.shape, thing.direction, scale * thing.size)
    share = covers.astype(np.int32)[..., None]
    colour = np.array(palette.COLOURS[thing.colour], np.int32)
    mixed = (part * (255 - share) + colour * share + 127) // 255
    picture[y0:y1, x0:x1] = mixed.astype(np.uint8)
  return picture


def mask(scene: Scene, index: int) -> UInt8[np.ndarray, "h w"]:
  """Returns the opacity of one thing in the picture, as if nothing covered it.

  Args:
    scene: has the thing.
    index: of the thing.
  """
  thing = _thing(scene, index)
  found = np.zeros((scene.size, scene.size), np.uint8)
  x0, y0, x1, y1 = thing.box
  found[y0:y1, x0:x1] = alpha(thing.shape, thing.direction, thing.size)
  return found


def remove(scene: Scene, index: int) -> Scene:
  """Returns the scene without one thing, all else as it is.

  Raises:
    UserError: if there is no such thing.
  """
  _thing(scene, index)
  left = scene.things[:index] + scene.things[index + 1 :]
  return dataclasses.replace(scene, things=left)


def replace(scene: Scene, index: int, kind: Kind) -> Scene:
  """Returns the scene with a thing of another shape and colour in one's box.

  Raises:
    UserError: if there is no such thing, shape or colour.
  """
  thing = _thing(scene, index)
  shape, colour = kind
  palette.check_one_of("shape", shape, SHAPES)
  palette.check_one_of("colour", colour, COLOURS)
  direction = (thing.direction or "up") if shape == "arrow" else ""
  new = Thing(shape, colour, thing.size, thing.place, direction)
  return _put(scene, index, new)


def move(scene: Scene, index: int, place: Place) -> Scene:
  """Returns the scene with the centre of one thing elsewhere.

  Raises:
    UserError: if there is no such thing, or it would leave the picture.
  """
  new = dataclasses.replace(_thing(scene, index), place=place)
  if min(new.box) < 0 or max(new.box) > scene.size:
    raise UserError(
      f"place: expected a thing of {new.size} pixels inside of a picture of"
      f" {scene.size}, found its centre at {place}; move it less"
    )
  return _put(scene, index, new)


def _thing(scene: Scene, index: int) -> Thing:
  palette.check_number("thing", index, 0, len(scene.things) - 1)
  return scene.things[index]


def _put(scene: Scene, index: int, thing: Thing) -> Scene:
  things = (*scene.things[:index], thing, *scene.things[index + 1 :])
  return dataclasses.replace(scene, things=things)


def cooccurrence(scenes: Iterable[Scene]) -> Int[np.ndarray, "8 8"]:
  """Counts scenes in which two shapes are together; 0 on the diagonal."""
  found = np.zeros((8, 8), np.int64)
  for scene in scenes:
    there = sorted({SHAPES.index(thing.shape) for thing in scene.things})
    found[np.ix_(there, there)] += 1
  np.fill_diagonal(found, 0)
  return found


# Shapes that `paired` plants together.
PARTNERS = {
  **{"star": "ring", "ring": "star", "heart": "arrow", "arrow": "heart"},
  **{"circle": "cross", "cross": "circle"},
  **{"square": "triangle", "triangle": "square"},
}


def paired(strength: float) -> tuple[tuple[float, ...], ...]:
  """Returns a matrix of co-occurrence: star with ring, heart with arrow, ..

  Args:
    strength: probability that beside a shape its partner is drawn; the other
      seven share the rest, so 1/8 is independence.

  Raises:
    UserError: if it isn't a number in [0, 1].
  """
  palette.check_number("strength", strength, 0.0, 1.0)
  return tuple(
    tuple(
      strength if PARTNERS[row] == column else (1 - strength) / 7
      for column in SHAPES
    )
    for row in SHAPES
  )
