"""A user's files of Python, run so that a mistake in one is one line.

A config file is run anew whenever it is named. A file of functions is a module
of this package, imported once, whose name says where the file is: so other
processes, which import this package first, can import it, too, and read pickles
of its classes.
"""

from collections.abc import Callable, Iterator
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
import traceback
import types
from typing import Any

from mmrl.errors import UserError, nearest

# From a file's exception, which is this one's cause, to the text of an error.
Explain = Callable[[BaseException], str]


_ENCODED = f"{__name__}.at_"


class _Loader(importlib.machinery.SourceFileLoader):
  """Compiles a file as it is now; what Python keeps may be a second older."""

  def get_code(self, fullname: str) -> types.CodeType:
    return self.source_to_code(self.get_data(self.path), self.path)


class _Finder(importlib.abc.MetaPathFinder):
  """Finds the modules of this package, whose names are paths of files."""

  def find_spec(
    self, name: str, path: Any, target: Any = None
  ) -> importlib.machinery.ModuleSpec | None:
    if not name.startswith(_ENCODED):
      return None
    file = bytes.fromhex(name.removeprefix(_ENCODED)).decode()
    return importlib.util.spec_from_loader(name, _Loader(name, file))


sys.meta_path.append(_Finder())


def imported(path: str, what: str) -> types.ModuleType:
  """Imports a file, once.

  Args:
    path: of the file; relative to the current directory.
    what: was expected, for errors.

  Raises:
    UserError: if there is no such file, or it raises an exception.
  """
  file = existing(path, what)
  with mistakes(path):
    return importlib.import_module(_ENCODED + str(file).encode().hex())


def run(path: str, what: str, name: str, explain: Explain | None = None) -> Any:
  """Runs a file as a module that nothing else can import.

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
  loader = _Loader(name, str(existing(path, what)))
  spec = importlib.util.spec_from_loader(name, loader)
  assert spec is not None
  module = importlib.util.module_from_spec(spec)
  with mistakes(path, explain):
    loader.exec_module(module)
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
    said = (explain or text)(error)
    raise UserError(f"{place(error, path)}: {said}") from error


def place(error: BaseException, path: str) -> str:
  """Returns a file with the line that an exception passed last, if any."""
  line = _line(error, path)
  return path if line is None else f"{path}:{line}"


def text(error: BaseException) -> str:
  """Returns type and text of an exception, in one line."""
  words = error.msg if isinstance(error, SyntaxError) else str(error)
  return f"{type(error).__name__}: {' '.join(words.split()):.300}"


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
