"""Six kinds of questions in HD-EPIC's words, as EgoReasoner takes them.

HD-EPIC (arXiv 2502.04144) has them as multiple choice of five;
EgoReasoner (arXiv 2603.06561) trains on these kinds.
"""

from collections.abc import Callable

from mmrl.chains.writing import stamp
from mmrl.worlds.draws import Draws
from mmrl.worlds.kitchens import drawing, movements, planning
from mmrl.worlds.kitchens.asking import (
  SPLITS,
  Item,
  Options,
  bbox,
  begin,
  chosen,
  distract,
  fits,
  moved,
  play,
  pointed_at,
  windows,
)
from mmrl.worlds.kitchens.plan import DOORS, UNIQUE, clock, names

# Degrees off the middle of an hour, at most, so that the hour is clear.
_CLEAR = 9.0
_TRIES = 400


def item(options: Options, index: int) -> Item:
  """Makes an item: a pure function of options and index.

  Args:
    options: seed, split and kinds among them.
    index: of the item, from 0 on.
  """
  draws = Draws(options.seed, SPLITS.index(options.split), index)
  kind = options.kinds[index % len(options.kinds)]
  if kind == planning.KIND:
    return planning.item(draws, options)
  wanted = _WANTED[kind](draws, options.priors)
  for _ in range(_TRIES):
    found = _MAKERS[kind](draws, options, wanted)
    if found is not None:
      return found
  raise RuntimeError(f"no kitchen for {kind} in {_TRIES} tries")


def _spread(draws: Draws, priors: bool, often: int, share: float, low, high):
  """Draws a number that is `often` with a probability, as in HD-EPIC."""
  if priors and draws.unit() < share:
    return often
  rest = [n for n in range(low, high + 1) if not priors or n != often]
  return draws.pick(rest)


# What is drawn once and then sought: so tries don't change how often it is.
_WANTED: dict[str, Callable[[Draws, bool], int | None]] = {
  # "0" is right in 120 of 300, "3" in 73 of 200, one move in 341 of 500.
  "fixture_interaction_counting": lambda draws, priors: _spread(
    draws, priors, 0, 0.4, 0, 4
  ),
  "fixture_location": lambda draws, _: draws.between(1, 12),
  "object_location": lambda draws, _: draws.below(2),
  "object_movement_itinerary": lambda draws, priors: _spread(
    draws, priors, 1, 0.68, 1, 3
  ),
  "object_movement_counting": lambda draws, priors: _spread(
    draws, priors, 3, 0.365, 1, 5
  ),
  "stationary_object_localization": lambda draws, _: None,
}


def _interactions(draws: Draws, options: Options, count: int) -> Item | None:
  """How many times a door was opened, or closed."""
  script = begin(draws, options, 2)
  doors = [one for one in script.plan.fixtures if one.kind in DOORS]
  fixture, verb = draws.pick(doors), draws.pick(("open", "close"))
  if fixture.name in script.places.values():
    return None
  uses = [lambda: script.use(fixture)] * count
  if verb == "close" and draws.below(2):
    # It stays open at the end: opened more often than closed.
    uses.append(lambda: script.use(fixture, ("open",)))
  elif verb == "open" and count and draws.below(2):
    uses[-1] = lambda: script.use(fixture, ("open",))
  others = [
    distract(draws, script, [*script.places], [fixture.name])
    for _ in range(draws.between(1, 2))
  ]
  order = draws.some(
    [True] * len(uses) + [False] * len(others), len(uses) + len(others)
  )
  actions = [(uses if own else others).pop(0) for own in order]
  kitchen = play(draws, script, actions)
  size, view = options.size, options.view
  seen = [
    (box, t)
    for t in drawing.times(kitchen, options.fps)
    if (box := drawing.fixture_box(kitchen, fixture, t, size=size, view=view))
  ]
  if not seen or not fits(kitchen):
    return None
  box, time = draws.pick(seen)
  events = kitchen.done(verb, fixture.name)
  choices, correct = chosen(
    draws, str(count), [str(n) for n in range(5) if n != count]
  )
  return Item(
    "fixture_interaction_counting",
    kitchen,
    f"How many times did I {verb} the item indicated by bounding box"
    f" {bbox(box)} in {stamp(time)}?",
    f"How many times did I {verb} the item?",
    choices,
    correct,
    {
      "names": (fixture.name,),
      "windows": windows(events),
      "words": verb,
      "count": len(events),
    },
    box,
    time,
  )


def _fixture_location(draws: Draws, options: Options, hour: int) -> Item | None:
  """At which hour of a clock a fixture is, seen from where one looks."""
  script = begin(draws, options, 2)
  actions = [distract(draws, script, [*script.places], []) for _ in range(2)]
  kitchen = play(draws, script, actions)
  seen = []
  for time in drawing.times(kitchen, options.fps):
    viewer = kitchen.viewer(time)
    for one in kitchen.plan.fixtures:
      found, off = clock(viewer.place, viewer.heading, one.middle)
      if one.kind in UNIQUE and found == hour and abs(off) < _CLEAR:
        seen.append((one, time))
  if not seen or not fits(kitchen):
    return None
  fixture, time = draws.pick(seen)
  choices, correct = chosen(
    draws,
    f"{hour} o'clock",
    [f"{h} o'clock" for h in range(1, 13) if h != hour],
  )
  return Item(
    "fixture_location",
    kitchen,
    f"Given the direction I am looking at {stamp(time)}, where is the"
    f" {fixture.kind} located?",
    f"Where is the {fixture.kind} located?",
    choices,
    correct,
    {"names": (fixture.name,), "clock": hour},
    time=time,
  )


def _object_location(draws: Draws, options: Options, put: int) -> Item | None:
  """Where a thing was put, or taken from."""
  kitchen, thing = moved(draws, options, draws.between(1, 2), 1)
  move = draws.pick(kitchen.moves(thing))
  inner = [
    e
    for e in kitchen.events
    if e.kind == ("pick up" if put else "put down") and e.thing == thing
  ]
  when = next(e for e in inner if move.start <= e.start < move.end)
  pointed = pointed_at(draws, options, kitchen, thing, when.start, when.end)
  if pointed is None:
    return None
  (box, time), mark = pointed, bbox(pointed[0])
  fixture = kitchen.plan.fixture(move.to if put else move.from_)
  all_names = names(kitchen.plan.fixtures, "from")
  right = fixture.called("from")
  choices, correct = chosen(draws, right, [n for n in all_names if n != right])
  at = stamp(time)
  if put:
    question = (
      f"Where did I put the object identified by {mark} at {at} after taking it"
      f" at {at}?"
    )
  else:
    question = (
      f"Where did I take the object identified by {mark} at {at} from before"
      f" putting it at {at}?"
    )
  # The reward's window is the put-down, or else the picking up.
  other = "put down" if put else "pick up"
  end = next(
    e
    for e in kitchen.events
    if e.kind == other and e.thing == thing and move.start <= e.start < move.end
  )
  return Item(
    "object_location",
    kitchen,
    question,
    "Where did I put the object?" if put else "Where did I take it from?",
    choices,
    correct,
    {
      "names": (fixture.name,),
      "windows": windows([end]),
      "words": other,
      "fixture": fixture.name,
    },
    box,
    time,
  )


# By kind, how an item is tried.
_MAKERS: dict[str, Callable[..., Item | None]] = {
  "fixture_interaction_counting": _interactions,
  "fixture_location": _fixture_location,
  "object_location": _object_location,
  "object_movement_itinerary": movements.itinerary,
  "object_movement_counting": movements.movements,
  "stationary_object_localization": movements.stationary,
}
HD_EPIC = tuple(_MAKERS)
KINDS = (*HD_EPIC, planning.KIND)
