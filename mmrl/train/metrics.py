"""Where a run's numbers go: a file, TensorBoard, and a guard."""

from collections.abc import Mapping
import json
import math
import pathlib

import jax
import tensorboardX

from mmrl.errors import UserError


class Compilations:
  """Counts what XLA compiles in this process, and how long that takes."""

  def __init__(self):
    self.count, self.seconds = 0, 0.0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, seconds: float, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      self.count += 1
      self.seconds += seconds


class Log:
  """metrics.jsonl and TensorBoard files of a working directory."""

  def __init__(self, workdir: pathlib.Path, *, step: int):
    """Opens the log of a run that continues after `step`.

    Lines of later steps, written by a run that was killed before it saved
    them, are dropped.
    """
    self._path = workdir / "metrics.jsonl"
    kept = [row for row in read(workdir) if row["step"] <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    self._path.write_text(text)
    self._file = self._path.open("a")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=step + 1
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds the numbers of a step."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Closes both."""
    self._file.close()
    self._board.close()


def read(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Rows of a run's metrics.jsonl; a last line cut short is left out."""
  path = workdir / "metrics.jsonl"
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return rows


def require_finite(
  values: Mapping[str, float], step: int, update: int, saved: int | None
) -> None:
  """Stops a run whose loss or gradient is no longer a number.

  Raises:
    UserError: naming the metric, the step and the last checkpoint.
  """
  for name, value in values.items():
    if not math.isfinite(value):
      raise UserError(
        f"{name} is {value} at step {step}, update {update}; the newest"
        f" checkpoint is of step {saved or 0}. Lower the learning rate or"
        " clip_norm, or compute in float32"
      )
