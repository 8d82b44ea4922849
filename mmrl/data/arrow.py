"""Rows of parquet files, and of data sets of the hub: `pyarrow`'s tables.

Pictures aren't read with the others columns, where they are structs of `bytes`
and `path` as `datasets` writes them: that every one has bytes is known from
the file's statistics, which bytes is read when a row is asked for.
"""

import bisect
import collections
from collections.abc import Iterator
import itertools
import threading
from typing import Any
import weakref

from mmrl import storage
from mmrl.data import lines, media
from mmrl.data.tables import Blob, Table
from mmrl.errors import UserError, not_installed

_BATCH = 1000  # Rows that become Python objects at once.
_KEPT = 4  # Row groups that are held in memory.
_LARGE = 2**28  # Bytes of a row group, above which a person is told.
_HUB = "hub:"


def _needed(package: str, what: str) -> Any:
  """Imports a package that reads `what`."""
  try:
    if package == "datasets":
      import datasets

      return datasets
    import pyarrow.parquet

    return pyarrow
  except ImportError as error:
    extra = "hub" if package == "datasets" else "data"
    raise not_installed(
      f"the package {package} to read {what}", extra
    ) from error


class _Groups(Table):
  """Rows in groups, each a table of Arrow."""

  def __init__(self, path: str, sizes: list[int]):
    super().__init__(path)
    self._ends = list(itertools.accumulate(sizes))
    self._open()

  def _open(self) -> None:
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[int, Any] = collections.OrderedDict()

  def __getstate__(self) -> dict[str, Any]:
    hidden = ("_lock", "_kept", "_file")
    return {k: v for k, v in vars(self).items() if k not in hidden}

  def __setstate__(self, state: dict[str, Any]) -> None:
    vars(self).update(state)
    self._open()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def _group(self, group: int) -> Any:
    """Reads a group, pictures with it."""
    raise NotImplementedError

  def _light(self, group: int) -> tuple[Any, list[str]]:
    """Reads a group without its pictures, as far as that is possible.

    Returns:
      (table, names of columns whose pictures all lack their bytes in it).
    """
    raise NotImplementedError

  def _start(self, group: int) -> int:
    return self._ends[group - 1] if group else 0

  def __getitem__(self, index: int) -> Any:
    group = bisect.bisect_right(self._ends, index)
    try:
      with self._lock:
        if group not in self._kept:
          self._kept[group] = self._group(group)
          while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        table = self._kept[group]
      return _row(table, index - self._start(group), [])
    except UserError as error:
      raise UserError(f"{self.name(index)}: {error}") from error

  def scan(self) -> Iterator[tuple[int, Any]]:
    for group in range(len(self._ends)):
      table, lacking = self._light(group)
      start = self._start(group)
      for at in range(0, table.num_rows, _BATCH):
        for i, row in enumerate(_rows(table.slice(at, _BATCH), lacking)):
          yield start + at + i, row


def _rows(table: Any, lacking: list[str]) -> Iterator[Any]:
  """Yields the rows of a table, or their errors."""
  try:
    columns = [_values(column) for column in table.columns]
  except Exception:  # One text that isn't UTF-8 or is refused is enough.
    for index in range(table.num_rows):
      try:
        yield _row(table, index, lacking)
      except UserError as error:
        yield error
    return
  names = table.column_names
  for values in zip(*columns, strict=True):
    row = zip(names, values, strict=True)
    yield _marked({k: v for k, v in row if v is not None}, lacking)


def _values(column: Any) -> list[Any]:
  """Returns the values of a column without nulls, their texts checked."""
  values = column.to_pylist()
  if all(map(_is_clean, column.chunks)):
    return values
  return [lines.cleaned(value) for value in values]


def _is_clean(array: Any) -> bool:
  """Tells, sooner than with objects of Python, if `lines.cleaned` is needless.

  Args:
    array: whose own nulls don't count; those of lists and rows stay.
  """
  import pyarrow
  import pyarrow.compute

  kind, types = array.type, pyarrow.types
  if types.is_struct(kind):
    return all(not one.null_count and _is_clean(one) for one in array.flatten())
  if types.is_list(kind) or types.is_large_list(kind):
    return _is_clean(array.flatten())
  if types.is_string(kind) or types.is_large_string(kind):
    found = pyarrow.compute.match_substring_regex(array, f"[{lines.CONTROLS}]")
    return not pyarrow.compute.any(found).as_py()
  return types.is_primitive(kind) or types.is_null(kind)


def _row(table: Any, index: int, lacking: list[str]) -> Any:
  try:
    (row,) = table.slice(index, 1).to_pylist()
  except Exception as error:
    raise UserError(
      f"expected a row that can be read, found: {error!s:.100}; write the file"
      " again"
    ) from error
  return _marked(lines.cleaned(row), lacking)


def _marked(row: dict[str, Any], lacking: list[str]) -> dict[str, Any]:
  """Returns a row with marks where its bytes are."""
  for name in lacking:
    value = row.get(name, [])
    for picture in value if isinstance(value, list) else [value]:
      if picture is not None:
        picture["bytes"] = media.UNREAD
  return row


class Parquet(_Groups):
  """A parquet file."""

  def __init__(self, path: str):
    """Opens a file.

    Raises:
      UserError: if it is no such file, or pyarrow isn't installed.
    """
    self._arrow = _needed("pyarrow", path).__name__
    Blob(path, "a readable data file")
    self.path = path
    self._file = self._opened()
    meta = self._file.metadata
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    super().__init__(path, [group.num_rows for group in groups])
    self._leaves = list(
      zip(
        _leaves(self._file.schema_arrow),
        [self._file.schema.column(i).path for i in range(meta.num_columns)],
        strict=True,
      )
    )
    self.names = self._file.schema_arrow.names
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > _LARGE:
      self.note = (
        f"a row group of {largest / 2**20:,.0f} MB is read whole for each of"
        " its rows: write it with row_group_size=100"
      )

  def _open(self) -> None:
    super()._open()
    self._file = self._opened()

  def _opened(self) -> Any:
    pyarrow = _needed("pyarrow", self.path)
    try:
      source: Any = self.path
      if storage.is_remote(self.path):
        source = storage.path(self.path).open("rb")
        weakref.finalize(self, source.close)
      return pyarrow.parquet.ParquetFile(source)
    except Exception as error:
      raise UserError(
        f"{self.path}: expected a parquet file, found: {error!s:.100}; write it"
        " again"
      ) from error

  def _columns(self) -> list[str]:
    """Returns the paths of what is read in the file."""
    return [path for leaf, path in self._leaves if leaf[0] not in self.skip]

  def _group(self, group: int) -> Any:
    return self._file.read_row_group(
      group, columns=self._columns(), use_threads=False
    )

  def _light(self, group: int) -> tuple[Any, list[str]]:
    known = {path: leaf for leaf, path in self._leaves}
    apart = self._apart()
    with self._lock:
      columns = [path for path in self._columns() if path not in apart]
      table = self._file.read_row_group(
        group, columns=columns, use_threads=False
      )
      lacking = []
      for path, column in apart.items():
        name = known[path][0]
        if name in self.skip:
          continue
        count = self._bytes(group, column)
        pictures = _count(table.column(name))
        if count == pictures:
          lacking.append(name)
        elif count != 0:  # Some have bytes, or it isn't known.
          columns.append(path)
    if len(columns) > len(self._columns()) - len(apart):
      with self._lock:
        table = self._file.read_row_group(
          group, columns=columns, use_threads=False
        )
    return table, lacking

  def _apart(self) -> dict[str, int]:
    """Returns paths and numbers of columns of bytes that have a path beside."""
    leaves = {leaf for leaf, _ in self._leaves}
    return {
      path: i
      for i, (leaf, path) in enumerate(self._leaves)
      if leaf in {(leaf[0], "bytes"), (leaf[0], "[]", "bytes")}
      and (*leaf[:-1], "path") in leaves
    }

  def _bytes(self, group: int, column: int) -> int | None:
    """Returns how many pictures of a group have bytes, if that is known."""
    meta = self._file.metadata.row_group(group).column(column)
    found = meta.statistics
    if found is None or not found.has_null_count:
      return None
    return meta.num_values - found.null_count


def _leaves(schema: Any) -> list[tuple[str, ...]]:
  """Returns the leaves of a schema in order, "[]" for an item of a list."""
  import pyarrow

  def of(kind: Any) -> Iterator[tuple[str, ...]]:
    if pyarrow.types.is_struct(kind):
      for field in kind:
        yield from ((field.name, *rest) for rest in of(field.type))
    elif pyarrow.types.is_map(kind):
      for one in (kind.key_type, kind.item_type):
        yield from (("{}", *rest) for rest in of(one))
    elif hasattr(kind, "value_type") and not pyarrow.types.is_dictionary(kind):
      yield from (("[]", *rest) for rest in of(kind.value_type))
    else:
      yield ()

  return [(field.name, *rest) for field in schema for rest in of(field.type)]


def _count(column: Any) -> int:
  """Counts the pictures of a column of structs or of lists of them."""
  import pyarrow
  import pyarrow.compute

  if not pyarrow.types.is_struct(column.type):
    column = pyarrow.compute.list_flatten(column)
  return len(column) - column.null_count


class Hub(_Groups):
  """A split of a data set of the Hugging Face hub, as `datasets` keeps it."""

  def __init__(self, path: str):
    """Loads a data set.

    Args:
      path: hub:OWNER/NAME, hub:OWNER/NAME@SPLIT, or with /CONFIG behind NAME;
        the split is "train" if none is given.

    Raises:
      UserError: if there is none, or `datasets` isn't installed.
    """
    datasets = _needed("datasets", path)
    name, _, split = path.removeprefix(_HUB).partition("@")
    owner, _, rest = name.partition("/")
    rest, _, config = rest.partition("/")
    if not owner or not rest:
      raise UserError(f"expected hub:OWNER/NAME@SPLIT, found {path!r:.200}")
    try:
      loaded = datasets.load_dataset(
        f"{owner}/{rest}", config or None, split=split or "train"
      )
    except Exception as error:
      reason = " ".join(str(error).split())
      raise UserError(
        f"expected a data set of the hub at {path}, found: {reason:.200}"
      ) from error
    # Pictures stay as they are stored.
    self._data = loaded.with_format("arrow")
    self.names = loaded.column_names
    count = len(self._data)
    sizes = [min(_BATCH, count - at) for at in range(0, count, _BATCH)]
    super().__init__(path, sizes)

  def _group(self, group: int) -> Any:
    table = self._data[self._start(group) : self._ends[group]]
    return table.select([n for n in table.column_names if n not in self.skip])

  def _light(self, group: int) -> tuple[Any, list[str]]:
    return self._group(group), []


def is_hub(path: str) -> bool:
  """Tells whether a path names a data set of the hub."""
  return path.startswith(_HUB)
