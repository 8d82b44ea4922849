"""What a question of HD-EPIC and its right choice say by themselves."""

from collections.abc import Callable
import re
from typing import Any

from mmrl.chains import parsing
from mmrl.errors import UserError

Facts = dict[str, Any]

# "counter top left of fridge", "counter top left from fridge": what and where.
_WHERE = re.compile(r"(?: (?:top|bottom|left|right))+ (?:of|from) .*")


def kind_of(place: str) -> str:
  """Returns the kind of fixture that a place names, such as "counter"."""
  return _WHERE.sub("", parsing.plain(place))


def _number(choice: str) -> int:
  if not re.fullmatch("[0-9]{1,3}", choice):
    raise UserError(
      f"expected a whole number as right choice, found {choice!r:.80}"
    )
  return int(choice)


def _matched(pattern: str, question: str) -> str:
  found = re.search(pattern, question)
  if found is None:
    words = re.sub(r"\(.*\)", "..", pattern)
    raise UserError(
      f"expected a question in HD-EPIC's words, '{words}', found"
      f" {question!r:.120}"
    )
  return found[1]


def _interactions(question: str, right: str) -> Facts:
  verb = _matched(r"did I (\w+) the item", question)
  return {"count": _number(right), "words": verb}


def _direction(question: str, right: str) -> Facts:
  hour = parsing.hour(right)
  if hour is None:
    raise UserError(
      f'expected an hour such as "3 o\'clock" as right choice, found'
      f" {right!r:.80}"
    )
  target = _matched(r"where is the (.+?) located", question)
  return {"clock": hour, "names": (target,)}


def _place(question: str, right: str) -> Facts:
  words = "put down" if "did I put" in question else "pick up"
  fixture = kind_of(right)
  return {"fixture": fixture, "names": (fixture,), "words": words}


def _itinerary(question: str, right: str) -> Facts:
  moves = [parsing.move(part) for part in right.split(", then ")]
  if None in moves:
    raise UserError(
      "expected moves such as 'from X to Y, then from Y to Z' as right choice,"
      f" found {right!r:.120}"
    )
  known = [one for one in moves if one]
  places = dict.fromkeys(kind_of(place) for one in known for place in one)
  return {"moves": tuple(known), "names": tuple(places)}


def _movements(question: str, right: str) -> Facts:
  return {"count": _number(right)}


def _stationary(question: str, right: str) -> Facts:
  seconds = _matched(r"more than ([0-9]{1,6}) seconds", question)
  if len(parsing.times(right)) != 1:
    raise UserError(f"expected a time as right choice, found {right!r:.80}")
  return {"threshold": int(seconds)}


# By kind: (question, right choice) -> facts.
READ: dict[str, Callable[[str, str], Facts]] = {
  "fixture_interaction_counting": _interactions,
  "fixture_location": _direction,
  "object_location": _place,
  "object_movement_itinerary": _itinerary,
  "object_movement_counting": _movements,
  "stationary_object_localization": _stationary,
}
