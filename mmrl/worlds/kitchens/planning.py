"""What to do next: planning questions in the words of SEED-Bench-R1.

A goal says in which order things are to be brought where; the video shows the
first of these actions and others, a picture what is seen now (arXiv
2503.24376); where none is done, there is no video. Goals of "L3" have things
that training hasn't.
"""

from collections.abc import Sequence

from mmrl.worlds.draws import Draws
from mmrl.worlds.kitchens import drawing
from mmrl.worlds.kitchens.asking import (
  Item,
  Options,
  begin,
  chosen,
  distract,
  fits,
  play,
)
from mmrl.worlds.kitchens.plan import Fixture

KIND = "planning"
_STEPS = 3
_TRIES = 100


def item(draws: Draws, options: Options) -> Item:
  """Makes an item; none, one or two of the goal's three steps are done.

  Args:
    draws: of the item.
    options: the split among them.
  """
  for _ in range(_TRIES):
    found = _try(draws, options, draws.below(_STEPS))
    if found is not None:
      return found
  raise RuntimeError(f"no kitchen for planning in {_TRIES} tries")


def action(thing: str, fixture: Fixture) -> str:
  """Says what to do, such as "bring the cup to the sink"."""
  return f"bring the {thing} to the {fixture.called('of')}"


def _try(draws: Draws, options: Options, done: int) -> Item | None:
  script = begin(draws, options, _STEPS)
  things = [*script.places]
  starts = [script.places[thing] for thing in things]
  ends = [f for f in script.plan.fixtures if f.name not in starts]
  steps = list(zip(things, draws.some(ends, _STEPS), strict=True))
  actions = []
  for thing, target in steps[:done]:
    actions.append(lambda t=thing, f=target: script.carry(t, f))
  others = [distract(draws, script, [], starts)] * draws.between(1, 2)
  kitchen = play(draws, script, [*actions, *others])
  if not fits(kitchen):
    return None
  goal = _goal(steps)
  right = action(*steps[done])
  wrong = [action(*step) for step in steps if action(*step) != right]
  fixtures = script.plan.fixtures
  more = [(t, f) for t in things for f in fixtures if (t, f) not in steps]
  wrong += [action(*one) for one in draws.some(more, 5)]
  # The other steps of the goal are always to be chosen from.
  extra = draws.pick(wrong[2:])
  choices, correct = chosen(draws, right, [*wrong[:2], extra], 4)
  # Who can't see the video still knows which steps the goal names.
  named = {action(*step): f"step {i + 1}" for i, step in enumerate(steps)}
  roles = tuple(named.get(choice, "another") for choice in choices)
  narration = [
    (f"{action(m.thing, kitchen.plan.fixture(m.to))}", m.start, m.end)
    for m in kitchen.events
    if m.kind == "move"
  ]
  return Item(
    KIND,
    kitchen,
    "Considering the progress shown in the video and my current observation in"
    f" the last frame, what action should I take next in order to {goal}?",
    "What action should I take next?",
    choices,
    correct,
    {"goal": goal, "progress": tuple(narration), "next": right},
    time=drawing.times(kitchen, options.fps)[-1],
    negatives=tuple(wrong),
    roles=roles,
  )


def _goal(steps: Sequence[tuple[str, Fixture]]) -> str:
  """Says what is to be reached, in order."""
  (first, second, third) = (action(*step) for step in steps)
  return f"{first}, then {second} and at last {third}"
