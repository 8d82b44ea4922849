"""The flag --config: a file of Python, and fields of it on the command line."""

from collections.abc import Iterable, Sequence
import inspect
import re
import sys
import types
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from mmrl import python_files
from mmrl.config import MOVED, unknown_field
from mmrl.errors import UserError

_WHAT = "--config to be a file with get_config"
# `--config.a.b=1`, `--config.a.b 1`, and `--noconfig.a.b`.
_FIELD = re.compile(r"--?(?:no)?config\.([^=]+)")
_PART = re.compile(r"[^.\[]+")


class _Parser(flags.ArgumentParser):
  """Parses the flag; what is wrong is an error of flags, in one line."""

  def parse(self, path: str) -> ml_collections.ConfigDict:
    # Absl adds to a `ValueError`, which a `UserError` is, what this says.
    try:
      config = load(path)
      check_overrides(sys.argv, config)
    except UserError as error:
      raise flags.Error(str(error)) from error
    config.lock()
    return config


def define() -> flags.FlagHolder[ml_collections.ConfigDict]:
  """Defines the flag."""
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, as FILE.py or FILE.py:ARGUMENT; --config.FIELD=VALUE behind"
    " it changes a field.",
  )
  flags.FLAGS["config"].parser = _Parser()
  return holder


def load(path: str) -> ml_collections.ConfigDict:
  """Runs a config file.

  Args:
    path: as FILE.py or FILE.py:ARGUMENT.

  Returns:
    What its `get_config` returns.

  Raises:
    UserError: if it is missing, raises an exception or takes no argument.
  """
  name, colon, argument = path.partition(":")
  if name.endswith((".json", ".yaml", ".yml")):
    raise UserError(
      f"expected {_WHAT}, found {name}; write one that returns mmrl.config"
      ".get_config() with its fields changed"
    )
  module = python_files.run(name, _WHAT, "config_config", _explain)
  arguments = [argument] if colon else []
  get_config = python_files.function(module, "get_config", name)
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    takes = ", ".join(inspect.signature(get_config).parameters) or "no argument"
    raise UserError(
      f"expected --config={name}{':ARGUMENT' if not colon else ''}, as its"
      f" get_config takes {takes}; found {path}"
    ) from error
  with python_files.mistakes(name, _explain):
    config = get_config(*arguments)
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"expected get_config of {name} to return a ConfigDict, found"
      f" {type(config).__name__}; begin with mmrl.config.get_config() and end"
      " with return config"
    )
  return config


def check_overrides(
  arguments: Sequence[str], config: ml_collections.ConfigDict
) -> None:
  """Checks that a config has the fields that a command line sets.

  Raises:
    UserError: naming the nearest field, or what it is now.
  """
  for argument in arguments:
    match = _FIELD.match(argument)
    if not match:
      continue
    names = _PART.findall(match[1])
    node: Any = config
    for depth, name in enumerate(names):
      if re.fullmatch(r"\d+\]", name):
        break  # an element of a tuple, which ml_collections looks up
      if not isinstance(node, ml_collections.ConfigDict):
        raise UserError(
          f"config.{'.'.join(names)}: expected a field of the config, found"
          f" that config.{'.'.join(names[:depth])} is a value, {node!r:.60}"
        )
      if name not in node:
        path = ".".join(names[: depth + 1])
        hints = [unknown_field(path, node.keys())]
        wanted = f"{'.'.join(names)}."
        # A table that is there, as in another kind of config, hasn't moved.
        hints += _moved(
          old
          for old in MOVED
          if wanted.startswith(f"{old}.") and old.startswith(path)
        )
        raise UserError("; ".join(hints))
      node = node[name]


def _moved(paths: Iterable[str]) -> list[str]:
  """Says where fields are now, given their old paths."""
  return [f"config.{old} is now config.{MOVED[old]}" for old in paths]


def _explain(error: BaseException) -> str:
  """Says what an exception of a config file means."""
  place = _lookup(error)
  if place is None:
    # An arm that isn't there, in the file's own words.
    text = str(error) if type(error) is ValueError else ""
    return " ".join(text.split()) or python_files.text(error)
  table, name = place
  # Where the table stands in the config isn't known here.
  _, _, hint = unknown_field(name, map(str, table.keys())).partition(": ")
  return "; ".join(
    [hint, *_moved(old for old in MOVED if name in old.split("."))]
  )


def _lookup(
  error: BaseException,
) -> tuple[ml_collections.ConfigDict, str] | None:
  """Returns a config's table and the name that isn't in it, if that is it."""
  if not isinstance(error, AttributeError | KeyError):
    return None
  step: types.TracebackType | None = error.__traceback__
  while step is not None:
    here = step.tb_frame.f_locals
    table = here.get("self")
    name = here.get("attribute", here.get("key"))
    if isinstance(table, ml_collections.ConfigDict) and isinstance(name, str):
      return table, name
    step = step.tb_next
  return None
