"""Sentences about scenes: facts, thoughts, and an eye that one may ask."""

from collections.abc import Sequence
import dataclasses
import zlib

from mmrl.worlds import palette
from mmrl.worlds.draws import Draws
from mmrl.worlds.scenes import questions
from mmrl.worlds.scenes.questions import Question, join, name
from mmrl.worlds.scenes.scene import COLOURS, Scene, replace
from mmrl.worlds.scenes.things import SHAPES, Thing, plural

STYLES = ("direct", "short", "steps", "list")
# What the eye says to what it can't read, or what has no exact answer.
UNSEEN = "I can't tell."
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
  """A sentence that is true of a picture.

  Attributes:
    text: the sentence.
    relevant: whether the answer to the question depends on it.
  """

  text: str
  relevant: bool


def place(scene: Scene, thing: Thing) -> str:
  """Says in which third of the picture's height and width a thing is."""
  x, y = (min(v * 3 // scene.size, 2) for v in thing.place)
  row, column = ("top", "", "bottom")[y], ("left", "", "right")[x]
  if row and column:
    return f"at the {row} {column}"
  if not row and not column:
    return "in the middle"
  return f"at the {row}" if row else f"on the {column}"


def facts(
  scenes: Sequence[Scene], question: Question | None = None
) -> tuple[Fact, ...]:
  """States what is in pictures, one fact a sentence.

  Each thing with its colour and place, as one reads, how many there are of each
  shape, and for a question about a relation where the things are to each other.

  Args:
    scenes: the pictures; of several, sentences say which.
    question: marks the facts that its answer depends on.
  """
  spots = {*(questions.relevant(question, scenes) if question else ())}
  found = []
  for picture, scene in enumerate(scenes):
    start = f"In picture {picture + 1}, there" if len(scenes) > 1 else "There"
    things = questions.in_order(scene)
    for thing in things:
      text = (
        f"{start} is {questions.article(name(thing))} {place(scene, thing)}."
      )
      relevant = (picture, scene.things.index(thing)) in spots
      found.append(Fact(text, relevant))
    for shape in dict.fromkeys(thing.shape for thing in things):
      same = questions.where(scene, shape)
      if len(same) > 1:
        text = f"{start} are {_NUMBERS[len(same)]} {plural(shape)}."
        found.append(Fact(text, all((picture, i) in spots for i in same)))
  if question and question.kind == "relation":
    side, shape = question.about
    other = questions.answer(question, scenes)
    found.append(Fact(f"The {other} is {side} the {shape}.", True))
  return tuple(found)


def misread(scene: Scene, index: int, draws: Draws) -> Scene:
  """Returns the scene as one sees it who errs about one thing.

  Its colour is another, or its shape, one as often as the other.
  """
  thing = scene.things[index]
  if draws.below(2):
    colour = draws.pick([c for c in COLOURS if c != thing.colour])
    return replace(scene, index, (thing.shape, colour))
  shape = draws.pick([s for s in SHAPES if s != thing.shape])
  return replace(scene, index, (shape, thing.colour))


@dataclasses.dataclass(frozen=True, slots=True)
class Thought:
  """A thought about a question, with the answer that it comes to.

  Attributes:
    text: the thought.
    answer: what follows from it; wrong only where a thing was misread.
    misread: whether a thing was.
  """

  text: str
  answer: str
  misread: bool


def think(
  question: Question,
  scenes: Sequence[Scene],
  style: str,
  *,
  error: float = 0.0,
  draws: Draws | None = None,
) -> Thought:
  """Writes a thought from what there is.

  Args:
    question: what is asked.
    scenes: the pictures.
    style: "direct" is no thought at all; "short" names only what matters,
      "steps" all things and then what matters, "list" one line for each thing.
    error: probability that the thought is about a scene in which one thing,
      one that matters where there is such, has another colour or shape.
    draws: of the item; needed where `error` is above 0.

  Raises:
    UserError: if the style or the error rate is none.
  """
  palette.check_one_of("style", style, STYLES)
  palette.check_number("error", error, 0.0, 1.0)
  seen, wrong = list(scenes), False
  if error and draws is not None and draws.unit() < error:
    # A question may have no exact answer in what is misread.
    for _ in range(20):
      every = [
        (p, i) for p, s in enumerate(scenes) for i in range(len(s.things))
      ]
      spots = questions.relevant(question, scenes) or every
      picture, i = draws.pick(spots)
      changed = misread(scenes[picture], i, draws)
      tried = [*scenes[:picture], changed, *scenes[picture + 1 :]]
      if questions.answer(question, tried) is not None:
        seen, wrong = tried, True
        break
  answer = questions.answer(question, seen)
  assert answer is not None
  return Thought(_thought(question, seen, style), answer, wrong)


def _thought(question: Question, scenes: Sequence[Scene], style: str) -> str:
  if style == "direct":
    return ""
  seen = facts(scenes, question)
  reason = reasoning(question, scenes)
  if style == "list":
    return "\n".join([*(f"- {fact.text}" for fact in seen), reason])
  told = [fact.text for fact in seen if style == "steps" or fact.relevant]
  if style == "steps":
    told = ["First I look at all of it.", *told, f"Asked is: {question.text}"]
  return " ".join([*told, reason])


def reasoning(question: Question, scenes: Sequence[Scene]) -> str:
  """Says how the answer follows from the facts."""
  answer, scene = questions.answer(question, scenes), scenes[0]
  if question.kind == "exists":
    words = " ".join(filter(None, reversed(question.about)))
    return f"I see {'a' if answer == 'yes' else 'no'} {words}, so: {answer}."
  if question.kind == "compare":
    counts = [len(questions.where(scene, s)) for s in question.about]
    relation = "more" if answer == "yes" else "not more"
    return f"{counts[0]} is {relation} than {counts[1]}, so: {answer}."
  if question.kind == "arithmetic":
    terms = questions.terms(*question.about)
    products = [
      f"{len(questions.where(scene, shape))} x {each}" for shape, each in terms
    ]
    return f"{' + '.join(products)} = {answer}."
  if question.kind == "count":
    found = [scene.things[i] for _, i in questions.relevant(question, scenes)]
    named = join([questions.article(name(thing)) for thing in found])
    return f"I count {named or 'none'}: {answer}."
  if question.kind == "several":
    return f"It is picture {answer}."
  return f"So: {answer}."


def oracle(
  scene: Scene, text: str, *, error: float = 0.0, seed: int = 0
) -> str:
  """Answers one simple question about a picture, as an eye without a mind.

  It reads questions of the kinds attribute, exists, count and relation; to
  anything else, and to what has no exact answer, it says `UNSEEN`.

  Args:
    scene: the picture.
    text: the question.
    error: probability that the answer is of a scene with one thing misread.
    seed: another seed errs elsewhere; the same question about the same scene
      has the same answer.

  Raises:
    UserError: if the error rate is none.
  """
  palette.check_number("error", error, 0.0, 1.0)
  question = questions.parse(text)
  if question is None:
    return UNSEEN
  right = questions.answer(question, [scene])
  draws = Draws(seed, zlib.crc32(repr((question, scene)).encode()))
  if right is None or draws.unit() >= error:
    return UNSEEN if right is None else right
  for _ in range(50):
    spots = questions.relevant(question, [scene])
    every = [(0, i) for i in range(len(scene.things))]
    wrong = misread(scene, draws.pick(spots or every)[1], draws)
    found = questions.answer(question, [wrong])
    if found not in (None, right):
      return found
  return UNSEEN


_ELSEWHERE = (
  "The train leaves at nine in the morning.",
  "Bread was cheaper in those years.",
  "Nobody had locked the door of the library.",
  "Rain is expected in the north until the weekend.",
  "The letter had been on its way for two months.",
  "Her brother repairs clocks in a small town.",
  "The bridge was closed during the winter.",
  "Most of the guests had left before midnight.",
  "A new teacher came to the school in spring.",
  "The map shows every street of the old harbour.",
)


def filler(draws: Draws, words: int) -> str:
  """Writes text that has nothing to do with pictures.

  Args:
    draws: of the item.
    words: the least number of words; sentences are whole.
  """
  found: list[str] = []
  while sum(len(text.split()) for text in found) < words:
    found.append(draws.pick(_ELSEWHERE))
  return " ".join(found)
