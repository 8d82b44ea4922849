"""Logging of a run: metrics.jsonl, samples.jsonl and trackers."""

import collections
from collections.abc import Mapping, Sequence
import json
import time
from typing import Any

from etils import epath
import jax

from mmrl import console, storage
from mmrl.errors import UserError
from mmrl.machines import compilation
from mmrl.report import samples as samples_lib
from mmrl.report.samples import Sample
from mmrl.rollouts.answers import Answers
from mmrl.workdir.trackers import Trackers
from mmrl.workdir.writing import Appended, attempt

METRICS = "metrics.jsonl"
# Sample completions that a report shows.
_SHOWN = 6
# Least seconds between two writes of a file to a store.
_SECONDS = 30.0


class Compilations:
  """Counts XLA compilations in this process, and their seconds.

  A program that is kept from an earlier run counts with the time of reading it.
  """

  def __init__(self):
    self.count, self.seconds = 0, 0.0
    self._latest: dict[str, float] = {}
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **about) -> None:
    if event == compilation.EVENT:
      self.count += 1
      self.seconds += duration_secs
      name = compilation.name_of(about)
      self._latest[name] = self._latest.get(name, 0.0) + duration_secs

  def latest(self) -> dict[str, float]:
    """Returns seconds of each program since the last call, to be logged.

    Those of less than a second are one number, `others`.
    """
    found, self._latest = self._latest, {}
    least = compilation.SHOWN_SECONDS
    shown = {k: v for k, v in found.items() if v >= least}
    others = sum(found.values()) - sum(shown.values())
    shown |= {"others": others} if others else {}
    return {f"time/compile/{name}": spent for name, spent in shown.items()}


class Log:
  """Writes metrics.jsonl and samples.jsonl of a run, and tells its trackers.

  Only a run's first process writes. What can't be written stops nothing: see
  `writing`.

  Attributes:
    samples: the last sample completions; those of an earlier start of the run
      are without their pictures.
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
    self._trackers = trackers
    self._metrics = _Lines(workdir, METRICS, step)
    # Not there unless there is something in it.
    self._samples: _Lines | None = None
    self._open_samples = lambda: _Lines(workdir, samples_lib.FILE, step)
    if (workdir / samples_lib.FILE).exists():
      self._samples = self._open_samples()
    kept = [x for x in read(workdir, samples_lib.FILE) if x["step"] <= step]
    self.samples = collections.deque(samples_lib.parse(kept), maxlen=_SHOWN)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the metrics of a step."""
    if self._trackers:
      self._trackers.write(step, values)
    self._metrics.write({"step": step, **values})

  def show(self, run: Any, step: int, answers: Answers) -> None:
    """Prints and writes sample completions of a step, if it has some.

    Args:
      run: a `train.run.Run`.
      step: that the answers are of.
      answers: graded.
    """
    if not samples_lib.due(run.config, step):
      return
    count, rewards = run.config.samples.count, run.method.rewards
    found = samples_lib.choose(step, count, answers, rewards, run.processor)
    for line in (line for sample in found for line in sample.lines()):
      console.say(line)
    self.write_samples(step, found)

  def write_samples(self, step: int, found: Sequence[Sample]) -> None:
    """Writes the sample completions of a step."""
    if self._trackers:
      self._trackers.show(step, found)
    if self._samples is None:
      self._samples = self._open_samples()
    self.samples.extend(found)
    for sample in found:
      self._samples.write(sample.row())

  def flush(self) -> None:
    """Writes all pending lines, so that a killed run loses none."""
    self._metrics.flush()
    if self._samples is not None:
      self._samples.flush()

  def close(self) -> None:
    """Closes the files and the trackers."""
    self._metrics.close()
    if self._samples is not None:
      self._samples.close()
    if self._trackers:
      self._trackers.close()


class _Lines:
  """A file of JSON lines, each with its "step".

  A store can't append. There the file is rewritten, at most every `_SECONDS`
  and by `flush`.
  """

  def __init__(self, workdir: epath.Path, name: str, step: int):
    """Opens the file without lines of later steps."""
    self._path = workdir / name
    self._file: Appended | None = None
    self._failing = False
    kept = [row for row in read(workdir, name) if row["step"] <= step]
    self._lines = [json.dumps(row) + "\n" for row in kept]
    self._written = -_SECONDS
    if jax.process_index():
      return
    if storage.is_remote(workdir):
      self._write()
    else:
      self._file = Appended(self._path, "".join(self._lines).encode())

  def write(self, row: Mapping[str, Any]) -> None:
    """Adds a line."""
    line = json.dumps(row) + "\n"
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
    """Writes all pending lines."""
    if self._file is None:
      self._write()

  def close(self) -> None:
    """Closes the file, with all lines in it."""
    self.flush()
    if self._file is not None:
      self._file.close()


def read(workdir: storage.Name, name: str = METRICS) -> list[dict[str, Any]]:
  """Reads the rows of a run's file of lines, up to a truncated line.

  Raises:
    UserError: if it can't be read.
  """
  path = storage.path(workdir) / name
  try:
    data = storage.read_bytes(path)
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(
      f"expected a readable file at {path}, found: {error.strerror or error};"
      " make it readable, or move it away to begin it anew"
    ) from error
  rows = []
  for line in data.split(b"\n"):
    try:
      row = json.loads(line)
      int(row["step"])
    except (ValueError, TypeError, LookupError):
      break
    rows.append(row)
  return rows


def floats(arrays: Mapping[str, jax.Array]) -> dict[str, float]:
  """Fetches scalars from a device to the host as floats."""
  return {k: float(v) for k, v in jax.device_get(arrays).items()}
