"""Data files that people bring, in the formats of several projects."""

import bisect
from collections.abc import Iterator, Sequence
import glob
import itertools
import os
import pathlib
import re
import sys
from typing import Any, NamedTuple

from mmrl import storage
from mmrl.data import arrow, formats, rows, tables, texts
from mmrl.data.example import Example, check_prompt
from mmrl.errors import UserError

_ENDINGS = (".json", ".jsonl", ".parquet", ".tsv")
# Beginnings of the names of splits, of which a folder may hold several.
_SPLIT = re.compile(r"(train|test|val|dev|eval)", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")


class _File(NamedTuple):
  """A data file, and what makes examples of its rows."""

  table: tables.Table
  convert: formats.Converter | formats.Columns
  reader: rows.Reader

  def example(self, raw: Any, name: str) -> Example:
    """Makes an example of a row."""
    try:
      row = self.convert(raw)
    except UserError as error:
      raise UserError(f"{name}: {error}") from error
    return self.reader.example(row, name)


class Files:
  """Questions in files: JSON, JSON Lines, parquet or TSV, local or gs://.

  The format of the rows is one of `formats.FORMATS`, or a mapping of columns;
  docs/data.md has them all. Every row is checked before anything starts, and
  read again when it is asked for.
  """

  def __init__(
    self,
    path: str,
    *,
    format: Any = None,
    media: str | None = None,
    prompt: str = "{question}",
  ):
    """Reads and checks every row; pictures of files are opened later.

    Args:
      path: a file; a folder, all of whose data files are read; a pattern such
        as DIR/train-*.parquet; or hub:OWNER/NAME@SPLIT.
      format: name of the rows' format; the one that can have their keys if
        None. Or a mapping: the column of each of our own keys; other columns
        are unused.
      media: folder that paths of pictures and videos are relative to; that of
        the data file if None.
      prompt: text of the user's turn, with "{question}" in it; unused where a
        row has messages.

    Raises:
      UserError: naming file and row of what is wrong first, and the other
        rows that are wrong.
    """
    check_prompt(prompt)
    form = formats.checked(format)
    self.paths: Sequence[str] = _paths(str(path))
    readers: dict[str, rows.Reader] = {}
    self._files: list[_File] = []
    wrong = []
    for name in self.paths:
      table, folder = _table(name), media
      if folder is None:
        folder = "" if arrow.is_hub(name) else str(storage.path(name).parent)
      if folder not in readers:
        readers[folder] = rows.Reader(storage.path(folder), prompt)
      convert = formats.converter(form, table)
      self._files.append(_File(table, convert, readers[folder]))
      wrong.append(table.check(self._files[-1].example))
      wrong.append(convert.wrong())
    notes = [file.convert.note() for file in self._files]
    if any(wrong):
      raise UserError("; ".join(filter(None, wrong)))
    self._ends = list(itertools.accumulate(len(f.table) for f in self._files))
    self._say(str(path), notes)

  def _say(self, path: str, notes: list[str]) -> None:
    """Says in one line how the files are read, if they are of one format."""
    used = {file.convert.format for file in self._files}
    if len(used) > 1:
      raise UserError(
        f"{path}: expected files of one format, found {' and '.join(used)};"
        " name one, or fewer files"
      )
    if not len(self):
      raise UserError(f"expected at least one question in {path}, found none")
    files = f" of {len(self.paths)} files" if len(self.paths) > 1 else ""
    said = [f"{path}: {len(self):,} rows{files}, read as {used.pop()}"]
    said += [*notes, *(file.table.note for file in self._files)]
    bare = sum(reader.unprompted for reader in {f.reader for f in self._files})
    if bare:
      said.append(f"prompt is unused by {bare:,} rows, which have messages")
    print("; ".join(filter(None, dict.fromkeys(said))), file=sys.stderr)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"row {index} of {len(self)}")
    which = bisect.bisect_right(self._ends, index)
    file = self._files[which]
    at = index - (self._ends[which - 1] if which else 0)
    return file.example(file.table[at], file.table.name(file.table.number(at)))

  def _examples(self) -> Iterator[Example]:
    """Yields every example; pictures of parquet files aren't read."""
    for file in self._files:
      for number, raw in file.table.scan():
        name = file.table.name(number)
        if isinstance(raw, UserError):
          raise UserError(f"{name}: {raw}")
        yield file.example(raw, name)

  def pairs(self) -> Iterator[tuple[str, str | None]]:
    """Yields question and first right answer, if any, of every example."""
    return ((e.question, e.answer) for e in self._examples())

  def names(self) -> Iterator[str]:
    """Yields the name of every example: file and line, or file and row."""
    for file in self._files:
      for index in range(len(file.table)):
        yield file.table.name(file.table.number(index))

  def given(self) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields name and texts to learn from of every example."""
    return ((e.name, e.answers) for e in self._examples())

  def regions(self) -> Iterator[tuple[str, bool]]:
    """Yields the name of every example, and whether it marks a region."""
    for one in self._examples():
      yield one.name, one.picture is not None and "region" in one.picture

  def extras(self) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields the name of every example, and what its row says besides."""
    return ((e.name, tuple(e.extra)) for e in self._examples())

  def others(self) -> Iterator[bool]:
    """Yields of every example whether it has other pictures."""
    return (bool(e.other) for e in self._examples())


def _table(path: str) -> tables.Table:
  """Opens a data file."""
  if arrow.is_hub(path):
    return arrow.Hub(path)
  if path.endswith(".parquet"):
    return arrow.Parquet(path)
  if path.endswith(".tsv"):
    return texts.Tsv(path, tables.Blob(path, "a readable data file"))
  return texts.json_table(path)


def _paths(path: str) -> list[str]:
  """Lists the data files that a path names."""
  if arrow.is_hub(path):
    return [path]
  if storage.is_place(path):
    path = os.fspath(storage.path(path)) if storage.is_remote(path) else path
  try:
    if path and storage.is_dir(path):
      return _in_folder(path)
    if _GLOB.search(path) and not os.path.exists(path):
      return _matches(path)
  except OSError as error:
    raise UserError(
      f"expected a readable data file at {path}, found: {error}"
    ) from error
  except UserError:
    raise
  except ValueError as error:
    raise UserError(
      f"expected a readable data file at {path!r}: {error}"
    ) from error
  if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", path) and not os.path.exists(path):
    raise UserError(
      f"expected a readable data file at {path}, found: none; write hub:{path}"
      " if it is a data set of the Hugging Face hub"
    )
  return [path]


def _in_folder(path: str) -> list[str]:
  """Lists the data files in a folder, which are of one kind and one split."""
  names = sorted(n for n in storage.names(path) if n.endswith(_ENDINGS))
  if not names:
    raise UserError(
      f"expected files of {', '.join(_ENDINGS)} in {path}, found none"
    )
  endings = sorted({pathlib.PurePath(name).suffix for name in names})
  splits = sorted({m[0].lower() for n in names if (m := _SPLIT.match(n))})
  for several in (endings, splits):
    if len(several) > 1:
      raise UserError(
        f"expected data files of one kind in {path}, found"
        f" {' and '.join(several)}; name one by a pattern, such as"
        f" {path}/{names[0][:4]}*{pathlib.PurePath(names[0]).suffix}"
      )
  return [os.path.join(path, name) for name in names]


def _matches(path: str) -> list[str]:
  """Lists the files that a pattern matches."""
  if storage.is_remote(path):
    begin = _GLOB.search(path)
    assert begin is not None
    root = path[: path.rindex("/", 0, begin.start())]
    with storage.errors(path):
      found = storage.path(root).glob(path[len(root) + 1 :])
      names = sorted(os.fspath(name) for name in found)
  else:
    names = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
  if not names:
    raise UserError(f"expected data files that match {path}, found none")
  return names
