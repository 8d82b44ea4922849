"""What asking in several calls changes, with an oracle's eye. Prints tables.

  python -m experiments.asking

The eye of `mmrl.worlds.scenes.sentences.oracle` answers simple questions about
a drawn scene and errs at a known rate; minds are scripts that never err. So the
tables say what a strategy's way of asking makes of an eye, not how well some
model plans. Each number has a 95 % bootstrap interval over questions of all
seeds; the eye's errors and the scenes are of the seed.

looks: ProReason and VIC against asking at once, by the looks that a question
  needs. A dispatcher's reply can't be read once in ten times.
blind: VIC's plan without the picture against a plan that has seen it. Whoever
  sees the picture takes its first impression of what is asked, wrong at a known
  rate, for granted, and has it confirmed.
revised: CVR-LLM's first description, of one thing at random, and the revised
  one: how often it tells what is asked, and how often the answer is right.
examples: CVR-LLM with the nearest examples against random ones. The mind knows
  how to answer if an example is of the question's kind, else it says nothing.

Hardware and time: one CPU core, about three minutes.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
import functools
import json
import re
import typing
import zlib

from experiments import arguments
from mmrl.errors import UserError

# Imported where it is used, so that a mistyped flag is answered at once.
if typing.TYPE_CHECKING:
  from mmrl.strategies import Ask

TABLES = ("looks", "blind", "revised", "examples")
KINDS = ("attribute", "compare", "arithmetic", "read_two")


def chance(*names) -> float:
  """A number in [0, 1) that is the same for the same names."""
  return zlib.crc32("\n".join(map(str, names)).encode()) / 2**32


def looks(question) -> list[str]:
  """The simple questions whose answers a question needs."""
  from mmrl.worlds.scenes import questions
  from mmrl.worlds.scenes.things import plural

  if question.kind == "read_two":
    return [f"What colour is the {shape}?" for shape in question.about]
  if question.kind == "compare":
    return [f"How many {plural(s)} are there?" for s in question.about]
  if question.kind == "arithmetic":
    terms = questions.terms(*question.about)
    return [f"How many {plural(shape)} are there?" for shape, _ in terms]
  return [question.text]


def conclude(question, seen: Sequence[str]) -> str:
  """The answer that follows from what was seen."""
  from mmrl.worlds.scenes import questions

  if len(seen) < len(looks(question)):
    return "?"
  try:
    if question.kind == "read_two":
      return questions.join(list(seen))
    if question.kind == "compare":
      return "yes" if int(seen[0]) > int(seen[1]) else "no"
    if question.kind == "arithmetic":
      terms = questions.terms(*question.about)
      pairs = zip(seen, terms, strict=True)
      return str(sum(int(count) * each for count, (_, each) in pairs))
  except ValueError:  # the eye couldn't tell
    return "?"
  return seen[0]


class World:
  """Questions about scenes, an eye for them, and minds that know the texts."""

  def __init__(self, source, count: int, error: float, seed: int):
    self.examples = [source[i] for i in range(count)]
    self.error, self.seed = error, seed
    self._scenes, self._questions = {}, {}
    self._dispatched: collections.Counter[str] = collections.Counter()
    for example in self.examples:
      picture = example.picture["image"]
      self._scenes[picture.tobytes()] = example.extra["scenes"][0]
      self._questions[example.question] = example.extra["question"]

  def scene(self, ask: Ask):
    """The scene that is shown."""
    from mmrl.strategies import shown

    return self._scenes[shown(ask.messages)[0]["image"].tobytes()]

  def look(self, scene, text: str) -> str:
    """The eye's answer to a simple question."""
    from mmrl.worlds.scenes import sentences

    return sentences.oracle(scene, text, error=self.error, seed=self.seed)

  def question(self, text: str):
    """The question that a text of a mind is about: its longest known one."""
    known = [one for one in self._questions if one in text]
    return self._questions[max(known, key=len)]

  def see(self, ask: Ask) -> str:
    """The eye on its own: the last line is what it is asked."""
    return self.look(self.scene(ask), _text(ask).splitlines()[-1])

  # ProReason.

  def dispatch(self, ask: Ask) -> str:
    text = _text(ask)
    question, memory = self.question(text), _between(text, "known so far:\n")
    self._dispatched[text] += 1
    if chance(self.seed, text, self._dispatched[text]) < 0.1:
      return "I would ask somebody."
    wanted = looks(question)
    looking = len(memory) < len(wanted)
    expert = "Vision Expert" if looking else "Reasoning Expert"
    asked = wanted[len(memory)] if looking else question.text
    return json.dumps({"EXPERT name": expert, "Question": asked})

  def reason(self, ask: Ask) -> str:
    *seen, last = _text(ask).splitlines()[-20:]
    question = self.question(last)
    count = len(looks(question))
    return f"Final Answer: {conclude(question, seen[-count:])}"

  def referee(self, ask: Ask) -> str:
    text = _text(ask)
    needed = len(looks(self.question(text)))
    enough = len(_between(text, "What is known:\n")) >= needed + (needed > 1)
    return f"Answer: {'CAN_SOLVE' if enough else 'UNSOLVABLE'}"

  def summarise(self, ask: Ask) -> str:
    return _between(_text(ask), "What is known:\n")[-2]

  # VIC.

  def plan(self, ask: Ask) -> str:
    """Plans to look; with the picture, to confirm what it seems to show."""
    from mmrl.strategies import shown

    question = self.question(_text(ask))
    if not shown(ask.messages):
      return "\n".join([*looks(question), "Answer."])
    seen = [self._impression(self.scene(ask), text) for text in looks(question)]
    return "\n".join([*(f"Confirm: {one}" for one in seen), "Answer."])

  def _impression(self, scene, text: str) -> str:
    from mmrl.worlds.scenes import sentences

    # Of another seed: first impressions and looks err independently.
    seed = self.seed + 1000
    return sentences.oracle(scene, text, error=self.misled, seed=seed)

  misled = 0.0

  def eyes(self, ask: Ask) -> str:
    """Carries out the steps, or answers from what they have found."""
    text = _text(ask)
    if "Reasoning steps:\n" in text:
      steps = _between(text, "Reasoning steps:\n")
      bare = [step.partition(". ")[2] for step in steps]
      return "\n".join(
        step.removeprefix("Confirm: ")
        if step.startswith("Confirm: ")
        else self.look(self.scene(ask), step)
        for step in bare
      )
    seen = _between(text, "Information about the picture:\n")
    return conclude(self.question(text), seen)

  # CVR-LLM.

  def caption(self, ask: Ask) -> str:
    """Answers a simple question; of anything else it names one thing."""
    from mmrl.worlds.scenes import questions, sentences

    scene, text = self.scene(ask), _text(ask)
    if questions.parse(text) is not None:
      return f"{text} {self.look(scene, text)}"
    facts = [fact.text for fact in sentences.facts([scene])]
    return facts[int(chance(self.seed, text, facts) * len(facts))]

  def think(self, ask: Ask) -> str:
    """Writes the prompt and the question, and answers what is described."""
    text = _text(ask)
    if "Write the one request" in text:
      return "Describe the picture."
    if "Which one question" in text:
      return self.question(text).text
    *examples, own = text.split("Description of the picture: ")
    question = self.question(own)
    if len(examples) > 1 and self.taught:
      kinds = {self.question(one).kind for one in examples[1:]}
      if question.kind not in kinds:
        return "?"
    seen = own.partition("Task:")[0]
    _, asked, told = seen.partition(question.text)
    return told.strip() if asked else _in_sentence(question, seen)

  taught = False


def _in_sentence(question, text: str) -> str:
  """Finds an attribute in a sentence such as "There is a red star."."""
  if question.kind == "attribute":
    asked, known = question.about
    pattern = rf"(\w+) {known}" if asked == "colour" else rf"{known} (\w+)"
    found = re.search(pattern, text)
    if found:
      return found[1]
  return "?"


def _text(ask: Ask) -> str:
  from mmrl.strategies import written

  return written(ask.messages)


def _between(text: str, start: str) -> list[str]:
  """The lines behind a heading, up to an empty one."""
  behind = text.partition(start)[2].partition("\n\n")[0]
  return [line for line in behind.splitlines() if line]


def run(world: World, strategy: Callable, roles: dict[str, Callable]):
  """Answers all questions; returns results and whether each is right."""
  from mmrl import strategies
  from mmrl.strategies.responders import Scripted

  models = {role: Scripted(script) for role, script in roles.items()}
  found = strategies.run(strategy, world.examples, models).results
  right = [
    one.answer is not None and one.answer.text == example.answer
    for one, example in zip(found, world.examples, strict=True)
  ]
  return found, right


def share(values: Sequence[float]) -> str:
  """The mean with its 95 % interval, in percent."""
  import numpy as np

  from mmrl.benchmarks.contract import means
  from mmrl.benchmarks.intervals import estimate

  one = estimate(means, {"x": np.array(values, float)})["x"]
  return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})"


def worlds(flags, error: float, **options) -> Iterator[World]:
  """A world of each seed."""
  from mmrl import data

  for seed in flags.seeds:
    source = data.Scenes(
      split="test", count=flags.questions, seed=seed, **options
    )
    yield World(source, flags.questions, error, seed)


def measure_looks(flags) -> Iterator[list[str]]:
  from mmrl import strategies

  yield ["eye errs", "looks", "at once", "VIC", "ProReason", "it looks"]
  for error in (0.0, 0.1, 0.2):
    for needed, options in (
      (1, {"kinds": ["attribute"]}),
      (2, {"kinds": ["compare", "arithmetic", "read_two"]}),
      (3, {"kinds": ["read_two"], "reads": 3}),
      (4, {"kinds": ["read_two"], "reads": 4}),
    ):
      right = {"direct": [], "vic": [], "proreason": []}
      asked = []
      for world in worlds(flags, error, **options):
        right["direct"] += run(world, strategies.direct, {"policy": world.see})[
          1
        ]
        roles = {"planner": world.plan, "eyes": world.eyes}
        right["vic"] += run(world, strategies.vic, roles)[1]
        found, ok = run(
          world,
          functools.partial(strategies.proreason, attempts=16),
          {
            "dispatcher": world.dispatch,
            "vision": world.see,
            "reasoner": world.reason,
            "referee": world.referee,
            "summariser": world.summarise,
          },
        )
        right["proreason"] += ok
        asked += [
          sum(ask.model == "vision" for ask, _ in one.trace) for one in found
        ]
      exactly = sum(count == needed for count in asked) / len(asked)
      yield [
        f"{error:.0%}",
        str(needed),
        *map(share, right.values()),
        f"{sum(asked) / len(asked):.2f}, as needed in {exactly:.1%}",
      ]


def measure_blind(flags) -> Iterator[list[str]]:
  from mmrl import strategies

  yield ["first impressions err", "plan without the picture", "with it"]
  for misled in (0.0, 0.2, 0.4):
    right = {"single": [], "visual": []}
    for world in worlds(flags, 0.05, kinds=KINDS):
      world.misled = misled
      roles = {"planner": world.plan, "eyes": world.eyes}
      for mode, found in right.items():
        strategy = functools.partial(strategies.vic, mode=mode)
        found += run(world, strategy, roles)[1]
    yield [f"{misled:.0%}", *map(share, right.values())]


def _cvr(world: World, **options):
  from mmrl import strategies

  return run(
    world,
    functools.partial(strategies.cvr_llm, **options),
    {"captioner": world.caption, "reasoner": world.think},
  )


def measure_revised(flags) -> Iterator[list[str]]:
  yield ["eye errs", "description", "tells what is asked", "answer is right"]
  for error in (0.0, 0.1):
    for revise in (False, True):
      held, right = [], []
      for world in worlds(flags, error, kinds=["attribute"]):
        found, ok = _cvr(world, revise=revise)
        right += ok
        held += [one.answer.text != "?" for one in found]
      name = "revised" if revise else "the first"
      yield [f"{error:.0%}", name, share(held), share(right)]


def measure_examples(flags) -> Iterator[list[str]]:
  import pathlib
  import tempfile

  from mmrl.strategies.evaluating import items

  yield ["examples", "answer is right"]
  kinds = ["attribute", "exists", "count", "relation"]
  right: dict[str, list[bool]] = {"random": [], "nearest": []}
  for world in worlds(flags, 0.0, kinds=kinds):
    bank = _bank(world, flags, kinds)
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / "items.jsonl"
      lines = [
        json.dumps(vars(items.item(i, one))) for i, one in enumerate(bank)
      ]
      path.write_text("\n".join(lines) + "\n")
      world.taught = True
      for choose, found in right.items():
        found += _cvr(world, bank=str(path), k=2, choose=choose)[1]
  for choose, found in right.items():
    yield [choose, share(found)]


def _bank(world: World, flags, kinds: Sequence[str]):
  """Answers of another split, whose questions the mind knows as well."""
  from mmrl import data

  source = data.Scenes(split="train", count=200, seed=world.seed, kinds=kinds)
  bank = World(source, 200, world.error, world.seed)
  world._questions |= bank._questions
  return _cvr(bank)[0]


MEASURES: dict[str, Callable[..., Iterator[list[str]]]] = {
  "looks": measure_looks,
  "blind": measure_blind,
  "revised": measure_revised,
  "examples": measure_examples,
}


def main() -> None:
  """Prints each table, a row when it is known."""
  parser = arguments.Parser(__doc__)
  parser.add_argument(
    "--tables", nargs="+", default=list(TABLES), choices=TABLES, help="which"
  )
  parser.add_argument("--questions", type=int, default=200, help="of each seed")
  parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of scenes and eye"
  )
  flags = parser.parse()
  if flags.questions < 1 or min(flags.seeds) < 0:
    raise UserError(
      "expected --questions of at least 1 and --seeds of at least 0, found"
      f" {flags.questions} and {flags.seeds}"
    )
  for name in flags.tables:
    rows = MEASURES[name](flags)
    head = next(rows)
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    for row in rows:
      print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
  arguments.run(main)
