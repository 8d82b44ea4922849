"""What rows are made of: texts, keys and values, checked as they are parsed.

Nulls count as absent, since that is what tables write where another row has
something.
"""

from collections.abc import Collection, Iterable, Mapping
import difflib
import json
import re
import types
from typing import Any, NoReturn

from mmrl.errors import UserError

# What a line of JSON needs to hold a character that is refused: an escape of
# one, or in a line that isn't ASCII the character itself.
_ESCAPE = re.compile(r"\\(?:[bf]|u(?:00[01789]|[dD][89a-fA-F]))")
_CONTROL = re.compile("[\x7f-\x9f]")
# Control characters, as Python's expressions and those of Arrow write them.
CONTROLS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_REFUSED = re.compile(f"[{CONTROLS}\ud800-\udfff]")


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


# Parses JSON without nulls; what it returns is to pass `check`.
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse(text: str) -> Any:
  """Parses JSON, without nulls, and checks its texts.

  Raises:
    UserError: if it isn't JSON, or has what no row means to have.
  """
  try:
    value = DECODER.decode(text)
    check(value, text)
  except UserError:
    raise
  except json.JSONDecodeError as error:
    raise UserError(
      f"expected a line of JSON, found {text[:80].strip()!r} ({error.msg} at"
      f" column {error.colno})"
    ) from error
  except ValueError as error:  # A number with thousands of digits.
    raise UserError(f"expected a line of JSON: {error}") from error
  return value


def check(value: Any, text: str) -> None:
  """Checks the texts of a value that was parsed from JSON.

  Args:
    value: without nulls.
    text: what it was parsed from.
  """
  if (
    ("\\" in text and _ESCAPE.search(text))
    or "\x7f" in text
    or (not text.isascii() and _CONTROL.search(text))
  ):
    _check_texts(value)


def _check_texts(value: Any) -> None:
  """Checks every text and key of what a line holds."""
  if isinstance(value, str):
    check_text(value)
  elif isinstance(value, list):
    for item in value:
      _check_texts(item)
  elif isinstance(value, dict):
    for key, item in value.items():
      check_text(key)
      _check_texts(item)


def cleaned(value: Any) -> Any:
  """Returns a value of a table without nulls, its texts checked."""
  if isinstance(value, str):
    if not value.isprintable():
      check_text(value)
  elif isinstance(value, dict):
    return {k: cleaned(v) for k, v in value.items() if v is not None}
  elif isinstance(value, list):
    return [cleaned(item) for item in value]
  return value


def check_text(text: str) -> None:
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


def listed(keys: Iterable[str]) -> str:
  """Lists keys that a file has, in one line that isn't too long."""
  keys = list(keys)
  shown = [repr(key)[1:-1][:40] for key in keys[:20]]
  return ", ".join(shown) + ", .." * (len(keys) > 20)


def check_keys(
  found: Collection[str],
  known: Collection[str],
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
