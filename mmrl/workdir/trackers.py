"""Trackers: where a run's numbers go besides metrics.jsonl.

`config.trackers` is a table of specs of this module, or of one's own files. A
tracker is a class: it is made with the `Run`, and with the options of its spec
by keyword; `write` takes the numbers of a step, and `close` ends it; one that
has `show` takes sample completions, too. Only a run's first process has any.
One that fails is told of in one line and tried again with the next report. It
never stops a run, or holds it up: each is told in a thread of its own, but for
those with `at_once = True`, which wait for nothing.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import importlib
import secrets
import socket
import struct
import sys
import textwrap
import time
from typing import Any, Literal, Protocol

from etils import epath
from tensorboardX import record_writer
from tensorboardX import summary as board_summary
from tensorboardX.proto import event_pb2

from mmrl import build, storage
from mmrl.errors import UserError, not_installed, tell
from mmrl.report.samples import Sample
from mmrl.workdir.writing import Appended, Told

# What `config.trackers` may name.
__all__ = ["mlflow", "tensorboard", "wandb"]


@dataclasses.dataclass(frozen=True)
class Run:
  """The run that is tracked.

  Attributes:
    workdir: of the run.
    step: after which it goes on; 0 of a new one.
    settings: its config.
  """

  workdir: epath.Path
  step: int
  settings: Mapping[str, Any]

  def remembered(self, name: str, make: Callable[[], str]) -> str:
    """Returns a text that this run keeps, such as its number at a service.

    Args:
      name: of the file, in `trackers` of the working directory.
      make: makes it, the first time.
    """
    path = self.workdir / "trackers" / name
    with contextlib.suppress(FileNotFoundError):
      return storage.read_text(path)
    text = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, text)
    return text


class Tracker(Protocol):
  """Receiver of a run's numbers."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the numbers of a step, by name."""

  def close(self) -> None:
    """Ends it, when the run ends or stops."""


class tensorboard:
  """Files of TensorBoard in `tensorboard` of the working directory.

  A store can't append, so that there are none at gs:// paths.
  """

  at_once = True

  def __init__(self, run: Run):
    self._file: Appended | None = None
    if storage.is_remote(run.workdir):
      tell(
        f"warning: no TensorBoard files are written to {run.workdir}; its"
        " metrics.jsonl has the same numbers"
      )
      return
    folder = run.workdir / "tensorboard"
    # tensorboardX writes from a thread behind a queue. Where a write fails, the
    # thread ends, the queue fills, and the run waits for ever.
    self._file = Appended(_next_file(folder), _first_events(run.step + 1))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    event = event_pb2.Event(wall_time=time.time(), step=step)
    for name, value in values.items():
      event.summary.value.extend(board_summary.scalar(name, value).value)
    self._write(event)

  def show(self, step: int, samples: Sequence[Sample]) -> None:
    """Writes answers as texts and pictures, in the order of their questions."""
    event = event_pb2.Event(wall_time=time.time(), step=step)
    for number, sample in enumerate(samples, 1):
      tag = f"samples/{number}"
      found = [board_summary.text(tag, _markdown(sample))]
      picture = sample.picture()
      if picture is not None:
        found.append(board_summary.image(tag, picture, dataformats="HWC"))
      for one in found:
        event.summary.value.extend(one.value)
    self._write(event)

  def _write(self, event: Any) -> None:
    if self._file is not None:
      self._file.write(_record(event))

  def close(self) -> None:
    if self._file is not None:
      self._file.close()


def _markdown(sample: Sample) -> str:
  """Formats a sample as Markdown."""
  # Indented, a text is shown as it is.
  return "\n\n".join(
    f"**{title}**\n\n" + textwrap.indent(text, "    ", lambda _: True)
    for title, text in {"name": sample.name, **sample.texts()}.items()
  )


def _next_file(folder: epath.Path) -> epath.Path:
  """Names a file of TensorBoard, which reads them in the order of their names.

  It comes after those that are there, even if the clock was set back.
  """
  names = folder.glob("events.out.tfevents.*") if folder.is_dir() else ()
  times = [name.name.split(".")[3] for name in names]
  later = [int(text) + 1 for text in times if text.isdecimal()]
  began = max([int(time.time()), *later])
  return folder / f"events.out.tfevents.{began}.{socket.gethostname()}"


def _first_events(step: int) -> bytes:
  """Formats how a file begins whose first step is `step`.

  It tells TensorBoard to drop what earlier files have from that step on: the
  run that wrote it was killed before it saved that.
  """
  began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  events = (
    event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"),
    event_pb2.Event(wall_time=time.time(), step=step, session_log=began),
  )
  return b"".join(map(_record, events))


def _record(event: Any) -> bytes:
  """Frames an event as a TFRecord: length, data, and a checksum of each."""
  data = event.SerializeToString()
  parts = [struct.pack("<Q", len(data)), data]
  return b"".join(
    part + struct.pack("<I", record_writer.masked_crc32c(part))
    for part in parts
  )


class wandb:
  """A run at Weights & Biases; one that is resumed goes on there, too.

  Steps that a killed run repeats are there twice, with the same numbers.
  """

  def __init__(
    self,
    run: Run,
    *,
    project: str = "mmrl",
    entity: str = "",
    name: str = "",
    mode: Literal["online", "offline"] = "online",
  ):
    """Begins or continues the run.

    Args:
      run: that is tracked.
      project: that it belongs to.
      entity: user or team; one's own if empty.
      name: of the run; that of the working directory if empty.
      mode: "offline" writes files to the working directory, for `wandb sync`.
    """
    place = None if storage.is_remote(run.workdir) else str(run.workdir)
    self._run = importlib.import_module("wandb").init(
      project=project,
      entity=entity or None,
      name=name or run.workdir.name,
      id=run.remembered("wandb", lambda: secrets.token_hex(8)),
      resume="allow",
      mode=mode,
      dir=place,
      config=dict(run.settings),
    )
    # Its own count of steps can't go back to a checkpoint's.
    self._run.define_metric("*", step_metric="step")

  @staticmethod
  def check(**_) -> None:
    """Checks that the package is there."""
    _require("wandb")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({"step": step, **values})

  def close(self) -> None:
    self._run.finish()


class mlflow:
  """A run at MLflow; one that is resumed goes on there, too."""

  def __init__(
    self, run: Run, *, uri: str = "", experiment: str = "mmrl", name: str = ""
  ):
    """Begins or continues the run.

    Args:
      run: that is tracked.
      uri: of the server; the file mlflow.db in the working directory if empty.
      experiment: that it belongs to; made if it isn't there.
      name: of the run; that of the working directory if empty.
    """
    self._entities = importlib.import_module("mlflow.entities")
    where = uri or f"sqlite:///{run.workdir}/mlflow.db"
    client = importlib.import_module("mlflow").MlflowClient(where)

    def begin() -> str:
      found = client.get_experiment_by_name(experiment)
      number = found.experiment_id if found else None
      number = number or client.create_experiment(experiment)
      made = client.create_run(number, run_name=name or run.workdir.name)
      return made.info.run_id

    self._client, self._id = client, run.remembered("mlflow", begin)
    client.set_terminated(self._id, "RUNNING")

  @staticmethod
  def check(**_) -> None:
    """Checks that the package is there."""
    _require("mlflow")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    now = int(time.time() * 1000)
    self._client.log_batch(
      self._id,
      [self._entities.Metric(k, v, now, step) for k, v in values.items()],
    )

  def close(self) -> None:
    self._client.set_terminated(self._id)


def _require(package: str) -> None:
  try:
    importlib.import_module(package)
  except ImportError as error:
    raise not_installed(f"the package {package}", package) from error


def resolve(
  specs: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[Callable, dict[str, Any]]]:
  """Looks up the trackers of a config, and checks their options.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  here = sys.modules[__name__]
  found = {}
  for name, spec in specs.items():
    where = f"config.trackers.{name}"
    made, options = build.resolve(here, spec, where)
    lacking = [x for x in ("write", "close") if not hasattr(made, x)]
    if lacking:
      raise UserError(
        f"{where}: expected {spec['name']} to be a class with write and close"
        f" (mmrl/workdir/trackers.py), found no {', '.join(lacking)}"
      )
    found[name] = made, options
  return found


class Trackers:
  """All trackers of a run."""

  def __init__(self, specs: Mapping[str, Mapping[str, Any]], run: Run):
    self._all = [
      Told(
        f"config.trackers.{name}",
        functools.partial(make, run, **options),
        at_once=getattr(make, "at_once", False),
      )
      for name, (make, options) in resolve(specs).items()
    ]

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Gives all of them the numbers of a step."""
    for one in self._all:
      one.report("write", step, dict(values))

  def show(self, step: int, samples: Sequence[Sample]) -> None:
    """Gives those that take any the sample completions of a step."""
    for one in self._all:
      one.report("show", step, samples)

  def close(self) -> None:
    """Ends all of them; waits for each, but not for ever."""
    for one in self._all:
      one.close()
    self._all = []
