"""Items: scenes made for a question, so that answers are as frequent as meant.

Yes and no, the numbers 0 to 4 and the number of the picture are equally
frequent. Every scene has things that the answer doesn't depend on.
"""

from collections.abc import Callable, Sequence
import dataclasses

from mmrl.errors import UserError
from mmrl.worlds import palette
from mmrl.worlds.draws import Draws
from mmrl.worlds.items import Asked
from mmrl.worlds.scenes import questions
from mmrl.worlds.scenes.questions import KINDS, SIDES, Question
from mmrl.worlds.scenes.scene import (
  COLOURS,
  HELD_OUT,
  MOST,
  SPLITS,
  Kind,
  Matrix,
  Scene,
  allowed,
  compose,
  extend,
)
from mmrl.worlds.scenes.things import CORNERS, SHAPES


@dataclasses.dataclass(frozen=True)
class Options:
  """How scenes and questions are made.

  Attributes:
    split: one of `scene.SPLITS`.
    kinds: of questions; items take them in turn.
    seed: another seed gives other items of the split.
    size: side of pictures, a multiple of 112; things keep their size.
    overlap: whether things may cover each other in part.
    cooccurrence: [8][8] weights of a shape (column) beside a shape (row), in
      the order of `things.SHAPES`; None where shapes are independent.
    pictures: of kind "several", 2 or 3.
    reads: things whose colours "read_two" asks for, 2 to 4.
  """

  split: str = "train"
  kinds: Sequence[str] = tuple(kind for kind in KINDS if kind != "describe")
  seed: int = 0
  size: int = palette.SIDE
  overlap: bool = False
  cooccurrence: Matrix | None = None
  pictures: int = 3
  reads: int = 2

  def __post_init__(self):
    palette.check_one_of("split", self.split, SPLITS)
    palette.check_list("kinds", self.kinds, [*KINDS])
    if not self.kinds:
      raise UserError(
        f"kinds: expected some of {', '.join(KINDS)}, found none; name one"
      )
    palette.check_number("seed", self.seed, 0, 2**32 - 1)
    palette.check_size(self.size)
    palette.check_flag("overlap", self.overlap)
    palette.check_number("pictures", self.pictures, 2, 3)
    palette.check_number("reads", self.reads, 2, 4)
    if self.cooccurrence is not None:
      check_matrix(self.cooccurrence)


def check_matrix(matrix: Matrix) -> None:
  """Checks weights of co-occurrence.

  Raises:
    UserError: if it isn't 8 rows of 8 numbers from 0 on, each with one above.
  """
  for i in range(8):
    try:
      row = [float(x) for x in matrix[i]]
    except (TypeError, ValueError, IndexError, KeyError):
      row = []
    if len(matrix) != 8 or len(row) != 8 or not 0 <= min(row) <= max(row) < 1e9:
      row = [0.0]
    if not max(row) > 0:
      raise UserError(
        "cooccurrence: expected 8 rows of 8 weights from 0 on, in the order"
        f" {', '.join(SHAPES)}, each with one above 0, found {matrix!r:.80}"
      )


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """A question and what it is asked about."""

  question: Question
  scenes: tuple[Scene, ...]

  @property
  def answer(self) -> str:
    """The exact answer."""
    found = questions.answer(self.question, self.scenes)
    assert found is not None
    return found

  @property
  def asked(self) -> Asked:
    """The question as one sees it who can't see the picture."""
    one = self.question
    return Asked(one.kind, one.text, self.answer, (), one.chance)


def item(options: Options, index: int) -> Item:
  """Makes an item: a pure function of options and index.

  Args:
    options: seed, split and kinds among them.
    index: of the item, from 0 on.
  """
  draws = Draws(options.seed, SPLITS.index(options.split), index)
  kind = options.kinds[index % len(options.kinds)]
  novel = options.split == "novel"
  first = draws.pick(HELD_OUT) if novel else _member(draws, options.split)
  about, casts = _MAKERS[kind](draws, options, first)
  for _ in range(100):
    scenes = tuple(
      compose(
        draws,
        draws.some(cast, len(cast)),
        options.split,
        size=options.size,
        overlap=options.overlap,
      )
      for cast in casts
    )
    if kind != "relation":
      return Item(Question(kind, about), scenes)
    clear = [
      Question(kind, (side, thing.shape))
      for thing in scenes[0].things
      for side in SIDES
    ]
    clear = [one for one in clear if questions.answer(one, scenes)]
    if clear:
      return Item(draws.pick(clear), scenes)
  raise RuntimeError("no clear relation in a hundred scenes")


def apart(options: Options, index: int) -> Scene:
  """Makes a scene of two to five things of different shapes.

  Args:
    options: seed and split among them.
    index: of the scene, from 0 on.
  """
  draws = Draws(options.seed, SPLITS.index(options.split), index)
  novel = options.split == "novel"
  first = draws.pick(HELD_OUT) if novel else _member(draws, options.split)
  cast = _distinct(draws, options, [first], draws.between(2, MOST - 1))
  cast = draws.some(cast, len(cast))
  return compose(
    draws, cast, options.split, size=options.size, overlap=options.overlap
  )


def _member(
  draws: Draws, split: str, shape: str = "", colour: str = ""
) -> Kind:
  """Draws a pair of shape and colour that a split may have."""
  while True:
    kind = shape or draws.pick(SHAPES), colour or draws.pick(COLOURS)
    if allowed(kind, split):
      return kind


def _filled(
  draws: Draws,
  options: Options,
  cast: Sequence[Kind],
  keep: Callable[[str, str], bool],
  least: int = 3,
) -> list[Kind]:
  """Adds at least one thing that isn't asked about, up to six in all."""
  count = draws.between(min(max(least, len(cast) + 1), MOST), MOST)
  matrix = options.cooccurrence
  return extend(draws, cast, count, options.split, keep, matrix)


def _attribute(draws, options, first):
  shape, colour = first
  if draws.below(2):
    cast = _filled(draws, options, [first], lambda s, _: s != shape)
    return ("colour", shape), [cast]
  cast = _filled(draws, options, [first], lambda _, c: c != colour)
  return ("shape", colour), [cast]


def _exists(draws, options, first):
  cast = _filled(draws, options, [first], lambda *_: True)
  target = first if options.split == "novel" else draws.pick(cast)
  whole, there = draws.below(2), draws.below(2)
  if there:
    return (target[0], target[1] if whole else ""), [cast]
  if not whole:
    shapes = {shape for shape, _ in cast}
    return (draws.pick([s for s in SHAPES if s not in shapes]), ""), [cast]
  # Its shape is there, and its colour, but not together; of "novel" it is what
  # might be there.
  near = [(s, c) for s, _ in cast for _, c in cast]
  if options.split == "novel":
    near = [*HELD_OUT]
  far = [(s, c) for s in SHAPES for c in COLOURS]
  absent, rest = (
    [k for k in kinds if k not in cast and allowed(k, options.split)]
    for kinds in (near, far)
  )
  return draws.pick(absent or rest), [cast]


def _count(draws, options, first):
  wanted = draws.below(2)
  value, split = first[wanted], options.split
  number = draws.between(int(split == "novel"), 4)
  cast = [first, *(_like(draws, split, wanted, value) for _ in range(3))]
  cast = cast[:number]
  cast = _filled(draws, options, cast, lambda *kind: kind[wanted] != value)
  return (("shape", "colour")[wanted], value), [cast]


def _like(draws: Draws, split: str, wanted: int, value: str) -> Kind:
  return _member(draws, split, **{("shape", "colour")[wanted]: value})


def _distinct(draws, options, cast, count):
  """Adds things of shapes that aren't there yet."""
  while len(cast) < count:
    shapes = {shape for shape, _ in cast}

    def keep(shape: str, _: str, shapes: set[str] = shapes) -> bool:
      return shape not in shapes

    matrix = options.cooccurrence
    cast = extend(draws, cast, len(cast) + 1, options.split, keep, matrix)
  return cast


def _relation(draws, options, first):
  return (), [_distinct(draws, options, [first], draws.between(3, MOST))]


# How many there may be of two shapes, so that a third still has its place.
_UP_TO_FIVE = [(i, j) for i in range(4) for j in range(4) if 0 < i + j < MOST]


def _two(draws, options, first, pairs):
  """Draws two shapes, their numbers out of `pairs`, and a cast with them."""
  one, other = first[0], draws.pick([s for s in SHAPES if s != first[0]])
  if options.split == "novel":
    pairs = [pair for pair in pairs if pair[0]]
  numbers = draws.pick(pairs)
  cast = _amounts(draws, options, (one, other), numbers)
  if numbers[0]:
    cast[0] = first
  return (one, other), _filled(
    draws, options, cast, lambda s, _: s not in (one, other)
  )


def _amounts(draws, options, shapes, numbers):
  return [
    _member(draws, options.split, shape)
    for shape, number in zip(shapes, numbers, strict=True)
    for _ in range(number)
  ]


def _compare(draws, options, first):
  more = draws.below(2)
  pairs = [(i, j) for i, j in _UP_TO_FIVE if (i > j) == more]
  shapes, cast = _two(draws, options, first, pairs)
  return shapes, [cast]


def _arithmetic(draws, options, first):
  if draws.below(2):
    prices = draws.some(range(2, 10), 2)
    shapes, cast = _two(draws, options, first, _UP_TO_FIVE)
    return tuple(zip(shapes, prices, strict=True)), [cast]
  pairs = [(i, j) for i, j in _UP_TO_FIVE if i + j < MOST - 1]
  cast = _amounts(draws, options, [*CORNERS], draws.pick(pairs))
  if options.split == "novel":
    cast.append(first)
  return (), [_filled(draws, options, cast, lambda s, _: s not in CORNERS)]


def _read_two(draws, options, first):
  cast = _distinct(draws, options, [first], options.reads)
  shapes = [shape for shape, _ in cast]
  cast = _filled(draws, options, cast, lambda s, _: s not in shapes)
  return tuple(draws.some(shapes, len(shapes))), [cast]


def _several(draws, options, first):
  shape, colour = first
  right = draws.below(options.pictures)
  others = [c for c in COLOURS if c != colour]
  if options.split != "novel":
    others = [c for c in others if allowed((shape, c), options.split)]
  others = draws.some(others, options.pictures)
  casts = []
  for picture in range(options.pictures):
    cast = [first if picture == right else (shape, others[picture])]
    if options.split == "novel" and picture != right:
      cast.append(draws.pick([k for k in HELD_OUT if k[0] != shape]))
    # The colour that is asked for is there, on another thing.
    elsewhere = [s for s in SHAPES if s != shape]
    elsewhere = [s for s in elsewhere if allowed((s, colour), options.split)]
    cast.append((draws.pick(elsewhere), colour))
    casts.append(_filled(draws, options, cast, lambda s, _: s != shape))
  return (shape, colour, options.pictures), casts


def _describe(draws, options, first):
  return (), [_distinct(draws, options, [first], draws.between(2, MOST))]


_MAKERS = {
  "attribute": _attribute,
  "exists": _exists,
  "count": _count,
  "relation": _relation,
  "compare": _compare,
  "arithmetic": _arithmetic,
  "read_two": _read_two,
  "several": _several,
  "describe": _describe,
}
