"""JSON Lines that people bring: used whole, or refused by file and line.

All lines are looked at before the file is refused. Nulls count as absent,
since that is what tables write where another row has something.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import difflib
import json
import re
import types
from typing import Any, NoReturn, TypeVar

from mmrl import storage
from mmrl.errors import UserError

T = TypeVar("T")

# Kinds of mistakes that an error shows, and lines that it lists of each.
_KINDS, _LISTED = 5, 20
_DEEP = (
  "expected a row, found lists or objects within each other, hundreds deep;"
  " take them out"
)
# What a line of JSON needs to hold a character that is refused.
_SUSPECT = re.compile(r"\\[ubf]|[\x7f-\x9f]")
_REFUSED = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def each(
  path: storage.Name, what: str, make: Callable[[Any, str], T]
) -> list[T]:
  """Makes something of every line that isn't blank.

  Args:
    path: the file, local or gs://.
    what: what errors call it.
    make: takes what a line holds, without nulls, and the line's name.

  Raises:
    UserError: if the file can't be read; or, after all lines, with the first
      error of each kind and the numbers of the other lines that have it.
  """
  made: list[T] = []
  wrong: dict[str, list[tuple[int, str]]] = {}
  try:
    for number, line in enumerate(_read(path, what), 1):
      if not line or line.isspace():
        continue
      name = f"{path}:{number}"
      try:
        made.append(make(_parse(line, name), name))
      except (UserError, RecursionError) as error:
        text = str(error)
        if isinstance(error, RecursionError):
          text = f"{name}: {_DEEP}"
        kind = " ".join(text.removeprefix(name).split()[:5])
        wrong.setdefault(kind, []).append((number, text))
  except OSError as error:
    raise UserError(
      f"expected {what} at {path}, found: {error.strerror or error}"
    ) from error
  if wrong:
    raise UserError(_report(list(wrong.values())))
  return made


def _report(kinds: list[list[tuple[int, str]]]) -> str:
  """Tells the first mistake of each kind, and where the others are."""
  shown = []
  for (_, text), *others in kinds[:_KINDS]:
    if others:
      listed = ", ".join(str(number) for number, _ in others[:_LISTED])
      more = ", .." if len(others) > _LISTED else ""
      noun = "line" if len(others) == 1 else "lines"
      text += f" (and on {len(others)} more {noun}: {listed}{more})"
    shown.append(text)
  rest = sum(map(len, kinds[_KINDS:]))
  if rest:
    shown.append(f"{rest} lines have other mistakes")
  return "; ".join(shown)


def _read(path: storage.Name, what: str) -> list[str]:
  """Reads the lines of a file, without a byte order mark."""
  try:
    text = storage.read_text(path).removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    number = error.object.count(b"\n", 0, error.start) + 1
    raise UserError(
      f"{path}:{number}: expected {what} in UTF-8, found byte"
      f" {error.object[error.start]:#04x} ({error.reason}); save it as UTF-8"
    ) from error
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f"expected {what} at {path!r}: {error}") from error
  start = text[:4096].lstrip()
  several = start.startswith("{") and not start.partition("\n")[0][1:].strip()
  if start.startswith("[") or several:
    found = "one over several lines" if several else "an array"
    raise UserError(
      f"{path}: expected one JSON object on each line, found {found}; write"
      " each object on a line of its own, as jq -c does"
    )
  return text.split("\n")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [key for key, _ in pairs]
    twice = next(key for key in found if names.count(key) > 1)
    raise UserError(
      f"expected each key once, found {twice!r:.80} twice; take one out"
    )
  if None in found.values():
    return {key: value for key, value in pairs if value is not None}
  return found


def _constant(text: str) -> NoReturn:
  raise UserError(
    f"expected numbers, found {text}; leave the key out where there is none"
  )


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _parse(line: str, name: str) -> Any:
  """Parses a line of JSON, without nulls, and checks its texts."""
  try:
    value = _DECODER.decode(line)
    if (
      "\\" in line or "\x7f" in line or not line.isascii()
    ) and _SUSPECT.search(line):
      for text in _texts(value):
        _check_text(text)
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  except json.JSONDecodeError as error:
    raise UserError(
      f"{name}: expected a line of JSON, found {line[:80].strip()!r}"
      f" ({error.msg} at column {error.colno})"
    ) from error
  except ValueError as error:  # A number with thousands of digits.
    raise UserError(f"{name}: expected a line of JSON: {error}") from error
  return value


def _texts(value: Any) -> Iterator[str]:
  """Yields every text and key of what a line holds."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list):
    for item in value:
      yield from _texts(item)
  elif isinstance(value, dict):
    for key, item in value.items():
      yield key
      yield from _texts(item)


def _check_text(text: str) -> None:
  """Refuses characters that no text means to have."""
  found = _REFUSED.search(text)
  if found is None:
    return
  near = text[max(found.start() - 20, 0) : found.start() + 20]
  if found[0] >= "\ud800":
    raise UserError(
      f"expected whole characters, found half of one, {found[0]!r}, in"
      f" {near!r}; write both halves of it, or the character itself"
    )
  raise UserError(
    f"expected text without control characters, found {found[0]!r} in {near!r};"
    ' take it out, and write each backslash as "\\\\"'
  )


def check_keys(
  found: Collection[str],
  known: Iterable[str],
  what: str,
  meant: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
  """Refuses keys that nothing reads.

  Args:
    found: keys that are there.
    known: keys that are read.
    what: whose they are.
    meant: other usual names of known keys.

  Raises:
    UserError: naming them and the known keys nearest to them.
  """
  known = list(known)
  unknown = [key for key in found if key not in known]
  if not unknown:
    return
  shown = []
  for key in unknown[:5]:
    near = difflib.get_close_matches(key[:40].lower(), known, 1, 0.75)
    near = [meant[key.lower()]] if key.lower() in meant else near
    shown.append(f"{key!r:.40}" + "".join(f" (is it {n!r}?)" for n in near))
  more = ", .." if len(unknown) > 5 else ""
  raise UserError(
    f"expected {what} with no other keys than {', '.join(known)}, found"
    f" {', '.join(shown)}{more}; rename or remove them"
  )
