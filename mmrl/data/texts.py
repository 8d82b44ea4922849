"""Files of text whose rows stand one after another: JSON, JSON Lines, TSV."""

from array import array
import codecs
from collections.abc import Callable, Iterator
import csv
import io
import json
import os
import re
import sys
from typing import Any, TypeVar

from mmrl import storage
from mmrl.data import lines
from mmrl.data.tables import DEEP, Blob, Table
from mmrl.errors import UserError

T = TypeVar("T")

_BLOCK = 2**22  # Bytes of an array that are parsed at once.
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def _decoded(raw: bytes) -> str:
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    raise UserError(
      "expected a readable data file in UTF-8, found byte"
      f" {raw[error.start]:#04x} ({error.reason}); save it as UTF-8"
    ) from error


class _Text(Table):
  """A text file, in which rows stand one after another."""

  def __init__(self, path: str, blob: Blob):
    super().__init__(path)
    self._blob = blob
    with blob.open() as file:
      # Where the text begins, behind a byte order mark.
      self._begin = len(codecs.BOM_UTF8) * (file.read(3) == codecs.BOM_UTF8)
    # Where each row begins and ends.
    self._starts, self._stops = array("q"), array("q")

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> Any:
    name = self.name(self.number(index))
    raw = self._blob.read(self._starts[index], self._stops[index])
    try:
      return self._parse(_decoded(raw))
    except UserError as error:
      raise UserError(f"{name}: {error}") from error

  def _parse(self, text: str) -> Any:
    return lines.parse(text)


class Lines(_Text):
  """JSON Lines: a row on each line that isn't blank; numbers begin at 1."""

  noun = "line"

  def __init__(self, path: str, blob: Blob):
    super().__init__(path, blob)
    self._numbers = array("q")

  def number(self, index: int) -> int:
    return self._numbers[index]

  def name(self, number: int) -> str:
    return f"{self.path}:{number}"

  def scan(self) -> Iterator[tuple[int, Any]]:
    starts, stops, numbers = array("q"), array("q"), array("q")
    with self._blob.open() as file:
      stop = file.seek(self._begin)
      for number, raw in enumerate(file, 1):
        start, stop = stop, stop + len(raw)
        if raw.isspace():
          continue
        starts.append(start)
        stops.append(stop)
        numbers.append(number)
        try:
          row = lines.parse(_decoded(raw))
        except UserError as error:
          row = error
        except RecursionError:
          row = UserError(DEEP)
        yield number, row
    self._starts, self._stops, self._numbers = starts, stops, numbers


_GAP = re.compile(r"[ \t\r\n]*([\[\],]?)[ \t\r\n]*")


class Array(_Text):
  """A JSON array of rows."""

  def scan(self) -> Iterator[tuple[int, Any]]:
    starts, stops = array("q"), array("q")
    with self._blob.open() as file:
      file.seek(self._begin)
      window = _Window(file, self._begin)
      try:
        for start, stop, row in self._rows(window):
          starts.append(start)
          stops.append(stop)
          yield len(starts) - 1, row
      except (UserError, RecursionError) as error:
        # Where one row ends isn't known, so that no other can be read.
        deep = isinstance(error, RecursionError)
        yield len(starts), UserError(DEEP if deep else str(error))
    self._starts, self._stops = starts, stops

  def _rows(self, window: "_Window") -> Iterator[tuple[int, int, Any]]:
    """Yields where each row begins and ends, and the row or its error."""
    mark = window.gap()  # The bracket, which was seen before.
    while mark in ("[", ","):
      start, (text, row) = window.byte, window.value(mark == "[")
      if not text:
        break
      try:
        if isinstance(row, UserError):
          raise row
        lines.check(row, text)
      except UserError as error:
        row = error
      yield start, window.byte, row
      mark = window.gap()
    else:
      if mark != "]":
        raise UserError(
          "expected a comma and a row, or the array's end, found"
          f" {window.rest()!r}"
        )
    window.gap()
    if window.rest():
      raise UserError(
        f"expected nothing behind the array, found {window.rest()!r}"
      )


class _Window:
  """A part of a file that moves through it, and values parsed in it.

  Attributes:
    byte: where the next value begins.
  """

  def __init__(self, file: io.BufferedIOBase, begin: int):
    self._file, self.byte = file, begin
    self._decoder = codecs.getincrementaldecoder("utf-8")()
    self._text, self._at, self._all = "", 0, False

  def rest(self) -> str:
    """Returns the beginning of what wasn't read."""
    return self._text[self._at : self._at + 40]

  def _advance(self, at: int) -> str:
    passed = self._text[self._at : at]
    self.byte += len(passed) if passed.isascii() else len(passed.encode())
    self._at = at
    return passed

  def _more(self) -> None:
    """Widens the window; it doubles where a row doesn't fit."""
    kept = self._text[self._at :]
    raw = self._file.read(max(_BLOCK, len(kept)))
    self._all = not raw
    try:
      self._text = kept + self._decoder.decode(raw, final=self._all)
    except UnicodeDecodeError as error:
      raise UserError(
        "expected a readable data file in UTF-8, found a byte that isn't"
        f" ({error.reason}); save it as UTF-8"
      ) from error
    self._at = 0

  def gap(self) -> str:
    """Passes white space and a bracket or comma in it, which is returned."""
    while True:
      found = _GAP.match(self._text, self._at)
      assert found is not None
      if found.end() < len(self._text) or self._all:
        break
      self._more()
    self._advance(found.end())
    return found[1]

  def value(self, first: bool) -> tuple[str, Any]:
    """Parses a value.

    Args:
      first: whether the array may end instead.

    Returns:
      (its text, empty where the array ends; the value or its error).
    """
    if first and self._text.startswith("]", self._at):
      self._advance(self._at + 1)
      return "", None
    while True:
      try:
        try:
          value, end = lines.DECODER.raw_decode(self._text, self._at)
        except UserError as error:
          value, end = (
            error,
            json.JSONDecoder().raw_decode(self._text, self._at)[1],
          )
        # A number may go on behind the window.
        if end < len(self._text) or self._all:
          return self._advance(end), value
      except ValueError as error:
        if self._all:
          found = getattr(error, "msg", error)
          raise UserError(
            f"expected a row as JSON, found {self.rest()!r}.. ({found})"
          ) from error
      self._more()


class Tsv(_Text):
  """Tab-separated values with a line of names; empty ones are absent."""

  def __init__(self, path: str, blob: Blob):
    super().__init__(path, blob)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Pictures are long.
    with self._blob.open() as file:
      file.seek(self._begin)
      head = file.readline()
    self._begin += len(head)
    try:
      self.names = next(_records([_decoded(head)]), [])
    except UserError as error:
      raise UserError(f"{path}: {error}") from error
    if len({*self.names}) < len(self.names) or "" in self.names:
      raise UserError(
        f"{path}: expected names of columns, each once, in the first line,"
        f" found {self.names!r:.200}"
      )

  def scan(self) -> Iterator[tuple[int, Any]]:
    starts, stops = array("q"), array("q")
    with self._blob.open() as file:
      stop = file.seek(self._begin)
      passed: list[int] = []

      def texts() -> Iterator[str]:
        for raw in file:
          passed.append(len(raw))
          yield _decoded(raw)

      records = _records(texts())
      while True:
        try:
          fields = next(records, None)
          if fields is None:
            break
          row: Any = self._row(fields) if fields else None
        except UserError as error:
          fields, row = [""], error
        start, stop = stop, stop + sum(passed)
        passed.clear()
        if fields:
          starts.append(start)
          stops.append(stop)
          yield len(starts) - 1, row
    self._starts, self._stops = starts, stops

  def _row(self, fields: list[str]) -> dict[str, str]:
    if len(fields) != len(self.names):
      raise UserError(
        f"expected {len(self.names)} fields between tabs, found {len(fields)};"
        " put quotes around a text with tabs or line ends"
      )
    for field in fields:
      if not field.isprintable():
        lines.check_text(field)
    return {k: v for k, v in zip(self.names, fields, strict=True) if v}

  def _parse(self, text: str) -> Any:
    return self._row(next(_records(_LINE.findall(text)), []))


def _records(texts: Any) -> Iterator[list[str]]:
  """Splits lines into fields; one in quotes may have tabs and line ends."""
  records = csv.reader(texts, delimiter="\t", strict=True)
  while True:
    try:
      yield next(records)
    except StopIteration:
      return
    except csv.Error as error:
      raise UserError(
        f"expected fields between tabs, found: {error}; write each quote in"
        " quotes twice"
      ) from error


def json_table(path: str, what: str = "a readable data file") -> Table:
  """Opens a JSON array, or JSON Lines, which its first character tells.

  Raises:
    UserError: if it can't be read, or is neither.
  """
  blob = Blob(path, what)
  with blob.open() as file:
    head = file.read(4096).decode(errors="replace")
  head = head.removeprefix("\ufeff").lstrip()
  if head.startswith("["):
    return Array(path, blob)
  if head.startswith("{") and not head.partition("\n")[0][1:].strip():
    raise UserError(
      f"{path}: expected one JSON object on each line or an array of them,"
      " found one over several lines; write each object on a line of its own,"
      " as jq -c does"
    )
  return Lines(path, blob)


def each(
  path: storage.Name, what: str, make: Callable[[Any, str], T]
) -> list[T]:
  """Makes something of every line of a JSON Lines file that isn't blank.

  Args:
    path: the file, local or gs://.
    what: what errors call it.
    make: takes what a line holds, without nulls, and the line's name.

  Raises:
    UserError: if the file can't be read; or, after all lines, with the first
      error of each kind and the numbers of the other lines that have it.
  """
  made: list[T] = []
  table = json_table(os.fspath(path), what)
  wrong = table.check(lambda row, name: made.append(make(row, name)))
  if wrong:
    raise UserError(wrong)
  return made
