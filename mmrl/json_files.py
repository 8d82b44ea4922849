"""JSON files: those of a model directory, read into dataclasses."""

from collections.abc import Mapping
import json
import math
import os
import stat
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mmrl import storage
from mmrl.errors import UserError

T = TypeVar("T")
# A tokenizer's file has tens of megabytes.
_MOST_BYTES = 2**28


def check_regular(path: storage.Name) -> None:
  """Refuses what can't be read to its end: a pipe, a device, a folder.

  A link is what it leads to. Nothing is opened, as that may wait for ever.

  Raises:
    FileNotFoundError: if there is no such file.
    UserError: if it is something else than a file.
  """
  if storage.is_remote(path):
    return
  mode = os.stat(path).st_mode
  if not stat.S_ISREG(mode):
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise UserError(
      f"{path} is not readable: expected a file, found {kind}; download the"
      " model's files again"
    )


def is_there(path: storage.Name) -> bool:
  """Tells whether a folder lists a file; not if the store can't be reached."""
  path = storage.path(path)
  try:
    return path.name in storage.names(path.parent)
  except OSError:
    return False


def read(path: storage.Name, what: str) -> dict[str, Any]:
  """Reads a JSON object from a file.

  Raises:
    UserError: if there is no such file or it isn't one, naming `what` it is.
  """
  try:
    return _load(path)
  except FileNotFoundError as error:
    raise UserError(
      f"expected {what} at {path}, found no file; pass a directory in the"
      " Hugging Face layout"
    ) from error


def optional(path: storage.Name) -> dict[str, Any]:
  """Reads a JSON object from a file; empty if there is no such file.

  Raises:
    UserError: if it isn't one.
  """
  try:
    return _load(path)
  except FileNotFoundError:
    return {}


def _load(path: storage.Name) -> dict[str, Any]:
  try:
    check_regular(path)
    if not storage.is_remote(path) and os.stat(path).st_size > _MOST_BYTES:
      raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    raw = json.loads(storage.read_text(path))
  except (UserError, FileNotFoundError):
    raise
  except RecursionError as error:
    raise UserError(
      f"{path} is not readable JSON: its objects are nested too deeply;"
      " download the model's files again"
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is not readable JSON: {error!s:.200}") from error
  if not isinstance(raw, dict):
    raise UserError(f"{path}: expected a JSON object, found {raw!r:.80}")
  return raw


def text(value: Any) -> str:
  """Formats a value as JSON, numbers that aren't finite as null."""
  return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def without_nulls(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the entries that are not null."""
  return {key: value for key, value in raw.items() if value is not None}


def part(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Returns the object called `name`, without nulls; empty if there is none.

  Raises:
    TypeError: if it is something else.
  """
  found = {} if raw.get(name) is None else raw[name]
  if not isinstance(found, dict):
    raise TypeError(f"{name} is {found!r:.80}, not an object")
  return without_nulls(found)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
  """Builds dataclass `cls` from the entries of `values` that it names.

  Raises:
    TypeError: naming what is missing or of another type.
  """
  hints = get_type_hints(cls)
  return cls(
    **{
      name: _convert(hints[name], value, name)
      for name, value in values.items()
      if name in hints
    }
  )


def _convert(hint: Any, value: Any, name: str) -> Any:
  if get_origin(hint) is tuple and isinstance(value, list | tuple):
    hints = get_args(hint)
    if hints[-1] is Ellipsis:
      hints = hints[:1] * len(value)
    if len(hints) == len(value):
      pairs = zip(hints, value, strict=True)
      return tuple(_convert(kind, item, name) for kind, item in pairs)
  elif get_origin(hint) is not tuple and isinstance(value, bool) == (
    hint is bool
  ):
    if hint is float and isinstance(value, int) and abs(value) < 2**1000:
      value = float(value)
    if isinstance(value, hint) and not (
      isinstance(value, float) and not math.isfinite(value)
    ):
      return value
  raise TypeError(f"{name} is {value!r:.80}")
