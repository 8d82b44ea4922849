"""Questions about scenes: texts, exact answers, and the things that matter."""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import re

from mmrl.worlds.scenes.scene import COLOURS, Kind, Scene
from mmrl.worlds.scenes.things import CORNERS, SHAPES, Thing, plural

SIDES = ("left of", "right of", "above", "below")
# Pixels between centres along an axis: up to the first two things are beside
# each other, from the second on one is clearly left of (above, ..) the other.
_BESIDE, _CLEAR = 10, 18
# A picture and a thing in it.
Spot = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
  """A question about one picture, or about several.

  Attributes:
    kind: a key of `KINDS`.
    about: what it asks for, in the order of its text.
  """

  kind: str
  about: tuple

  @property
  def text(self) -> str:
    """The question, as asked."""
    return KINDS[self.kind].text(*self.about)

  @property
  def chance(self) -> float:
    """Probability that a guess among the possible answers is right."""
    return KINDS[self.kind].chance(*self.about)


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
  """How a kind of question is asked, answered and looked for.

  Attributes:
    text: (*about) -> the question.
    answer: (scenes, *about) -> the answer; None where there is no exact one.
    spots: (scenes, *about) -> things that the answer depends on.
    chance: (*about) -> probability of a right guess.
  """

  text: Callable[..., str]
  answer: Callable[..., str | None]
  spots: Callable[..., list[Spot]]
  chance: Callable[..., float]


def answer(question: Question, scenes: Sequence[Scene]) -> str | None:
  """Answers a question from what there is; None if it has no exact answer."""
  return KINDS[question.kind].answer(scenes, *question.about)


def relevant(question: Question, scenes: Sequence[Scene]) -> list[Spot]:
  """Lists the things that the answer depends on: (picture, thing)."""
  return KINDS[question.kind].spots(scenes, *question.about)


def join(words: Sequence[str]) -> str:
  """Joins words as in "a, b and c"."""
  return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def article(words: str) -> str:
  """Puts "a" or "an" before words."""
  return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def fits(thing: Thing, shape: str = "", colour: str = "") -> bool:
  """Tells whether a thing has a shape and a colour; "" is any."""
  return shape in ("", thing.shape) and colour in ("", thing.colour)


def where(scene: Scene, shape: str = "", colour: str = "") -> list[int]:
  """Lists the things of a shape and a colour; "" is any."""
  return [i for i, t in enumerate(scene.things) if fits(t, shape, colour)]


def _spots(scenes: Sequence[Scene], *wanted: tuple[str, str]) -> list[Spot]:
  return [
    (picture, i)
    for picture, scene in enumerate(scenes)
    for i, thing in enumerate(scene.things)
    if any(fits(thing, *one) for one in wanted)
  ]


def _only(scene: Scene, shape: str = "", colour: str = "") -> Thing | None:
  found = where(scene, shape, colour)
  return scene.things[found[0]] if len(found) == 1 else None


def _named(wanted: str, value: str) -> tuple[str, str]:
  """Shape and colour of what has a value of an attribute."""
  return (value, "") if wanted == "shape" else ("", value)


def _attribute_text(asked: str, known: str) -> str:
  if asked == "colour":
    return f"What colour is the {known}?"
  return f"What shape is the {known} thing?"


def _attribute(scenes: Sequence[Scene], asked: str, known: str) -> str | None:
  given = "shape" if asked == "colour" else "colour"
  thing = _only(scenes[0], *_named(given, known))
  return getattr(thing, asked) if thing else None


def _attribute_spots(scenes, asked, known):
  given = "shape" if asked == "colour" else "colour"
  return _spots(scenes, _named(given, known))


def _yes(true: bool) -> str:
  return "yes" if true else "no"


def beside(scene: Scene, side: str, anchor: int) -> list[int] | None:
  """Lists what is on one side of a thing; None if that isn't clear."""
  axis = 0 if side in ("left of", "right of") else 1
  sign = -1 if side in ("left of", "above") else 1
  place, found = scene.things[anchor].place[axis], []
  for i, thing in enumerate(scene.things):
    distance = sign * (thing.place[axis] - place)
    if _BESIDE < abs(distance) < _CLEAR:
      return None
    if distance >= _CLEAR:
      found.append(i)
  return found


def _related(scene: Scene, side: str, shape: str) -> list[int] | None:
  anchors = where(scene, shape)
  return beside(scene, side, anchors[0]) if len(anchors) == 1 else None


def _relation(scenes: Sequence[Scene], side: str, shape: str) -> str | None:
  found = _related(scenes[0], side, shape)
  if found is None or len(found) != 1:
    return None
  return scenes[0].things[found[0]].shape


def _relation_spots(scenes, side, shape):
  found = _related(scenes[0], side, shape) or []
  return [(0, i) for i in sorted({*where(scenes[0], shape), *found})]


def _compare(scenes: Sequence[Scene], one: str, other: str) -> str:
  return _yes(len(where(scenes[0], one)) > len(where(scenes[0], other)))


def costs(scenes: Sequence[Scene], terms: Sequence[tuple[str, int]]) -> int:
  """Adds up how many of each shape there are, times its number."""
  return sum(len(where(scenes[0], shape)) * each for shape, each in terms)


def terms(*about) -> tuple[tuple[str, int], ...]:
  """Returns the shapes of an arithmetic question, and the number of each."""
  return about or tuple(CORNERS.items())


def _arithmetic_text(*about) -> str:
  first, second = terms(*about)
  both = f"all {plural(first[0])} and {plural(second[0])}"
  if not about:
    return f"How many corners do {both} have together?"
  return (
    f"{article(first[0]).capitalize()} costs {first[1]} and"
    f" {article(second[0])} costs {second[1]}. How much do {both} cost"
    " together?"
  )


def _arithmetic_chance(*about) -> float:
  (_, one), (_, other) = terms(*about)
  totals = {
    i * one + j * other for i, j in itertools.product(range(4), repeat=2)
  }
  return 1 / (len(totals) - 1)  # Something is always there.


def _read_text(*shapes: str) -> str:
  return f"What colours do {join(['the ' + s for s in shapes])} have?"


def _read(scenes: Sequence[Scene], *shapes: str) -> str | None:
  found = [_only(scenes[0], shape) for shape in shapes]
  if None in found:
    return None
  return join([thing.colour for thing in found if thing])


def _several(scenes: Sequence[Scene], shape: str, colour: str, _) -> str | None:
  found = [i for i, scene in enumerate(scenes) if where(scene, shape, colour)]
  return str(found[0] + 1) if len(found) == 1 else None


def in_order(scene: Scene) -> list[Thing]:
  """Returns the things of a scene as one reads: by rows, from the left."""
  third = scene.size / 3
  return sorted(
    scene.things, key=lambda t: (t.place[1] // third, t.place[0], t.place[1])
  )


def name(thing: Thing) -> str:
  """Returns colour and shape, such as "red star"."""
  return f"{thing.colour} {thing.shape}"


def listed(kinds: Sequence[Kind]) -> str:
  """Lists things, such as "a red star and an orange ring"."""
  return join([article(f"{colour} {shape}") for shape, colour in kinds])


def _describe(scenes: Sequence[Scene]) -> str:
  return listed([(t.shape, t.colour) for t in in_order(scenes[0])])


KINDS: dict[str, Rule] = {
  "attribute": Rule(
    _attribute_text, _attribute, _attribute_spots, lambda *_: 1 / 8
  ),
  "exists": Rule(
    lambda shape, colour: f"Is there {article(f'{colour} {shape}'.strip())}?",
    lambda scenes, *kind: _yes(bool(where(scenes[0], *kind))),
    lambda scenes, *kind: _spots(scenes, kind),
    lambda *_: 1 / 2,
  ),
  "count": Rule(
    lambda wanted, value: (
      f"How many {plural(value) if wanted == 'shape' else value + ' things'}"
      " are there?"
    ),
    lambda scenes, *about: str(len(where(scenes[0], *_named(*about)))),
    lambda scenes, *about: _spots(scenes, _named(*about)),
    lambda *_: 1 / 5,
  ),
  "relation": Rule(
    lambda side, shape: f"What is {side} the {shape}?",
    _relation,
    _relation_spots,
    lambda *_: 1 / 7,
  ),
  "compare": Rule(
    lambda one, other: f"Are there more {plural(one)} than {plural(other)}?",
    _compare,
    lambda scenes, *shapes: _spots(scenes, *((s, "") for s in shapes)),
    lambda *_: 1 / 2,
  ),
  "arithmetic": Rule(
    _arithmetic_text,
    lambda scenes, *about: str(costs(scenes, terms(*about))),
    lambda scenes, *about: _spots(scenes, *((s, "") for s, _ in terms(*about))),
    _arithmetic_chance,
  ),
  "read_two": Rule(
    _read_text,
    _read,
    lambda scenes, *shapes: _spots(scenes, *((s, "") for s in shapes)),
    lambda *shapes: 8.0 ** -len(shapes),
  ),
  "several": Rule(
    lambda shape, colour, count: (
      f"In which of the {count} pictures is the {shape} {colour}?"
    ),
    _several,
    lambda scenes, shape, colour, _: _spots(scenes, (shape, "")),
    lambda shape, colour, count: 1 / count,
  ),
  "describe": Rule(
    lambda: "What is in the picture?",
    _describe,
    lambda scenes: _spots(scenes, ("", "")),
    lambda: 0.0,
  ),
}

_SHAPE, _COLOUR = f"({'|'.join(SHAPES)})", f"({'|'.join(COLOURS)})"
_SHAPES = {plural(shape): shape for shape in SHAPES}
_PARSERS: tuple[tuple[str, Callable[..., Question]], ...] = (
  (
    rf"what colour is the {_SHAPE}",
    lambda shape: Question("attribute", ("colour", shape)),
  ),
  (
    rf"what shape is the {_COLOUR} thing",
    lambda colour: Question("attribute", ("shape", colour)),
  ),
  (
    rf"is there an? (?:{_COLOUR} )?{_SHAPE}",
    lambda colour, shape: Question("exists", (shape, colour or "")),
  ),
  (
    rf"how many {_COLOUR} things are there",
    lambda colour: Question("count", ("colour", colour)),
  ),
  (
    rf"how many ({'|'.join(_SHAPES)}) are there",
    lambda shapes: Question("count", ("shape", _SHAPES[shapes])),
  ),
  (
    rf"what is ({'|'.join(SIDES)}) the {_SHAPE}",
    lambda side, shape: Question("relation", (side, shape)),
  ),
)


def parse(text: str) -> Question | None:
  """Reads a question that asks for one thing; None if it is another.

  These are the kinds attribute, exists, count and relation; letters' case and
  the question mark don't matter.
  """
  asked = " ".join(text.lower().split()).rstrip("?. ")
  for pattern, make in _PARSERS:
    found = re.fullmatch(pattern, asked)
    if found:
      return make(*found.groups())
  return None
