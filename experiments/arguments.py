"""Command lines of experiments: help with defaults, mistakes in one line."""

import argparse
from collections.abc import Callable
import os
import pathlib
import sys
from typing import NoReturn

from mmrl.errors import UserError, nearest, tell
from mmrl.machines import signals


class _Help(
  argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
  """The docstring as it is, and defaults behind meanings."""


class Parser(argparse.ArgumentParser):
  """Parses a command line; a mistake is one line and exit status 2.

  Args:
    doc: of the module.
  """

  def __init__(self, doc: str):
    super().__init__(description=doc, formatter_class=_Help, allow_abbrev=False)

  def add_output(
    self, help: str, place: Callable[[str], pathlib.Path] | None = None
  ) -> None:
    """Adds `--output`, which must be given.

    Args:
      help: what is written there.
      place: reads the argument: `output_folder` if None, or `output_file`.
    """
    kind = place or output_folder
    self.add_argument("--output", required=True, type=kind, help=help)

  def parse(self) -> argparse.Namespace:
    """Returns the flags; refuses what is none, naming the nearest."""
    known = self._option_string_actions
    for argument in sys.argv[1:]:
      name = argument.partition("=")[0]
      if name.startswith("--") and name not in known:
        hint = nearest(name, known)
        self.error(f"expected a flag, found {name}{hint}; see --help")
    return self.parse_args()

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"error: {' '.join(message.split())}\n")


def output_folder(name: str) -> pathlib.Path:
  """Reads an argument: a folder to write to, which is made when it is written.

  Raises:
    ArgumentTypeError: if a file is in the way, or nothing may be written there.
  """
  path = pathlib.Path(name)
  _check_place(path, name)
  return path


def output_file(name: str) -> pathlib.Path:
  """Reads an argument: a file to write, whose folder is made before.

  Raises:
    ArgumentTypeError: if it is a folder, a file is in the way of its folder, or
      nothing may be written there.
  """
  path = pathlib.Path(name)
  if not path.name or path.is_dir():
    raise argparse.ArgumentTypeError(
      f"expected a file to write, found the folder {name!r}; add a file's name"
    )
  _check_place(path.parent, name)
  return path


def _check_place(folder: pathlib.Path, name: str) -> None:
  """Checks that a folder is there or can be made."""
  there = folder
  while not os.path.lexists(there) and there != there.parent:
    there = there.parent
  if not there.is_dir():
    raise argparse.ArgumentTypeError(
      f"expected a place to write to, found {name!r}, where {there} is no"
      " folder"
    )
  if not os.access(there, os.W_OK | os.X_OK):
    raise argparse.ArgumentTypeError(
      f"expected a place to write to, found {name!r}, where {there} may not be"
      " written to"
    )


def run(main: Callable[[], None]) -> None:
  """Runs a command; a user's mistake is one line and exit status 2.

  One that a signal stops while it trains says what is saved, and has the exit
  status of a run; ctrl-C ends others without a traceback.
  """
  try:
    main()
  except UserError as error:
    tell(f"error: {' '.join(str(error).split())}")
    sys.exit(2)
  except signals.Preempted as stopped:
    tell(str(stopped))
    sys.exit(signals.RESTART)
  except KeyboardInterrupt:
    tell("ended by ctrl-C")
    sys.exit(signals.AT_ONCE)
