"""Several processes, one run: how they join, agree, and end together."""

from collections.abc import Callable, Mapping
import hashlib
import os
import sys
import time

import jax
from jax.experimental import multihost_utils
import numpy as np

from mmrl.errors import UserError
from mmrl.types import PyTree

# Longest error message that goes from the first process to the others.
_TEXT_BYTES = 1000
# How long the first process, which the others talk through, outlives an error
# that all of them report.
_LAST_WORDS_SECONDS = 2.0


def join(
  coordinator: str | None,
  count: int | None,
  index: int | None,
  *,
  timeout_seconds: int = 300,
) -> None:
  """Joins the processes of a run (`jax.distributed.initialize`).

  Args:
    coordinator: HOST:PORT of the first process. On a TPU pod and under Slurm,
      Open MPI or Kubernetes JAX finds all three out when they are None.
    count: number of processes.
    index: which of them this is.
    timeout_seconds: how long the first to come waits for the last, and how
      long the others take to notice that one has died silently.

  Raises:
    UserError: if they don't find each other, as far as JAX raises an error.
      Where it aborts instead, `mmrl.machines.watch.over` reports it.
  """
  # The loop listens for SIGTERM itself.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      index,
      initialization_timeout=timeout_seconds,
      heartbeat_timeout_seconds=min(timeout_seconds, 100),
    )
  except (RuntimeError, ValueError, TypeError) as error:
    reason = " ".join(str(error).split())
    raise UserError(
      f"expected {count or 'all'} processes to join at"
      f" {coordinator or 'a coordinator that JAX finds'}, found: {reason:.200};"
      " start the same command on every machine, each with its own --process"
    ) from error


def check_same(text: str) -> None:
  """Checks by hash that all processes were started with the same `text`.

  Raises:
    UserError: on every process, naming those that differ from the first.
  """
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  found = _gather(digest)
  others = [i for i, one in enumerate(found) if (one != found[0]).any()]
  if others:
    raise UserError(
      f"expected the same config and --workdir on all {len(found)} processes,"
      f" found others than process 0's on {', '.join(map(str, others))}; start"
      " the same command and files everywhere"
    )


def first_only(action: Callable[[], None]) -> None:
  """Runs `action` on the first process; raises its `UserError` on all."""
  message = b""
  if jax.process_index() == 0:
    try:
      action()
    except UserError as error:
      message = str(error).encode()[:_TEXT_BYTES] or b"error"
  text = np.zeros(_TEXT_BYTES, np.uint8)
  text[: len(message)] = np.frombuffer(message, np.uint8)
  told = _gather(text)[0].tobytes().rstrip(b"\0")
  if told:
    raise UserError(told.decode(errors="ignore"))


def gather(text: str) -> list[str]:
  """Gathers a text of every process, in their order; all must call it."""
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = [int(n) for n in _gather(np.array(data.size, np.int32))]
  padded = np.zeros(max(sizes), np.uint8)
  padded[: data.size] = data
  rows = _gather(padded)
  return [
    row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
  ]


def mean(values: Mapping[str, float]) -> dict[str, float]:
  """Averages over the processes the numbers that each has measured."""
  names = sorted(values)
  found = _gather(np.array([values[name] for name in names], np.float32))
  if len(found) == 1:
    return dict(values)
  return dict(zip(names, found.mean(0).tolist(), strict=True))


def total(values: Mapping[str, float]) -> dict[str, float]:
  """Adds up over the processes what each has counted."""
  return {
    name: value * jax.process_count() for name, value in mean(values).items()
  }


def any_of(here: bool) -> bool:
  """Tells whether something is true on any process; all must call it."""
  return mean({"here": float(here)})["here"] > 0


def whole(tree: PyTree) -> PyTree:
  """Gathers arrays of all processes on the host, where each can read them."""
  if jax.process_count() == 1:
    return tree
  # One after the other: each is on every device for a moment.
  return jax.tree.map(
    lambda x: multihost_utils.process_allgather(x, tiled=True), tree
  )


def _gather(array: np.ndarray) -> np.ndarray:
  """Gathers an array of every process, [processes, ...]; all must call it."""
  if jax.process_count() == 1:
    return array[None]
  return np.asarray(multihost_utils.process_allgather(array))


def exit_with(status: int) -> None:
  """Ends this process now, without waiting for others that may never come."""
  if jax.process_count() == 1:
    sys.exit(status)
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    time.sleep(_LAST_WORDS_SECONDS)
  os._exit(status)
