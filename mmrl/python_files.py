"""A user's files of Python, run so that a mistake in one is one line.

A config file is run anew whenever it is named. A file of functions is a module,
imported once: `module` gives it a name that says where the file is, so that
other processes can import it, too, and read pickles of its classes.
"""

from collections.abc import Callable, Iterator
import contextlib
import importlib.util
import pathlib
import traceback
import types
from typing import Any

from mmrl.errors import UserError, nearest

# From a file's exception, which is this one's cause, to the text of an error.
Explain = Callable[[BaseException], str]


def run(path: str, what: str, name: str, explain: Explain | None = None) -> Any:
  """Runs a file as a module of its own.

  Args:
    path: of the file; relative to the current directory.
    what: was expected, for errors.
    name: of the module.
    explain: see `mistakes`.

  Returns:
    The module.

  Raises:
    UserError: if there is no such file, or it raises an exception.
  """
  file = existing(path, what)
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None or spec.loader is None:
    raise UserError(f"expected {what}, found {path}; its name must end in .py")
  module = importlib.util.module_from_spec(spec)
  with mistakes(path, explain):
    spec.loader.exec_module(module)
  return module


def existing(path: str, what: str) -> pathlib.Path:
  """Returns the absolute path of a file.

  Raises:
    UserError: if it isn't there, naming the nearest of its folder.
  """
  file = pathlib.Path(path).absolute()
  if not file.is_file():
    folder = file.parent
    beside = sorted(p.name for p in folder.glob("*.py"))
    kind = "a folder" if file.is_dir() else "no file"
    raise UserError(
      f"expected {what}, found {kind} at {path}{nearest(file.name, beside)}"
    )
  return file


@contextlib.contextmanager
def mistakes(path: str, explain: Explain | None = None) -> Iterator[None]:
  """Turns an exception that a file raises into one line with its place.

  A `UserError` keeps its text.

  Args:
    path: of the file.
    explain: says what an exception means; its type and text by default.

  Raises:
    UserError: as "FILE:LINE: what it is".
  """
  try:
    yield
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    place = f"{path}:{line}" if (line := _line(error, path)) else path
    raise UserError(f"{place}: {(explain or text)(error)}") from error


def text(error: BaseException) -> str:
  """Returns type and text of an exception, in one line."""
  words = error.msg if isinstance(error, SyntaxError) else str(error)
  return f"{type(error).__name__}: {' '.join(words.split())}"


def _line(error: BaseException, path: str) -> int | None:
  """Returns the last line of a file on the way to an exception."""
  file = str(pathlib.Path(path).absolute())
  if isinstance(error, SyntaxError) and error.filename == file:
    return error.lineno
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == file
  ]
  return lines[-1] if lines else None


def function(module: types.ModuleType, name: str, path: str) -> Callable:
  """Returns a function or class of a file's module.

  Raises:
    UserError: if it has none of that name.
  """
  own = [
    key
    for key, value in vars(module).items()
    if callable(value) and not key.startswith("_")
  ]
  if not hasattr(module, name):
    raise UserError(
      f"expected a function or class {name} in {path}, found"
      f" {', '.join(own) or 'none'}{nearest(name, own)}"
    )
  found = getattr(module, name)
  if not callable(found):
    raise UserError(
      f"expected {name} in {path} to be a function or class, found"
      f" {type(found).__name__}"
    )
  return found
