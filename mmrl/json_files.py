"""JSON files: those of a model directory, read into dataclasses."""

from collections.abc import Mapping
import json
import math
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mmrl import storage
from mmrl.errors import UserError

T = TypeVar("T")


def read(path: storage.Name, what: str) -> dict[str, Any]:
  """Reads a JSON object from a file.

  Raises:
    UserError: if there is no such file or it isn't one, naming `what` it is.
  """
  try:
    raw = json.loads(storage.read_text(path))
  except FileNotFoundError as error:
    raise UserError(
      f"expected {what} at {path}, found no file; pass a directory in the"
      " Hugging Face layout"
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is not readable JSON: {error}") from error
  if not isinstance(raw, dict):
    raise UserError(f"{path}: expected a JSON object, found {raw!s:.80}")
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
  found = raw.get(name) or {}
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
    if hint is float and isinstance(value, int):
      return float(value)
    if isinstance(value, hint):
      return value
  raise TypeError(f"{name} is {value!r:.80}")
