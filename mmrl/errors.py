"""Mistakes that the user can fix, and lines that tell of them."""

from collections.abc import Iterable, Iterator
import contextlib
import difflib
import math
import sys
from typing import Any


class UserError(ValueError):
  """A user's mistake: one line with what was expected, found, and to do.

  Commands print it without a traceback and exit with status 2; a traceback is
  reserved for bugs.
  """


def nearest(name: object, valid: Iterable[object]) -> str:
  """Returns a hint at the valid name nearest to a misspelt one, or ""."""
  found = difflib.get_close_matches(str(name), map(str, valid), 1)
  return f"; the nearest is {found[0]}" if found else ""


def is_number(value: Any) -> bool:
  """Tells whether a value is a finite number; True and False are none."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value)


def not_installed(what: str, extra: str) -> UserError:
  """Returns the error that an optional package is missing.

  Args:
    what: was expected, as "the package rouge-score".
    extra: of setup.py, which brings it.
  """
  # Not by the name of a package: `mmrl` on PyPI is somebody else's.
  return UserError(
    f"expected {what}, found none installed; run pip install -e '.[{extra}]' in"
    " your clone of this library"
  )


@contextlib.contextmanager
def of_field(where: str) -> Iterator[None]:
  """Prefixes a `UserError` raised inside with a field of the config, or a flag.

  One that names a field already is raised as it is.
  """
  try:
    yield
  except UserError as error:
    if str(error).startswith(("config.", where)):
      raise
    raise UserError(f"{where}: {error}") from error


def tell(line: str) -> None:
  """Prints a line on stderr; where that can't be written either, nothing is.

  What is told on a full disk often goes to a file on it.
  """
  with contextlib.suppress(OSError):
    print(_printable(line, sys.stderr), file=sys.stderr, flush=True)


def say(line: str) -> None:
  """Prints a line on stdout, where a full disk doesn't stop a run either."""
  with contextlib.suppress(OSError):
    # Whoever follows the file of a run sees a line when it is said.
    print(_printable(line, sys.stdout), flush=True)


def _printable(line: str, stream: Any) -> str:
  """Escapes what a stream's encoding lacks; a model may write anything."""
  encoding = getattr(stream, "encoding", None) or "utf-8"
  return line.encode(encoding, "backslashreplace").decode(encoding)
