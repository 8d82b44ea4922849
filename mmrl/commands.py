"""Flags, errors and exit status that every `python -m mmrl.COMMAND` shares."""

from collections.abc import Callable, Sequence
import ctypes
import gc
import logging
import os
import sys

from absl import flags
from ml_collections import config_flags

from mmrl.config import MOVED
from mmrl.errors import UserError
from mmrl.machines import watch

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, as FILE.py or FILE.py:argument."
)
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
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "This one, from 0 on.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")


def run(
  main: Callable[[], None], *, required: Sequence[str] = ("config", "workdir")
) -> None:
  """Parses flags and runs `main`; a user's mistake is one line and status 2.

  Args:
    main: takes nothing; reads the flags.
    required: flags that must be given.
  """
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  # Orbax logs every save, and a failed one with a traceback from each of its
  # threads; what a user needs of that is in the error that is raised.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  try:
    flags.FLAGS(sys.argv)
    for name in required:
      if flags.FLAGS[name].value is None:
        raise UserError(f"expected --{name}, found none; see README.md")
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    # ml_collections reports an unknown or mistyped field as any of these; a
    # config file refuses its argument with the last.
    _fail(error)
  except (FileNotFoundError, ImportError) as error:
    _fail(f"expected a readable --config file: {error}")
  if DISTRIBUTED.value or COORDINATOR.value:
    watch.over(COORDINATOR.value, PROCESSES.value)
  keep_freed_memory()
  import jax  # late, so that a mistyped flag is answered at once

  # Tracing makes many objects that stay: at Python's own pace, looking for
  # garbage among them takes an eighth of the time to the first step.
  gc.set_threshold(_COLLECT_AFTER_OBJECTS)

  from mmrl.machines import processes

  try:
    main()
    return
  except UserError as error:
    mistake = str(error)
  except processes.Preempted as stopped:
    print(stopped, file=sys.stderr)
    processes.exit_with(processes.RESTART)
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = " ".join(str(error).split())
    print(
      f"process {jax.process_index()} stops, as another process ended or can't"
      f" be reached ({reason:.200}); run the same command again on all",
      file=sys.stderr,
    )
    processes.exit_with(processes.RESTART)
  # The error is gone, and with it what held the shared memory of workers, of
  # which Python would warn after the message.
  gc.collect()
  _fail(mistake, processes.exit_with)


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


def _fail(error: Exception | str, exit_: Callable = sys.exit) -> None:
  text = str(error)
  if isinstance(error, AttributeError | KeyError):
    # ml_collections quotes what it has quoted already.
    while text[:1] in "'\"" and text[:1] == text[-1:] and len(text) > 1:
      text = text[1:-1]
    text = text.replace("\\n", " ").replace("\\", "")
    moved = _moved(text.split()[0].strip("'")) if text.split() else []
    text = f"expected a field of the config (mmrl/config.py), found {text}"
    text = "; ".join([text, *moved])
  text = " ".join(text.split())
  print(f"error: {text}", file=sys.stderr)
  exit_(2)


def _moved(name: str) -> list[str]:
  """Says where a field is now, given the part of its name that isn't there.

  Where it is on the command line, the rest of its name must agree; in a config
  file the rest isn't known.
  """
  flag = "--config."
  given = [
    argument.partition("=")[0].removeprefix(flag) + "."
    for argument in sys.argv
    if argument.startswith(flag)
  ]
  given = [field for field in given if name in field.split(".")]
  return [
    f"config.{old} is now config.{new}"
    for old, new in MOVED.items()
    if name in old.split(".")
    and (not given or any(field.startswith(f"{old}.") for field in given))
  ]
