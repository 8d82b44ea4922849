"""Programs of a plan for a TPU, each compiled in a process of its own.

A process ends as soon as the memory of its program is known, as nothing else
can stop XLA from making machine code of it, which takes most of its time. Some
run side by side, if there are cores.
"""

from collections.abc import Iterator
import contextlib
import itertools
import multiprocessing
from multiprocessing.connection import Connection
import os
import tempfile
import threading
import time
from typing import Any

import jax
import ml_collections

from mmrl.errors import UserError
from mmrl.plan import assignment, chips
from mmrl.plan.figures import Measure, Program
from mmrl.plan.programs import Compiler
from mmrl.train import walk

# Seconds between looks at what XLA has written.
_PACE = 0.2
# Most processes at a time: a run has about as many programs.
_BESIDE = 6


def programs(
  config: ml_collections.ConfigDict, topology: str
) -> Iterator[Program]:
  """Compiles all programs of a run, as far as their memory needs it.

  Args:
    config: of the run, with all sizes.
    topology: see `chips.topology`.

  Yields:
    Programs, in the order in which a run calls them.

  Raises:
    UserError: if a process ends without an answer.
  """
  beside = min(len(os.sched_getaffinity(0)), _BESIDE)
  with contextlib.ExitStack() as stack:
    begun = (
      _begin(stack, config, topology, index) for index in itertools.count()
    )
    running = list(itertools.islice(begun, beside))
    while True:
      connection = running.pop(0)
      try:
        found = connection.recv()
      except EOFError as error:
        raise UserError(
          "plan: expected XLA to compile a program, found that it ended"
          " without an answer; it may need more memory than this machine has"
        ) from error
      if found is None:
        return
      if isinstance(found, Exception):
        raise found
      running.append(next(begun))
      yield found


def _begin(
  stack: contextlib.ExitStack,
  config: ml_collections.ConfigDict,
  topology: str,
  index: int,
) -> Connection:
  """Begins a process for one program; returns what its figures come from."""
  ours, theirs = multiprocessing.Pipe(duplex=False)
  process = multiprocessing.get_context("spawn").Process(
    target=_compile, args=(config, topology, index, theirs), daemon=True
  )
  process.start()
  theirs.close()
  stack.callback(process.kill)
  return ours


def _compile(
  config: ml_collections.ConfigDict,
  topology: str,
  index: int,
  answer: Connection,
) -> None:
  """Compiles the program of this index and sends its figures, None if none."""
  # XLA's own lines, and stack traces where a program is too large.
  chips.silence()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    found: Any
    try:
      found = _figures(config, topology, index, folder)
    except (UserError, jax.errors.JaxRuntimeError) as error:
      found = type(error)(str(error))
    answer.send(found)
  # Machine code is still being made.
  os._exit(0)


def _figures(
  config: ml_collections.ConfigDict, topology: str, index: int, folder: str
) -> Program | None:
  compiler = Compiler(config, chips.topology(topology))
  calls = compiler.calls()
  try:
    call = next(calls)
    for _ in range(index):
      call = calls.send(walk.laid(compiler.parts.layout, call.traced()))
  except StopIteration:
    return None
  lowered, measure = compiler.lower(call)
  return _assigned(lowered, measure, folder)


def _assigned(lowered: Any, measure: Measure, folder: str) -> Program:
  """Compiles a program until XLA has written its buffers, or to the end."""
  ended: list[Program | Exception] = []

  def finish():
    try:
      compiled = lowered.compile(assignment.options(folder))
      ended.append(measure.finished(compiled))
    except jax.errors.JaxRuntimeError as error:
      try:
        ended.append(measure.refused(error))
      except jax.errors.JaxRuntimeError as other:
        ended.append(other)

  thread = threading.Thread(target=finish, daemon=True)
  thread.start()
  while thread.is_alive():
    time.sleep(_PACE)
    found = assignment.read(folder)
    if found:
      return measure.assigned(found.memory, found.text)
  (result,) = ended
  if isinstance(result, Exception):
    raise result
  return result
