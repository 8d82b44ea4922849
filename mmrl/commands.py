"""Flags, help, errors and exit status of all `python -m mmrl.COMMAND`."""

from collections.abc import Callable, Collection, Sequence
import ctypes
import functools
import gc
import logging
import os
import sys
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from mmrl import config as base_config
from mmrl import config_file
from mmrl import help as help_lib
from mmrl.errors import UserError, nearest, tell
from mmrl.machines import signals, watch

CONFIG = config_file.define()
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_COLLECT_AFTER_OBJECTS = 100000
DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Join the other processes of this run, as a TPU pod or Slurm describes them.",
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where nothing describes them."
)
PROCESSES = flags.DEFINE_integer(
  "processes", None, "Number of processes, with --coordinator."
)
PROCESS = flags.DEFINE_integer(
  "process", None, "Number of this one, from 0 on, with --coordinator."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
# Flags of a run of several processes.
JOINING = ("distributed", "coordinator", "processes", "process")
_SHARED = ("config", "workdir", *JOINING)


def run(
  main: Callable[..., None],
  *,
  required: Sequence[str] = ("config", "workdir"),
  also: Sequence[str] = (),
  places: Sequence[str] = (),
  resumes: bool = False,
  base: ModuleType = base_config,
) -> None:
  """Parses flags and runs `main`; a user's mistake is one line and status 2.

  Args:
    main: takes the arguments that are no flags; reads the flags. Its module's
      docstring is the help.
    required: flags that must be given.
    also: flags of this module that the command takes besides.
    places: what the arguments are called that are no flags, all of which must
      be given.
    resumes: whether the same command goes on from where a signal stopped it.
    base: module whose `get_config` has the fields of the config.
  """
  if resumes:
    signals.at_once()
  try:
    _run(main, required, also, places, resumes, base)
  except KeyboardInterrupt:
    if resumes:
      signals.abandon()
    os._exit(signals.AT_ONCE)


def _run(
  main: Callable[..., None],
  required: Sequence[str],
  also: Sequence[str],
  places: Sequence[str],
  resumes: bool,
  base: ModuleType,
) -> None:
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  # Orbax logs every save, and a failed one with a traceback from each of its
  # threads; what a user needs of that is in the error that is raised.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  # Its read of a damaged file ends at the first error. What its other threads
  # find later, nobody waits for, which asyncio and Python would tell of.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  sys.unraisablehook = functools.partial(_ignored, sys.unraisablehook)
  doc = main.__globals__["__doc__"] or ""
  arguments = parse(doc, required=required, also=also, places=places, base=base)
  if DISTRIBUTED.value or COORDINATOR.value:
    watch.over(COORDINATOR.value, PROCESSES.value)
  if resumes:
    signals.watch()
  keep_freed_memory()
  # Imports and tracing make many objects that stay. At Python's own pace,
  # looking for garbage among them is an eighth of the time to the first step.
  gc.set_threshold(_COLLECT_AFTER_OBJECTS)
  import jax  # late, so that a mistyped flag is answered at once

  from mmrl.machines import processes

  try:
    main(*arguments)
    _flush()
    return
  except UserError as error:
    mistake = str(error)
  except signals.Preempted as stopped:
    tell(str(stopped))
    processes.exit_with(signals.RESTART)
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = " ".join(str(error).split())
    tell(
      f"process {jax.process_index()} stops, as another process ended or can't"
      f" be reached ({reason:.200}); run the same command again on all"
    )
    processes.exit_with(signals.RESTART)
  # The error is gone, and with it what held the shared memory of workers, of
  # which Python would warn after the message.
  gc.collect()
  _fail(mistake, processes.exit_with)


def _ignored(tell_of: Callable[[Any], object], found: Any) -> None:
  """Tells of what is raised where nothing can be, but not of a late read."""
  if str(found.exc_value) != "Event loop is closed":
    tell_of(found)


def _flush() -> None:
  """Writes out what was printed; a full disk doesn't change the exit status."""
  try:
    sys.stdout.flush()
  except OSError as error:
    tell(f"warning: could not write the output: {error.strerror}")
    # Else Python would try again as it ends, and end with a status of its own.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def given(flag: flags.FlagHolder[str | None]) -> str:
  """Returns the value of a flag that `run` has required."""
  assert flag.value is not None
  return flag.value


def keep_freed_memory() -> None:
  """Lets this process keep freed memory instead of returning it (glibc).

  XLA's CPU programs take their temporary memory anew at each call; returned
  in between, its pages are cleared again by the system every time, a tenth to
  a fifth of a small model's update. Before JAX starts its threads: each would
  have an arena of its own, which doesn't keep large pieces. On accelerators,
  or with another C library, this changes nothing that matters.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  largest = 2**31 - 1
  mallopt(_M_ARENA_MAX, 1)
  mallopt(_M_MMAP_THRESHOLD, largest)
  mallopt(_M_TRIM_THRESHOLD, largest)


def parse(
  doc: str,
  *,
  required: Sequence[str] = (),
  also: Sequence[str] = (),
  places: Sequence[str] = (),
  base: ModuleType = base_config,
) -> list[str]:
  """Parses flags, or answers --help; neither needs JAX.

  Args:
    doc: of the command, see `mmrl.help.command`.
    required: flags that must be given.
    also: flags of this module that the command takes besides.
    places: see `run`.
    base: module whose `get_config` has the fields of the config.

  Returns:
    The arguments that are no flags, one for each of `places`.
  """
  names = _taken({*required, *also})
  try:
    if _answer_help(doc, names, required, base):
      sys.exit(0)
    rest = flags.FLAGS(sys.argv)[1:]
    if rest and not places:
      raise UserError(
        f"expected flags only, found {rest[0]!r}; write --NAME=VALUE, see"
        " --help"
      )
    if len(rest) != len(places):
      raise UserError(
        f"expected {' '.join(places)} and flags, found"
        f" {' '.join(map(repr, rest)) or 'none'}; see --help"
      )
    for name in _SHARED:
      if name not in names and flags.FLAGS[name].present:
        raise UserError(_unknown(name, names))
    for name in required:
      if flags.FLAGS[name].value is None:
        raise UserError(f"expected --{name}, found none; see --help")
    return rest
  except flags.UnrecognizedFlagError as error:
    _fail(_unknown(error.flagname, names))
  except (flags.Error, LookupError, TypeError, ValueError) as error:
    # What ml_collections raises of a field's value may be any of these.
    _fail(str(error))


def _taken(shared: Collection[str]) -> list[str]:
  """Returns the flags of this command: its own, and those of the shared."""
  return sorted(
    flag.name
    for module, found in flags.FLAGS.flags_by_module_dict().items()
    for flag in found
    if not module.startswith(("absl", "etils"))
    if flag.name in shared
    or (flag.name not in _SHARED and not flag.name.startswith("config."))
  )


def _answer_help(
  doc: str, names: Collection[str], required, base: ModuleType
) -> bool:
  """Prints what is asked for, and tells whether anything is."""
  for place, argument in enumerate(sys.argv[1:], 2):
    name, _, value = argument.partition("=")
    if argument in ("-h", "-help", "--help"):
      print(help_lib.command(doc, names, required), end="")
      return True
    if name.replace("_", "-") == "--help-config" and "config" in names:
      following = sys.argv[place : place + 1]
      prefix = value or "".join(x for x in following if x[:1] != "-")
      print(help_lib.config(prefix, base), end="")
      return True
  return False


def _unknown(name: str, names: Collection[str]) -> str:
  """Says that the command has no such flag."""
  if name.startswith("config.") and "config" in names:
    return f"expected --config=FILE before --{name}, found none; see --help"
  hint = nearest(f"--{name}", [f"--{one}" for one in names])
  return f"expected a flag of this command, found --{name}{hint}; see --help"


def _fail(error: str, exit_: Callable = sys.exit) -> NoReturn:
  tell(f"error: {' '.join(error.split())}")
  exit_(2)
  raise AssertionError  # `exit_` doesn't return
