"""Kitchens with questions: what every item has, and how scripts are written.

Splits are those of SEED-Bench-R1 (arXiv 2503.24376): "train"; "L1", other
videos of training's kitchens, whose first action begins at an odd tenth of a
second, training's at an even one; "L2", floor plans and floors that training
hasn't; "L3", these with things and goals that it hasn't either. So no split
shares an item with another. Phrasings and fixtures are the same in all.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from mmrl.chains import writing
from mmrl.errors import UserError
from mmrl.worlds import palette
from mmrl.worlds.draws import Draws
from mmrl.worlds.items import Asked
from mmrl.worlds.kitchens import drawing
from mmrl.worlds.kitchens.kitchen import (
  LONGEST,
  OTHER_THINGS,
  THINGS,
  Event,
  Kitchen,
  Script,
)
from mmrl.worlds.kitchens.plan import DOORS, KNOWN, OTHER, plan

SPLITS = ("train", "L1", "L2", "L3")
LETTERS = "ABCDE"


@dataclasses.dataclass(frozen=True)
class Options:
  """How kitchens and questions are made.

  Attributes:
    split: one of `SPLITS`.
    kinds: of questions; items take them in turn.
    seed: another seed gives other items of the split.
    size: side of the frames, a multiple of 112.
    view: "above" or "turning".
    fps: frames per second.
    priors: whether answers are as uneven as in HD-EPIC; else even.
  """

  split: str
  kinds: Sequence[str]
  seed: int = 0
  size: int = palette.SIDE
  view: str = "above"
  fps: float = 2.0
  priors: bool = True

  def check(self, kinds: Sequence[str]) -> None:
    """Checks the values.

    Raises:
      UserError: if an option has no such value.
    """
    palette.check_one_of("split", self.split, SPLITS)
    palette.check_list("kinds", self.kinds, kinds)
    if not self.kinds:
      raise UserError(
        f"kinds: expected some of {', '.join(kinds)}, found none; name one"
      )
    palette.check_number("seed", self.seed, 0, 2**32 - 1)
    palette.check_size(self.size)
    palette.check_one_of("view", self.view, drawing.VIEWS)
    palette.check_number("fps", self.fps, 1.0, 30.0)
    palette.check_flag("priors", self.priors)

  @property
  def things(self) -> tuple[str, ...]:
    """Things that the split has."""
    return OTHER_THINGS if self.split == "L3" else THINGS


@dataclasses.dataclass(frozen=True)
class Item:
  """A question about a kitchen, with choices.

  Attributes:
    kind: of question.
    kitchen: the video.
    question: in the benchmark's words.
    stem: the question without places and times.
    choices: in the order in which they are shown.
    correct: index of the right one.
    gold: what rewards compare a chain of thought with; see `chains.writing`.
    box, time: of what the question points at; None and 0 where it names it.
    negatives: wrong answers to choose from, where the benchmark lists them.
    roles: what tells the choices apart for who can't see the video, where it
      isn't their text.
  """

  kind: str
  kitchen: Kitchen
  question: str
  stem: str
  choices: tuple[str, ...]
  correct: int
  gold: Mapping[str, Any]
  box: palette.Box | None = None
  time: float = 0.0
  negatives: tuple[str, ...] = ()
  roles: tuple[str, ...] = ()

  @property
  def chain(self) -> str:
    """A chain of thought that is right in every line."""
    if "next" in self.gold:
      done = [f"Done: {text}" for text, *_ in self.gold["progress"]]
      return "\n".join([*done, f"Next: {self.gold['next']}"])
    return writing.render_lines(self.kind, self.gold)

  @property
  def letter(self) -> str:
    """The letter of the right choice."""
    return LETTERS[self.correct]

  @property
  def asked(self) -> Asked:
    """The question as one sees it who can't see the video."""
    seen = self.roles or self.choices
    return Asked(self.kind, self.stem, seen[self.correct], seen, 1 / len(seen))

  @property
  def text(self) -> str:
    """The question with its choices, a line each."""
    lines = [f"{a}. {b}" for a, b in zip(LETTERS, self.choices, strict=False)]
    return "\n".join([self.question, *lines])


def begin(draws: Draws, options: Options, count: int) -> Script:
  """Begins a script in a kitchen of a split.

  Args:
    draws: of the item.
    options: the split among them.
    count: number of things.
  """
  numbers = KNOWN if options.split in ("train", "L1") else OTHER
  things = draws.some(options.things, min(count, len(options.things)))
  tick = 2 * draws.between(1, 4) + (options.split == "L1")
  return Script(draws, plan(draws.pick(numbers)), things, tick)


def play(draws: Draws, script: Script, actions: Sequence[Callable[[], None]]):
  """Runs actions in order and ends the kitchen, at least 8 seconds long."""
  for action in actions:
    action()
  left = max(0, round(80 - 10 * script.seconds))
  return script.end(left + draws.between(5, 10))


def distract(
  draws: Draws, script: Script, things: Sequence[str], doors: Sequence[str]
) -> Callable[[], None]:
  """Returns an action that has nothing to do with what is asked.

  Args:
    draws: of the item.
    script: of the kitchen.
    things: that may be moved.
    doors: names of fixtures that may not be opened.
  """
  free = [
    one
    for one in script.plan.fixtures
    if one.kind in DOORS and one.name not in doors
  ]

  def action() -> None:
    if things and (not free or draws.below(2)):
      thing = draws.pick(things)
      near = (script.places[thing], *doors)
      fixtures = [f for f in script.free(thing) if f.name not in near]
      if fixtures and script.places[thing] not in doors:
        script.carry(thing, draws.pick(fixtures))
        return
    if free:
      script.use(draws.pick(free))
    else:
      script.wait(draws.between(5, 10))

  return action


def fits(kitchen: Kitchen) -> bool:
  """Tells whether a video isn't too long."""
  return kitchen.seconds <= LONGEST


def bbox(box: palette.Box) -> str:
  """Writes a box as HD-EPIC does."""
  return f"<BBOX {' '.join(str(float(v)) for v in box)}>"


def chosen(
  draws: Draws, right: str, others: Sequence[str], count: int = 5
) -> tuple[tuple[str, ...], int]:
  """Mixes the right answer with others; returns choices and its index."""
  wrong = draws.some([*dict.fromkeys(others)], count - 1)
  correct = draws.below(count)
  return (*wrong[:correct], right, *wrong[correct:]), correct


def between(low: float, high: float, fps: float) -> list[float]:
  """Lists times of frames in [low, high)."""
  first = -int(-low * fps // 1)
  return [
    i / fps for i in range(first, int(high * fps) + 2) if low <= i / fps < high
  ]


def moved(
  draws: Draws, options: Options, count: int, others: int
) -> tuple[Kitchen, str]:
  """Writes a kitchen in which one thing is moved `count` times."""
  script = begin(draws, options, 3)
  thing, *rest = script.places
  acts = [*[True] * count, *[False] * others]

  def carry() -> None:
    script.carry(thing, draws.pick(script.free(thing)))

  actions = [
    carry if own else distract(draws, script, rest, [])
    for own in draws.some(acts, len(acts))
  ]
  return play(draws, script, actions), thing


def pointed_at(
  draws: Draws, options: Options, kitchen: Kitchen, thing: str, low, high
) -> tuple[Any, float] | None:
  """Draws a frame in [low, high) that shows a thing: its box, and when."""
  if not fits(kitchen):
    return None
  size, view = options.size, options.view
  last = drawing.times(kitchen, options.fps)[-1]
  seen = [
    (box, t)
    for t in between(low, min(high, last + 1e-6), options.fps)
    if (box := drawing.thing_box(kitchen, thing, t, size=size, view=view))
  ]
  return draws.pick(seen) if seen else None


def called(kitchen: Kitchen, moves: Sequence[Event]) -> list[tuple[str, str]]:
  """Names where moves begin and end, for people."""
  one = kitchen.plan.fixture
  return [(one(m.from_).called("of"), one(m.to).called("of")) for m in moves]


def windows(events: Sequence[Event]) -> tuple[tuple[float, float], ...]:
  """Returns begin and end of events, in seconds."""
  return tuple((e.start, e.end) for e in events)
