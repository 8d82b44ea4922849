"""Models that are asked for texts in a run, by name, such as a judge.

An entry of `config.models` may be one of the classes here. A reward that names
`ask_NAME` is given a function that asks model NAME.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any, Literal
import zlib

import jax
import numpy as np

from mmrl import errors, hub
from mmrl.data import Example
from mmrl.errors import UserError, tell
from mmrl.hub import config_json, directory
from mmrl.machines.sharding import Layout, check_heads, make_mesh
from mmrl.strategies.ask import Responder
from mmrl.strategies.plain import direct
from mmrl.strategies.queues import Count
from mmrl.strategies.responders.endpoint import Endpoint as Server
from mmrl.strategies.responders.endpoint import from_environment
from mmrl.strategies.responders.local import local_model
from mmrl.strategies.runner import run


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A model behind an OpenAI-compatible address.

  Attributes:
    model: its name on the server.
    address_from, key_from: the environment variables that hold address and key;
      neither is in a config or a log. Without a key none is sent.
    in_flight: most requests under way at a time.
    timeout: seconds that a request may take.
    attempts: most times that a request is sent.
    wait: seconds before it is sent again, doubled each time.
    frames: most frames of a video, which are sent as pictures; 0 refuses
      videos.
  """

  model: str
  address_from: str = "OPENAI_BASE_URL"
  key_from: str = "OPENAI_API_KEY"
  in_flight: int = 64
  timeout: float = 60.0
  attempts: int = 3
  wait: float = 1.0
  frames: int = 0

  def open(self, where: str, devices: Sequence[jax.Device]) -> Responder:
    """Makes what answers requests; nothing is sent yet."""
    del where, devices
    return Server(
      self.model,
      address=from_environment(self.address_from, "the address of a server"),
      key=os.environ.get(self.key_from, ""),
      in_flight=self.in_flight,
      timeout=self.timeout,
      frames=self.frames,
    )


@dataclasses.dataclass(frozen=True)
class LocalModel:
  """A model of its own on the run's devices, of any size and tokenizer.

  Attributes:
    path: directory in the Hugging Face layout, or a hub id.
    dtype: type of matrix products.
    param_dtype: type that parameters are stored in.
    mesh: devices on each axis, over those of the run that this process has.
    batch: requests that are decoded together, a multiple of data x fsdp.
    length: most tokens of a reply.
    attempts: most times that a request is tried.
    wait: seconds before it is tried again, doubled each time.
  """

  path: str
  dtype: Literal["float32", "bfloat16"] = "float32"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  mesh: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"data": 1, "fsdp": -1, "tensor": 1}
  )
  batch: int = 16
  length: int = 512
  attempts: int = 1
  wait: float = 0.0

  def open(self, where: str, devices: Sequence[jax.Device]) -> Responder:
    """Reads the weights.

    Raises:
      UserError: if the mesh fits neither devices nor model.
    """
    layout = Layout(make_mesh(dict(self.mesh), devices, f"{where}.mesh"))
    if self.batch < 1 or self.batch % layout.shards:
      raise UserError(
        f"{where}.batch: expected a multiple of data x fsdp of its mesh,"
        f" {layout.shards}, found {self.batch}"
      )
    architecture = config_json.read(directory.find(self.path))
    check_heads(where, architecture, layout)
    model = hub.load(
      self.path, dtype=self.param_dtype, placement=layout.parameter
    )
    config = dataclasses.replace(model.config, dtype=self.dtype)
    model = dataclasses.replace(model, config=config)
    return local_model(
      model, length=self.length, batch=self.batch, layout=layout
    )


Asked = Endpoint | LocalModel


def _title(model: str, key: str) -> str:
  """Names a request by what it asks, for its random numbers and errors."""
  return f"{model}, request {zlib.crc32(key.encode()):08x}"


def _content(value: Any) -> str:
  """Tells a picture that is no file from others, by all of its content."""
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if not isinstance(value, bytes):
    array = np.asarray(value)
    value = f"{array.shape} {array.dtype}\n".encode() + array.tobytes()
  return hashlib.sha256(value).hexdigest()


class Asker:
  """Asks one model, and counts what came of it; replies are kept for a step.

  Called with conversations, and options of decoding, it returns the text of the
  reply to each, in order, or None where there is none: that is said in a line
  and counted, and stops nothing. Equal conversations are asked once in a step,
  those that failed, too: all rewards of an answer are of one reply.
  """

  def __init__(self, name: str, source: Asked, devices: Sequence[jax.Device]):
    """Takes what is asked; `open` comes before the first question.

    Args:
      name: of the model.
      source: its entry in `config.models`.
      devices: of the run; those of other processes are left out.
    """
    self._name, self._where = name, f"config.models.{name}"
    self._source, self._devices = source, devices
    self._responder: Responder | None = None
    self._count = Count()
    self._kept: dict[str, str | None] = {}
    for field in ("attempts", "in_flight", "batch"):
      if getattr(source, field, 1) < 1:
        raise UserError(
          f"{self._where}.{field}: expected at least 1, found"
          f" {getattr(source, field)}"
        )

  def open(self) -> None:
    """Opens the model, once.

    Raises:
      UserError: naming the field of the config that is wrong.
    """
    if self._responder is None:
      index = jax.process_index()
      own = [one for one in self._devices if one.process_index == index]
      with errors.of_field(self._where):
        self._responder = self._source.open(self._where, own)

  def __call__(
    self, conversations: Sequence[Sequence[dict]], **options: Any
  ) -> list[str | None]:
    """Asks; see the class."""
    self.open()
    keys = [json.dumps([c, options], default=_content) for c in conversations]
    new = {
      key: Example(_title(self._name, key), "", list(conversation), None)
      for key, conversation in zip(keys, conversations, strict=True)
      if key not in self._kept
    }
    if new:
      self._ask(new, options)
    return [self._kept[key] for key in keys]

  def _ask(
    self, new: Mapping[str, Example], options: Mapping[str, Any]
  ) -> None:
    assert self._responder is not None
    found = run(
      functools.partial(direct, model=self._name, options=options),
      new.values(),
      {self._name: self._responder},
      attempts=self._source.attempts,
      wait=self._source.wait,
    )
    failed = []
    for key, result in zip(new, found.results, strict=True):
      self._kept[key] = result.answer.text if result.answer else None
      if result.answer is None:
        failed.append(result.failure)
    for field, value in vars(found.counts[self._name]).items():
      setattr(self._count, field, getattr(self._count, field) + value)
    if failed:
      assert failed[-1] is not None
      tell(
        f"{self._where}: {len(failed)} of {len(new)} requests have no reply and"
        f" count as none; the last: {failed[-1].error:.300}"
      )

  def end_step(self) -> dict[str, float]:
    """Forgets replies, and returns what was asked since the last call."""
    count, self._count, self._kept = self._count, Count(), {}
    return {
      f"asked/{self._name}_{field}": float(value)
      for field, value in vars(count).items()
    }


def open_later(
  sources: Mapping[str, Asked], devices: Sequence[jax.Device]
) -> dict[str, Asker]:
  """Makes what asks the models of a run, by the names that rewards use.

  None of them is opened yet.

  Args:
    sources: of the models, by name.
    devices: of the run.
  """
  return {f"ask_{n}": Asker(n, one, devices) for n, one in sources.items()}


def check_read(asked: Collection[str], read: Collection[str]) -> None:
  """Checks that each model of a run is asked by something.

  Args:
    asked: the names that rewards use for the models.
    read: names that the run's rewards, and its benchmarks' scores, read.

  Raises:
    UserError: if nothing asks one of them.
  """
  for name in asked:
    if name not in read:
      raise UserError(
        f"config.models.{name.removeprefix('ask_')}: expected a reward that"
        f" reads {name}, or a score of a benchmark, found none; take the model"
        " out, or add one"
      )
