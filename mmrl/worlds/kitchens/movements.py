"""Questions about moved things: itineraries, counts and rests.

In HD-EPIC's words (arXiv 2502.04144), as EgoReasoner takes them (2603.06561).
"""

from collections.abc import Sequence
import itertools

from mmrl.chains.writing import stamp
from mmrl.worlds.draws import Draws
from mmrl.worlds.kitchens.asking import (
  Item,
  Options,
  bbox,
  begin,
  called,
  chosen,
  distract,
  moved,
  play,
  pointed_at,
  windows,
)
from mmrl.worlds.kitchens.kitchen import Event
from mmrl.worlds.kitchens.plan import names


def _listed(moves: Sequence[tuple[str, str]]) -> str:
  return ", then ".join(f"from {a} to {b}" for a, b in moves)


def _fixtures(moves: Sequence[Event]) -> tuple[str, ...]:
  """Lists the fixtures of moves, in order."""
  return tuple(dict.fromkeys(f for m in moves for f in (m.from_, m.to)))


def itinerary(draws: Draws, options: Options, count: int) -> Item | None:
  """From where to where a thing was moved."""
  kitchen, thing = moved(draws, options, count, draws.between(0, 1))
  pointed = pointed_at(draws, options, kitchen, thing, 0.0, kitchen.seconds)
  if pointed is None:
    return None
  (box, time), moves = pointed, kitchen.moves(thing)
  gold = called(kitchen, moves)
  wrong: list[list[tuple[str, str]]] = []
  while len(wrong) < 4:
    stops = _wander(draws, names(kitchen.plan.fixtures, "of"), gold)
    if stops not in (*wrong, gold):
      wrong.append(stops)
  choices, correct = chosen(draws, _listed(gold), [_listed(w) for w in wrong])
  return Item(
    "object_movement_itinerary",
    kitchen,
    f"Where was the object {bbox(box)} seen at {stamp(time)} moved from/to"
    " throughout the video?",
    "Where was the object moved?",
    choices,
    correct,
    {
      "names": _fixtures(moves),
      "windows": windows(moves),
      "moves": tuple(gold),
    },
    box,
    time,
  )


def _wander(draws: Draws, known: Sequence[str], gold) -> list[tuple[str, str]]:
  """Makes up moves, half of them from where the thing really begins.

  Lengths are those of right answers, so that the shortest isn't the right one.
  """
  count = draws.pick((len(gold), len(gold), 1, 2))
  stops = [gold[0][0] if draws.below(2) else draws.pick(known)]
  while len(stops) <= count:
    stops.append(draws.pick([n for n in known if n != stops[-1]]))
  return list(itertools.pairwise(stops))


def movements(draws: Draws, options: Options, count: int) -> Item | None:
  """How many times a thing changed its place."""
  kitchen, thing = moved(draws, options, count, draws.between(0, 1))
  pointed = pointed_at(draws, options, kitchen, thing, 0.0, kitchen.seconds)
  if pointed is None:
    return None
  (box, time), moves = pointed, kitchen.moves(thing)
  others = [str(n) for n in range(1, 8) if n != count]
  choices, correct = chosen(draws, str(count), others)
  return Item(
    "object_movement_counting",
    kitchen,
    f"How many times did the object {bbox(box)} seen at {stamp(time)} change"
    " locations in the video?",
    "How many times did the object change locations?",
    choices,
    correct,
    {
      "names": _fixtures(moves),
      "windows": windows(moves),
      "moves": tuple(called(kitchen, moves)),
      "count": len(moves),
    },
    box,
    time,
  )


def stationary(draws: Draws, options: Options, _: None) -> Item | None:
  """From when on a thing rests for longer than a threshold."""
  script = begin(draws, options, 3)
  thing, *rest = script.places
  count = draws.between(2, 3)
  long = draws.between(1, count)

  def carry() -> None:
    script.carry(thing, draws.pick(script.free(thing)))

  actions = []
  for i in range(1, count + 1):
    actions.append(carry)
    if i == long:
      actions.append(distract(draws, script, rest, []))
      actions.append(lambda: script.wait(draws.between(20, 50)))
  kitchen = play(draws, script, actions)
  rests = kitchen.rests(thing)[1:]
  lengths = sorted(((b - a, a, b) for a, b in rests), reverse=True)
  if lengths[0][0] - lengths[1][0] < 1.7:
    return None
  longest, start, end = lengths[0]
  # No other rest is as long, even to the middle of picking up.
  threshold = int(lengths[1][0] + 0.6) + 1
  pointed = pointed_at(draws, options, kitchen, thing, 0.0, kitchen.seconds)
  if threshold + 0.3 > longest or pointed is None:
    return None
  # Moments from which it doesn't rest that long: begins of other rests, moments
  # of moves, and moments so late in the long rest that too little is left.
  late = end - threshold
  wrong = [a for _, a, _ in lengths[1:]]
  wrong += [late + (end - late) * f for f in (0.35, 0.6, 0.8)]
  for one in kitchen.moves(thing):
    # Before it is put down, from the middle of which on it is there.
    wrong += [one.start + (one.end - one.start) * f for f in (0.2, 0.4, 0.6)]
  # The right one is the first in time as often as the second, and so on.
  early = [*{stamp(t) for t in sorted(wrong) if t < start - 0.1}]
  later = [*{stamp(t) for t in sorted(wrong) if t > start + 0.1}]
  before = min(draws.below(5), len(early))
  before = max(before, 4 - len(later))
  others = draws.some(sorted(early), before)
  others += draws.some(sorted(later), 4 - before)
  box, time = pointed
  choices, correct = chosen(draws, stamp(start), others)
  first = kitchen.moves(thing)[0]
  return Item(
    "stationary_object_localization",
    kitchen,
    f"After the object {bbox(box)} seen at {stamp(time)} is first moved, from"
    " which of the following starting times does the object remain static for"
    f" more than {threshold} seconds?",
    "From which starting time does the object remain static?",
    choices,
    correct,
    {
      "windows": windows([first]),
      "moves": tuple(called(kitchen, [first])),
      "threshold": threshold,
      "rest": (start, end),
    },
    box,
    time,
  )
