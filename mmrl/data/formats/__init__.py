"""Formats of rows that people bring, each a table of keys and a function.

A module has USED, what each key holds that is read; UNUSED, keys that others
write and nobody needs here; `claims`, whether a row looks like one of the
format; and `row`, which returns a row of our own format.
"""

from collections.abc import Iterable, Mapping
import importlib
from typing import Any

from mmrl.data import lines
from mmrl.data.formats import vlmevalkit
from mmrl.data.formats.columns import Columns
from mmrl.data.tables import Table
from mmrl.errors import UserError

__all__ = ["FORMATS", "Columns", "Converter", "checked", "converter"]

FORMATS = (
  *("mmrl", "trl", "easyr1", "verl", "video_r1", "llava", "sharegpt"),
  *("vlmevalkit", "seed_bench_r1", "sayo"),
)
_MODULES = {
  name: importlib.import_module(f"{__name__}.{name}") for name in FORMATS
}
_KNOWN = {
  name: frozenset((*module.USED, *module.UNUSED))
  for name, module in _MODULES.items()
}


class Converter:
  """Makes our own rows of rows of a format.

  Attributes:
    format: its name.
  """

  def __init__(self, format: str, table: Table):
    """Reads rows of a table.

    Args:
      format: one of FORMATS.
      table: whose rows may refer to each other.
    """
    self.format = format
    table.skip = frozenset(_MODULES[format].UNUSED)
    shared = (vlmevalkit.Shared(table),) if format == "vlmevalkit" else ()
    self._more = shared

  def __call__(self, raw: Any) -> dict[str, Any]:
    """Returns a row of our own.

    Raises:
      UserError: if the row has other keys, or values of other types.
    """
    module = _MODULES[self.format]
    if not isinstance(raw, dict):
      raise UserError(
        f"expected an object of format {self.format!r}, found {raw!r:.80}"
      )
    if not raw.keys() <= _KNOWN[self.format]:
      what = "a row" if self.format == "mmrl" else f"a row of {self.format!r}"
      meant = getattr(module, "MEANT", {})
      lines.check_keys(raw, (*module.USED, *module.UNUSED), what, meant)
    return module.row(raw, *self._more)

  def note(self) -> str:
    """Says what of the rows isn't read that a person may miss: nothing."""
    return ""

  def wrong(self) -> str:
    """Says what is wrong with rows beside each other, once all were read."""
    return self._more[0].twice() if self._more else ""


def converter(form: str | Columns | None, table: Table) -> Converter | Columns:
  """Returns what makes our own rows of the rows of a table.

  Args:
    form: their format; the one that their keys tell if None.
    table: read until they do.
  """
  if isinstance(form, Columns):
    form.open(table)
    return form
  if form is None:
    form = detected((row for _, row in table.scan()), table.path)
  return Converter(form, table)


def checked(format: Any) -> str | Columns | None:
  """Checks what a config says of the format.

  Raises:
    UserError: if it is neither a known name, nor a mapping of columns.
  """
  if format is None or (isinstance(format, str) and format in FORMATS):
    return format
  if isinstance(format, str):
    raise UserError(
      f"format: expected one of {', '.join(FORMATS)}, or a mapping of columns,"
      f' found {format!r:.80}; write {{"question": COLUMN, "answer": COLUMN}}'
    )
  if hasattr(format, "to_dict"):
    format = format.to_dict()
  if not isinstance(format, Mapping):
    raise UserError(
      f"format: expected one of {', '.join(FORMATS)}, or a mapping of columns,"
      f" found {format!r:.80}"
    )
  return Columns(format)


def detected(rows: Iterable[Any], path: str) -> str:
  """Finds the one format that rows can have.

  Args:
    rows: read until one of them tells.
    path: their file.

  Raises:
    UserError: if none of the formats has their keys, or several do.
  """
  left = set(FORMATS)
  first: Any = None
  claimed = False
  for row in rows:
    if not isinstance(row, dict):
      continue
    first = first or row
    found = {name for name in left if _MODULES[name].claims(row)}
    if len(found) > 1:
      found = {n for n in found if row.keys() <= _KNOWN[n]} or found
    if not found:
      continue  # Its mistake is told when all rows are checked.
    left, claimed = found, True
    if len(left) == 1:
      break
  if claimed and len(left) == 1:
    return left.pop()
  if first is None:
    return FORMATS[0]  # Each row has a mistake, or there is none.
  keys = lines.listed(first) or "of none"
  if not claimed:
    raise UserError(
      f"{path}: expected rows of a known format ({', '.join(FORMATS)}), found"
      f" keys {keys}; name the format, or map its columns:"
      ' format={"question": COLUMN, "answer": COLUMN, ..}'
    )
  raise UserError(
    f"{path}: expected rows that one format alone can have, found keys {keys},"
    f" which {' and '.join(sorted(left))} have; set format to one of them"
  )
