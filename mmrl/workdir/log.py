"""Logging of a run's metrics: metrics.jsonl and trackers."""

from collections.abc import Mapping
import json
import time
from typing import Any

import jax

from mmrl import storage
from mmrl.workdir.trackers import Trackers
from mmrl.workdir.writing import Appended, attempt

# Least seconds between two writes of metrics.jsonl to a store.
_SECONDS = 30.0
# Least seconds of a program's compilation that are logged by its name.
_SHOWN_SECONDS = 1.0


class Compilations:
  """Counts XLA compilations in this process, and their seconds.

  A program that is kept from an earlier run counts with the time of reading it.
  """

  def __init__(self):
    self.count, self.seconds = 0, 0.0
    self._latest: dict[str, float] = {}
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **about) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
      self.count += 1
      self.seconds += duration_secs
      name = str(about.get("fun_name", "others"))
      name = name.removeprefix("jit(").removesuffix(")").strip("<>")
      self._latest[name] = self._latest.get(name, 0.0) + duration_secs

  def latest(self) -> dict[str, float]:
    """Returns seconds of each program since the last call, to be logged.

    Those of less than a second are one number, `others`.
    """
    found, self._latest = self._latest, {}
    shown = {k: v for k, v in found.items() if v >= _SHOWN_SECONDS}
    others = sum(found.values()) - sum(shown.values())
    shown |= {"others": others} if others else {}
    return {f"time/compile/{name}": spent for name, spent in shown.items()}


class Log:
  """Writes metrics.jsonl to a working directory, and to a run's trackers.

  A store can't append. There metrics.jsonl is rewritten, at most every
  `_SECONDS` and by `flush`. Only a run's first process writes. What can't be
  written stops nothing: see `writing`.
  """

  def __init__(
    self,
    workdir: storage.Name,
    *,
    step: int,
    trackers: Trackers | None = None,
  ):
    """Opens the log of a run that resumes after `step`.

    Lines of later steps are dropped: the run that wrote them was killed before
    it saved a checkpoint of them.
    """
    workdir = storage.path(workdir)
    self._path = workdir / "metrics.jsonl"
    self._file: Appended | None = None
    self._failing = False
    self._trackers = trackers
    kept = [row for row in read(workdir) if row["step"] <= step]
    self._lines = [json.dumps(row) + "\n" for row in kept]
    self._written = -_SECONDS
    if jax.process_index():
      return
    if storage.is_remote(workdir):
      self._write()
    else:
      self._file = Appended(self._path, "".join(self._lines).encode())

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the metrics of a step."""
    if self._trackers:
      self._trackers.write(step, values)
    line = json.dumps({"step": step, **values}) + "\n"
    if self._file is not None:
      self._file.write(line.encode())
      return
    self._lines.append(line)
    if time.monotonic() - self._written >= _SECONDS:
      self._write()

  def _write(self) -> None:
    text = "".join(self._lines)
    # Told of once, though tried on and on.
    self._failing = not attempt(
      lambda: storage.write_text(self._path, text), quiet=self._failing
    )
    self._written = time.monotonic()

  def flush(self) -> None:
    """Writes all pending lines, so that a killed run loses none."""
    if self._file is None:
      self._write()

  def close(self) -> None:
    """Closes metrics.jsonl and the trackers."""
    self.flush()
    if self._file is not None:
      self._file.close()
    if self._trackers:
      self._trackers.close()


def read(workdir: storage.Name) -> list[dict[str, Any]]:
  """Reads the rows of a run's metrics.jsonl, up to a truncated line."""
  try:
    text = storage.read_text(storage.path(workdir) / "metrics.jsonl")
  except FileNotFoundError:
    return []
  rows = []
  for line in text.splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


def floats(arrays: Mapping[str, jax.Array]) -> dict[str, float]:
  """Fetches scalars from a device to the host as floats."""
  return {k: float(v) for k, v in jax.device_get(arrays).items()}
