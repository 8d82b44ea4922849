"""Texts of --help: flags, and the fields of a config with their meanings.

Meanings are the comments of `mmrl/config.py`. Nothing here imports JAX.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
import functools
import io
import pathlib
import textwrap
import tokenize
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags

from mmrl import config as config_lib
from mmrl.errors import UserError, nearest

_WIDTH = 80


class Field(NamedTuple):
  """A field of the config.

  Attributes:
    path: as "rollout.answers".
    value: its default; None of a table, whose fields follow.
    meaning: its comment; none of an entry of a table whose names are one's own.
    is_table: whether its fields follow.
  """

  path: str
  value: Any
  meaning: str
  is_table: bool


def command(doc: str, names: Iterable[str], required: Iterable[str]) -> str:
  """Formats a command's help.

  Args:
    doc: of its module, whose first line is how it is called.
    names: of its flags.
    required: those that must be given.
  """
  names, required = list(names), set(required)
  lines = [doc.strip(), "", "Flags:"]
  for name in sorted(names, key=lambda name: (name not in required, name)):
    flag = flags.FLAGS[name]
    if name in required:
      default = " (required)"
    elif flag.default in (None, [], ""):
      default = ""
    else:
      default = f" (default {flag.default})"
    # Absl says behind a `;` how to give a list.
    meaning = flag.help.partition(";\n    repeat")[0]
    lines += [f"  --{name}{default}", *_wrapped(meaning, 6)]
  lines += ["  --help", *_wrapped("This text.", 6)]
  if "config" in names:
    lines += [
      "  --help-config [PREFIX]",
      *_wrapped(
        "The config's fields, with meaning and default: all, or those whose"
        " names begin with PREFIX, as rollout.",
        6,
      ),
    ]
  return "\n".join(lines) + "\n"


def config(prefix: str = "", base: ModuleType = config_lib) -> str:
  """Formats the fields of a config that begin with a prefix.

  Args:
    prefix: of their paths.
    base: module whose `get_config` has them.

  Raises:
    UserError: if there is none.
  """
  prefix = prefix.removeprefix("--").removeprefix("config.")
  prefix = prefix.removeprefix("config")
  found = fields(base)
  chosen = [one for one in found if one.path.startswith(prefix)]
  if not chosen:
    raise UserError(
      f"--help-config: expected the beginning of a field's name, found"
      f" {prefix!r}{nearest(prefix, [one.path for one in found])}"
    )
  lines = []
  if not prefix:
    lines = [
      "Fields of a config: config.seed = 1 in its file, --config.seed=1 behind",
      "--config=FILE on the command line. A spec is {name: FUNCTION, OPTION:",
      "VALUE, ...}; its options are those of the function's docstring.",
      "",
    ]
  for one in chosen:
    value = ":" if one.is_table else f" = {_written(one.value)}"
    lines += _wrapped(f"config.{one.path}{value}", 0)
    lines += _wrapped(one.meaning, 4)
  return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
  """Formats a value; of a spec the name first."""
  if not isinstance(value, dict):
    return repr(value)
  first = sorted(value.items(), key=lambda item: item[0] != "name")
  inside = ", ".join(f"{key!r}: {_written(one)}" for key, one in first)
  return f"{{{inside}}}"


def _wrapped(text: str | None, indent: int) -> list[str]:
  spaces = " " * indent
  return textwrap.wrap(
    text or "",
    _WIDTH,
    initial_indent=spaces,
    subsequent_indent=spaces or "    ",
    break_long_words=False,
    break_on_hyphens=False,
  )


@functools.cache
def fields(base: ModuleType = config_lib) -> list[Field]:
  """Returns all fields of a module's config, tables before what they hold."""
  table = base.get_config().to_dict()
  return [*_fields(table, meanings(base), "")]


def _fields(
  table: Mapping, comments: Mapping[str, str], prefix: str
) -> Iterator[Field]:
  for name, value in table.items():
    path = prefix + name
    inner = f"{path}."
    commented = any(other.startswith(inner) for other in comments)
    # A spec without comments inside is one value, a function with its options.
    is_table = isinstance(value, dict) and (commented or "name" not in value)
    if value == {}:
      is_table = False
    yield Field(
      path, None if is_table else value, comments.get(path, ""), is_table
    )
    if is_table:
      yield from _fields(value, comments, inner)


@functools.cache
def meanings(base: ModuleType = config_lib) -> dict[str, str]:
  """Returns the comment of each field of a module's config that has one.

  It is behind the field, or in the lines right above it.
  """
  source = pathlib.Path(base.__file__ or "").read_text("utf-8")
  above, behind = _comments(source)
  (function,) = (
    node
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.FunctionDef) and node.name == "get_config"
  )
  (table,) = (
    node.args[0]
    for node in ast.walk(function)
    if isinstance(node, ast.Call) and node.args
  )
  found: dict[str, str] = {}

  def collect(table: ast.expr, prefix: str, outside: int) -> None:
    if not isinstance(table, ast.Dict):
      return
    # A comment beside several fields is none of theirs.
    lines = [outside, *(key.lineno for key in table.keys if key is not None)]
    for key, value in zip(table.keys, table.values, strict=True):
      assert isinstance(key, ast.Constant) and isinstance(key.value, str)
      path, line = prefix + key.value, key.lineno
      collect(value, f"{path}.", line)
      if lines.count(line) > 1:
        continue
      block: list[str] = []
      before = line - 1
      while before in above:
        block.insert(0, above[before])
        before -= 1
      if line in behind:
        block.append(behind[line])
      if block:
        found[path] = " ".join(block)

  collect(table, "", 0)
  return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
  """Returns comments by line: those that have one of their own, and others."""
  above: dict[int, str] = {}
  behind: dict[int, str] = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      text = token.string.lstrip("# ")
      alone = not token.line[: token.start[1]].strip()
      (above if alone else behind)[token.start[0]] = text
  return above, behind
