"""Rows of any columns, of which a mapping says what they hold."""

from collections.abc import Mapping
import difflib
from typing import Any

from mmrl.data import lines
from mmrl.data.formats import mmrl
from mmrl.data.tables import Table
from mmrl.errors import UserError

_LISTS = ("images", "videos", "answers", "facts", "labels")


class Columns:
  """Makes our own rows of rows with other names of columns.

  Attributes:
    format: what a person reads of it.
  """

  format = "columns"

  def __init__(self, columns: Mapping[str, str]):
    """Checks a mapping.

    Args:
      columns: column of each of our keys.

    Raises:
      UserError: if a key isn't one of ours, or a column no name.
    """
    lines.check_keys(columns, mmrl.USED, "a mapping 'format'", mmrl.MEANT)
    for key, column in columns.items():
      if not isinstance(column, str) or not column:
        raise UserError(
          f"format: expected the name of a column for {key!r}, found"
          f" {column!r:.80}"
        )
    self._columns = dict(columns)
    self._found: set[str] = set()

  def open(self, table: Table) -> None:
    """Lets a table read the columns that are used, alone."""
    self._found.update(table.names)
    table.skip = frozenset(table.names).difference(self._columns.values())

  def __call__(self, raw: Any) -> dict[str, Any]:
    """Returns a row of our own; a single picture becomes a list."""
    if not isinstance(raw, dict):
      raise UserError(f"expected an object with columns, found {raw!r:.80}")
    self._found.update(raw)
    row = {k: raw[name] for k, name in self._columns.items() if name in raw}
    for key in _LISTS:
      if key in row and not isinstance(row[key], list):
        row[key] = [row[key]]
    return row

  def note(self) -> str:
    """Says which columns nothing reads, once all rows were read.

    Raises:
      UserError: if there is no such column in any row.
    """
    missing = [c for c in self._columns.values() if c not in self._found]
    if missing and self._found:
      near = difflib.get_close_matches(missing[0], self._found, 1)
      raise UserError(
        f"format: expected names of columns, found {missing[0]!r:.80}"
        + "".join(f" (is it {name!r:.80}?)" for name in near)
        + f"; the rows have {lines.listed(sorted(self._found))}"
      )
    unused = sorted(self._found.difference(self._columns.values()))
    return f"unused: {lines.listed(unused)}" if unused else ""

  def wrong(self) -> str:
    """Says what is wrong with rows beside each other: nothing."""
    return ""
