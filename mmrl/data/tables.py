"""Rows of files by their number, and a pass over all that tells mistakes.

A table reads its file once from start to end, which finds where each row is,
and then single rows. What it returns has no nulls and no control characters.
"""

from collections.abc import Callable, Iterator, Sequence
import io
import os
from typing import Any

from mmrl import storage
from mmrl.errors import UserError

# Kinds of mistakes that an error shows, and rows that it lists of each.
_KINDS, _LISTED = 5, 20
DEEP = (
  "expected a row, found lists or objects within each other, hundreds deep;"
  " take them out"
)


class Table:
  """Rows of one file.

  Attributes:
    path: the file, local or in a store; what errors call it.
    noun: what a row is called.
    names: of its columns; empty where each row has its own.
    skip: names of columns that needn't be read.
    note: what a person should know of it; empty if nothing.
  """

  noun = "row"
  names: Sequence[str] = ()
  note = ""

  def __init__(self, path: str):
    self.path = path
    self.skip: frozenset[str] = frozenset()

  def __len__(self) -> int:
    """Number of rows, once they were read."""
    raise NotImplementedError

  def __getitem__(self, index: int) -> Any:
    """Reads a row.

    Raises:
      UserError: if it isn't what it was when the table was read.
    """
    raise NotImplementedError

  def scan(self) -> Iterator[tuple[int, Any]]:
    """Reads all rows in order, pictures in them perhaps as `media.UNREAD`.

    Yields:
      (number of a row, the row or the UserError that it has).
    """
    raise NotImplementedError

  def number(self, index: int) -> int:
    """Returns what a row is known by: its index, counted from 0."""
    return index

  def name(self, number: int) -> str:
    """Returns the name of a row, by its number."""
    return f"{self.path}[{number}]"

  def check(self, make: Callable[[Any, str], Any]) -> str:
    """Makes something of every row.

    Args:
      make: takes a row and its name.

    Returns:
      What is wrong: the first error of each kind and the numbers of the other
      rows that have it. Empty if nothing is.
    """
    wrong: dict[str, list[tuple[int, str]]] = {}
    for number, row in self.scan():
      name = self.name(number)
      try:
        if isinstance(row, UserError):
          raise UserError(f"{name}: {row}")
        make(row, name)
      except (UserError, RecursionError) as error:
        text = str(error)
        if isinstance(error, RecursionError):
          text = f"{name}: {DEEP}"
        kind = " ".join(text.removeprefix(name).split()[:5])
        wrong.setdefault(kind, []).append((number, text))
    return _report(list(wrong.values()), self.noun)


def _report(kinds: list[list[tuple[int, str]]], noun: str) -> str:
  """Tells the first mistake of each kind, and where the others are."""
  shown = []
  for (_, text), *others in kinds[:_KINDS]:
    if others:
      listed = ", ".join(str(number) for number, _ in others[:_LISTED])
      more = ", .." if len(others) > _LISTED else ""
      nouns = noun if len(others) == 1 else f"{noun}s"
      text += f" (and on {len(others)} more {nouns}: {listed}{more})"
    shown.append(text)
  rest = sum(map(len, kinds[_KINDS:]))
  if rest:
    shown.append(f"{rest} {noun}s have other mistakes")
  return "; ".join(shown)


class Blob:
  """Bytes of a file; those of a store are held, as it has no random access."""

  def __init__(self, path: str, what: str):
    self._path, self._held = path, None
    try:
      if storage.is_remote(path):
        self._held = storage.read_bytes(path)
      else:
        storage.path(path)  # Refuses other places.
        self._stamp = _stamp(os.stat(path or "."))
        open(path, "rb").close()
    except OSError as error:
      raise UserError(
        f"expected {what} at {path}, found: {error.strerror or error}"
      ) from error
    except UserError:
      raise
    except ValueError as error:
      raise UserError(f"expected {what} at {path!r}: {error}") from error

  def open(self) -> io.BufferedIOBase:
    """Opens the file, which hasn't changed."""
    if self._held is not None:
      return io.BytesIO(self._held)
    try:
      file = open(self._path, "rb")  # noqa: SIM115
      if _stamp(os.fstat(file.fileno())) == self._stamp:
        return file
      file.close()
      found = "it changed since"
    except OSError as error:
      found = str(error.strerror or error)
    raise UserError(
      f"expected {self._path} as it was at the start, found: {found}; run the"
      " same command again"
    )

  def read(self, start: int, stop: int) -> bytes:
    """Reads some of its bytes."""
    with self.open() as file:
      file.seek(start)
      return file.read(stop - start)


def _stamp(stat: os.stat_result) -> tuple[int, int]:
  return stat.st_size, stat.st_mtime_ns
