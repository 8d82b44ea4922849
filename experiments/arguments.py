"""Command lines of experiments: help with defaults, mistakes in one line."""

import argparse
from collections.abc import Callable
import sys
from typing import NoReturn

from mmrl.errors import UserError, nearest


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


def run(main: Callable[[], None]) -> None:
  """Runs a command; a user's mistake is one line and exit status 2."""
  try:
    main()
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
