"""Chains to what they say.

    Entities: a, b         Event: TIME words     Count: 3      Clock: 3 o'clock
    Move: TIME from X to Y     Fixture: name     Rest: TIME to TIME

Keys are in any case, and other lines are ignored. TIME is `<TIME h:m:s video
n>`, as HD-EPIC writes it, or m:ss.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

Move = tuple[str, str]

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OPTION = re.compile(r"([A-E])(?:[.):].*)?", re.DOTALL)
_WHOLE = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_LINE = re.compile(
  r"[ \t]*(entities|event|move|count|clock|fixture|rest)[ \t]*:(.*)",
  re.IGNORECASE,
)
# A tag that can't be read hides what is in it.
_TIME = re.compile(
  r"<TIME (\d{1,3}):(\d{1,2}):(\d{1,2}(?:\.\d{1,9})?) video \d{1,3}>"
  r"|<TIME[^>]*>"
  r"|(?<![\d:.])(\d{1,4}):([0-5]\d(?:\.\d{1,9})?)(?![\d:])"
)
_PLACE = re.compile(r"^p\d+_|\.\d+$")
_ARTICLE = re.compile(r"^(?:an|a|the|another) ")
_HOUR = re.compile(r"(\d{1,2}) o'clock", re.ASCII)


def times(text: str) -> list[float]:
  """Returns the times of a text in seconds, in order of writing.

  A bare h:m:s isn't read.
  """
  found = []
  for h, m, s, minutes, seconds in _TIME.findall(text):
    if s:
      found.append(3600.0 * int(h) + 60 * int(m) + float(s))
    elif seconds:
      found.append(60.0 * int(minutes) + float(seconds))
  return found


def unreadable_time(text: str) -> str | None:
  """Returns the first tag of a time that can't be read; None without one."""
  tags = re.findall(r"<TIME[^>]*>?", text)
  return next((tag for tag in tags if not times(tag)), None)


def plain(name: str) -> str:
  """Returns the plain name of a fixture: of `P01_cupboard.009` "cupboard".

  In lower case, without one leading article ("another" among them); several
  instances of a type have one name.
  """
  name = _PLACE.sub("", name.strip().lower())
  return _ARTICLE.sub("", " ".join(name.replace("_", " ").split()))


def move(text: str) -> Move | None:
  """Reads "from X to Y", split at the first " to "; None if it isn't such."""
  _, found, rest = f" {text} ".partition(" from ")
  start, to, end = rest.partition(" to ")
  return (plain(start), plain(end)) if found and to else None


def hour(text: str) -> int | None:
  """Reads "3 o'clock"; None if it isn't an hour from 1 to 12."""
  found = _HOUR.fullmatch(text.strip())
  return int(found[1]) if found and 1 <= int(found[1]) <= 12 else None


def first_block(text: str) -> str | None:
  """Returns what the first answer block of a text holds; None without one."""
  found = _BLOCK.search(text)
  return found[1].strip() if found else None


def letter(text: str) -> str | None:
  """Returns the letter, A to E, that stands alone or before `.`, `)` or `:`.

  It is a capital; anything may follow. None where there is no such.
  """
  found = _OPTION.fullmatch(text)
  return found[1] if found else None


def option(text: str) -> str | None:
  """Returns the `letter` of a text's first answer block."""
  return letter(first_block(text) or "")


@dataclasses.dataclass(frozen=True)
class Chain:
  """Facts that a chain of thought states, as read from its text.

  Attributes:
    entities: names of fixtures and things, plain.
    times: the first time of each event and move that has one, seconds.
    events: number of Event lines.
    moves: from where to where, of the lines that can be read.
    count, clock, fixture, rest: of the last such line; None where it can't be
      read.
    option: letter of the answer.
    formed: whether the text is one thought and one answer block with an option,
      and nothing else.
  """

  entities: frozenset[str] = frozenset()
  times: tuple[float, ...] = ()
  events: int = 0
  moves: tuple[Move, ...] = ()
  count: int | None = None
  clock: int | None = None
  fixture: str | None = None
  rest: tuple[float, float] | None = None
  option: str | None = None
  formed: bool = False


def _count(text: str) -> int | None:
  text = text.strip()
  return int(text) if re.fullmatch("[0-9]{1,6}", text) else None


def _rest(text: str) -> tuple[float, float] | None:
  found = times(text)
  return (found[0], found[1]) if len(found) == 2 else None


# What the last line of a key says.
_SCALARS: dict[str, Callable[[str], Any]] = {
  "count": _count,
  "clock": hour,
  "fixture": lambda text: plain(text) or None,
  "rest": _rest,
}


def parse_chain(text: str) -> Chain:
  """Reads the lines inside of the first closed thought, and the answer."""
  found = _THOUGHT.search(text)
  entities: set[str] = set()
  moments: list[float] = []
  moves: list[Move] = []
  scalars: dict[str, Any] = {}
  events = 0
  for line in (found[1] if found else "").splitlines():
    read = _LINE.fullmatch(line)
    if read is None:
      continue
    key, value = read[1].lower(), read[2]
    if key == "entities":
      entities.update(filter(None, map(plain, value.split(","))))
    elif key in _SCALARS:
      scalars[key] = _SCALARS[key](value)
    else:
      moments += times(value)[:1]
      events += key == "event"
      one = move(value) if key == "move" else None
      moves += [one] if one else []
  chosen = option(text)
  once = all(text.count(tag) == 1 for tag in _TAGS)
  formed = once and bool(chosen) and bool(_WHOLE.fullmatch(text.strip()))
  return Chain(
    frozenset(entities),
    tuple(moments),
    events,
    tuple(moves),
    option=chosen,
    formed=formed,
    **scalars,
  )
