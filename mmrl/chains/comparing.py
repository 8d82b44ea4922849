"""How far what a chain says agrees with the facts, in [0, 1]."""

from collections.abc import Callable, Collection, Mapping, Sequence
import itertools
import math
from typing import Any

from mmrl.chains import parsing
from mmrl.chains.parsing import Chain, Move

# Seconds; those of files may be whole.
Seconds = float | int
Interval = Sequence[Seconds]
# Seconds by which a start may differ from the chosen option's.
_NEAR = 0.5


def overlap(named: Collection[str], right: Collection[str]) -> float:
  """Computes F1 of two sets of names: 1 of two empty ones, 0 of one."""
  if not named and not right:
    return 1.0
  return 2 * len({*named} & {*right}) / (len({*named}) + len({*right}))


def in_window(time: Seconds, window: Interval, tau: Seconds) -> float:
  """Computes 1 inside of a window, exp(-distance / tau) outside."""
  start, end = window
  return math.exp(-max(start - time, time - end, 0.0) / tau)


def timed(
  found: Sequence[Seconds], windows: Sequence[Interval], tau: Seconds
) -> float:
  """Computes the mean over windows of the best time's weight.

  It is multiplied by min(1, number of windows / number of times), so that
  listing every second gains nothing.

  Args:
    found: times that a chain gives.
    windows: of the events; without any, 1 if no time is given, else 0.
    tau: seconds, see `in_window`.
  """
  if not windows or not found:
    return float(not windows and not found)
  best = [max(in_window(t, w, tau) for t in found) for w in windows]
  return sum(best) / len(best) * min(1.0, len(windows) / len(found))


def clock_distance(one: int, other: int) -> int:
  """Computes the distance of two hours on a clock's face, 0 to 6."""
  return min((one - other) % 12, (other - one) % 12)


def move_lcs(one: Sequence[Move], other: Sequence[Move]) -> int:
  """Computes the length of the longest common subsequence of moves."""
  row = [0] * (len(other) + 1)
  for a in one:
    before = row
    row = [0]
    for i, b in enumerate(other):
      row.append(before[i] + 1 if a == b else max(before[i + 1], row[i]))
  return row[-1]


def interval_iou(one: Interval, other: Interval) -> float:
  """Computes the intersection of two intervals over their union."""
  both = max(min(one[1], other[1]) - max(one[0], other[0]), 0.0)
  whole = max(one[1], other[1]) - min(one[0], other[0])
  return both / whole if both else 0.0


def _counting(chain: Chain, facts: Mapping, option: str) -> float:
  return _counted(chain, option, chain.events)


def _moves_counted(chain: Chain, facts: Mapping, option: str) -> float:
  return _counted(chain, option, len(chain.moves))


def _counted(chain: Chain, option: str, lines: int) -> float:
  if chain.count is None:
    return 0.0
  rising = all(a < b for a, b in itertools.pairwise(chain.times))
  chosen = option.strip() == str(chain.count)
  return (lines == chain.count) / 2 + (chosen and rising) / 2


def _direction(chain: Chain, facts: Mapping, option: str) -> float:
  if chain.clock is None or parsing.hour(option) != chain.clock:
    return 0.0
  return 1 - clock_distance(chain.clock, facts["clock"]) / 6


def _place(chain: Chain, facts: Mapping, option: str) -> float:
  if chain.fixture is None:
    return 0.0
  right = chain.fixture == parsing.plain(facts["fixture"])
  return right / 2 + (chain.fixture in parsing.plain(option)) / 2


def _itinerary(chain: Chain, facts: Mapping, option: str) -> float:
  moves = chain.moves
  if not moves:
    return 0.0
  right = [(parsing.plain(a), parsing.plain(b)) for a, b in facts["moves"]]
  chained = [a[1] == b[0] for a, b in itertools.pairwise(moves)]
  joined = sum(chained) / len(chained) if chained else 1.0
  common = move_lcs(moves, right) / max(len(moves), len(right))
  return common / 2 + joined / 2


def _resting(chain: Chain, facts: Mapping, option: str) -> float:
  if chain.rest is None:
    return 0.0
  start, end = chain.rest
  chosen = parsing.times(option)
  long = end - start > facts["threshold"]
  told = long and bool(chosen) and abs(start - chosen[0]) <= _NEAR
  return told / 2 + interval_iou(chain.rest, facts["rest"]) / 2


# By task: what compares a chain with itself, the facts and the chosen option,
# and the facts that it needs.
_LOGIC: dict[str, tuple[Callable[[Chain, Mapping, str], float], set[str]]] = {
  "fixture_interaction_counting": (_counting, set()),
  "fixture_location": (_direction, {"clock"}),
  "object_location": (_place, {"fixture"}),
  "object_movement_itinerary": (_itinerary, {"moves"}),
  "object_movement_counting": (_moves_counted, set()),
  "stationary_object_localization": (_resting, {"threshold", "rest"}),
}
# Tasks whose chains give no times, and that which names no fixtures.
_TIMELESS, _NAMELESS = "fixture_location", "stationary_object_localization"


def grounding(
  task: str, chain: Chain, facts: Mapping[str, Any], tau: Seconds = 2.0
) -> float | None:
  """Compares names and times of a chain with the facts.

  The mean of F1 of the names and of the times' agreement, of those that the
  task has and the facts tell; None where they tell neither.
  """
  found = []
  if task != _NAMELESS and "names" in facts:
    names = {parsing.plain(name) for name in facts["names"]}
    found.append(overlap(chain.entities, names))
  if task != _TIMELESS and "windows" in facts:
    found.append(timed(chain.times, facts["windows"], tau))
  return sum(found) / len(found) if found else None


def logic(
  task: str, chain: Chain, facts: Mapping[str, Any], choices: Sequence[str]
) -> float | None:
  """Tells how consistent a chain is, as its task asks for it.

  Args:
    task: one of `writing.TEMPLATES`.
    chain: what was said.
    facts: of the question.
    choices: texts of the options.

  Returns:
    In [0, 1]; None where the facts don't tell what it needs.
  """
  function, needed = _LOGIC[task]
  if not needed <= facts.keys():
    return None
  index = "ABCDE".find(chain.option or "-")
  option = choices[index] if 0 <= index < len(choices) else ""
  return function(chain, facts, option)


def steps(
  grounded: float | None,
  consistent: float | None,
  weights: tuple[float | int, float | int],
) -> float:
  """Weighs both; where one isn't known the other has the weight of both."""
  first, second = weights
  if grounded is None and consistent is None:
    return 0.0
  if grounded is None:
    return (first + second) * consistent  # type: ignore[operator]
  if consistent is None:
    return (first + second) * grounded
  return first * grounded + second * consistent
