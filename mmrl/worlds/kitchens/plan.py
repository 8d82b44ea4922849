"""Floor plans: eight fixtures along the walls of a room of 4 x 4 metres.

x goes east and y north, in metres from the south-west corner. The twelve cells
of one metre along the walls are numbered clockwise as seen from above, from
the north-west corner on; so the next number is to the right of who faces the
wall. The four cells in the middle are free.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

from mmrl.worlds.draws import Draws

SIDE = 4
UNIQUE = ("sink", "hob", "fridge", "table")
TWICE = ("counter", "drawer")
# What can be opened and closed.
DOORS = ("fridge", "drawer")
CELLS = (
  *((0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2)),
  *((3, 3), (2, 3), (1, 3), (0, 3), (0, 2), (0, 1)),
)
# Numbers of plans that training has, and others with other colours.
KNOWN, OTHER = (1, 2, 3, 4, 5, 6), (7, 8, 9, 10)

Point = tuple[float | int, float | int]


@dataclasses.dataclass(frozen=True, slots=True)
class Fixture:
  """One fixture.

  Attributes:
    name: as HD-EPIC names them, such as "P01_drawer.002".
    kind: such as "drawer".
    cell: along the walls.
    words: what tells it from others, such as ("drawer", "left", "sink"); of
      the only one of a kind ("sink",).
  """

  name: str
  kind: str
  cell: int
  words: tuple[str, ...]

  def called(self, joint: str) -> str:
    """Names it for people.

    Args:
      joint: between side and landmark: "of" or "from", as in "drawer left of
        sink"; HD-EPIC uses either, by kind of question.
    """
    if len(self.words) == 1:
      return self.kind
    kind, side, landmark = self.words
    return f"{kind} {side} {joint} {landmark}"

  @property
  def middle(self) -> Point:
    """Where its middle is."""
    return _middle(*CELLS[self.cell])

  @property
  def stand(self) -> Point:
    """Where one stands who uses it."""
    column, row = (min(max(v, 1), 2) for v in CELLS[self.cell])
    return _middle(column, row)


def _middle(column: int, row: int) -> Point:
  return column + 0.5, SIDE - 0.5 - row


@dataclasses.dataclass(frozen=True)
class Plan:
  """A floor plan.

  Attributes:
    number: of the kitchen, as in "P01".
    fixtures: eight of them.
  """

  number: int
  fixtures: tuple[Fixture, ...]

  def fixture(self, name: str) -> Fixture:
    """Returns the fixture of a name."""
    return next(one for one in self.fixtures if one.name == name)


@functools.lru_cache(64)
def plan(number: int) -> Plan:
  """Returns the floor plan of a number, always the same.

  Two counters or drawers are told apart by the nearest fixture that is the
  only one of its kind, and by the side of it that they are on.
  """
  draws = Draws(number)
  kinds = [*UNIQUE, *TWICE, *TWICE]
  while True:
    cells = draws.some(range(12), len(kinds))
    landmarks = dict(zip(UNIQUE, cells, strict=False))
    words = [
      (kind,) if kind in UNIQUE else (kind, *_beside(landmarks, cell))
      for kind, cell in zip(kinds, cells, strict=True)
    ]
    if len({*words}) == len(words):
      break
  numbers = [kinds[: i + 1].count(kind) for i, kind in enumerate(kinds)]
  return Plan(
    number,
    tuple(
      Fixture(f"P{number:02}_{kind}.{n:03}", kind, cell, word)
      for kind, n, cell, word in zip(kinds, numbers, cells, words, strict=True)
    ),
  )


def _beside(landmarks: dict[str, int], cell: int) -> tuple[str, str]:
  """Returns side and name of the nearest landmark; clockwise is right of it."""
  distance, side, name = min(
    min(((cell - at) % 12, "right", kind), ((at - cell) % 12, "left", kind))
    for kind, at in landmarks.items()
  )
  assert distance
  return side, name


def clock(position: Point, heading: float, target: Point) -> tuple[int, float]:
  """Returns the clock direction of a point, for who looks along a heading.

  Args:
    position: of the viewer.
    heading: radians from east, counterclockwise.
    target: the point.

  Returns:
    (hour 1 to 12, 12 straight ahead and 3 to the right; degrees that it is off
    the middle of that hour, from -15 to 15)

  Raises:
    ValueError: if the viewer stands on the point, which is in no direction.
  """
  x, y = target[0] - position[0], target[1] - position[1]
  if not (x or y):
    raise ValueError(f"expected a point elsewhere than {position}")
  forward = math.cos(heading), math.sin(heading)
  right = x * forward[1] - y * forward[0]
  ahead = x * forward[0] + y * forward[1]
  hours = math.atan2(right, ahead) * 6 / math.pi
  hour = math.floor(hours + 0.5)
  return (hour - 1) % 12 + 1, (hours - hour) * 30


def names(fixtures: Sequence[Fixture], joint: str) -> list[str]:
  """Names fixtures for people; see `Fixture.called`."""
  return [one.called(joint) for one in fixtures]
