"""Sizes of a batch on a mesh: whether they fit, and what to change if not."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from jax.sharding import Mesh
import numpy as np

from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.machines.sharding import GROUP, Layout

# Of a run's config.
FIELDS = {
  "prompts": "rollout.prompts",
  "minibatches": "train.minibatches",
  "accumulate": "train.accumulate",
  "data": "mesh.data",
  "fsdp": "mesh.fsdp",
  "tensor": "mesh.tensor",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes that must divide each other: of a batch, and of the mesh it is on.

  Attributes:
    prompts: of a rollout batch.
    answers: to each of them.
    data, fsdp, tensor: of the mesh.
    heads: what `tensor` divides: the common divisor of numbers of heads.
    minibatches: of a rollout batch.
    accumulate: parts of a minibatch.
  """

  prompts: int
  answers: int
  data: int
  fsdp: int
  tensor: int = 1
  heads: int = 1
  minibatches: int = 1
  accumulate: int = 1

  @property
  def parts(self) -> int:
    """Number of parts of a batch that are computed one after the other."""
    return self.minibatches * self.accumulate

  @property
  def fit(self) -> bool:
    """Tells whether each part has equally much on each shard."""
    return self.prompts > 0 and self.prompts % self.unit == 0

  @property
  def unit(self) -> int:
    """Number that divides the prompts where they fit."""
    most = math.gcd(self.fsdp, self.answers)
    return self.parts * self.data * self.fsdp // most

  @property
  def shared(self) -> int:
    """Number of devices that share out the answers to a prompt.

    It is the least with which prompts divide; 1 where nothing helps.
    """
    most = math.gcd(self.fsdp, self.answers)
    shards = self.parts * self.data * self.fsdp
    return next(
      (
        k
        for k in range(1, most + 1)
        if most % k == 0 and shards and self.prompts % (shards // k) == 0
      ),
      1,
    )


def of_run(mesh: Mesh, model: Any, rollout: Any, train: Any = None) -> Sizes:
  """Returns the sizes of a run.

  Args:
    mesh: of the model.
    model: a `ModelConfig`, whose heads the axis `tensor` divides; None where
      they don't matter.
    rollout: this part of the run's config.
    train: likewise; None for a model that takes a rollout batch at once.
  """
  heads = 1
  if model is not None:
    text = model.text
    heads = math.gcd(text.num_attention_heads, text.num_key_value_heads)
  sizes = Sizes(
    prompts=rollout.prompts,
    answers=rollout.answers,
    data=mesh.shape["data"],
    fsdp=mesh.shape["fsdp"] * mesh.shape.get(GROUP, 1),
    tensor=mesh.shape["tensor"],
    heads=heads,
  )
  if train is None:
    return sizes
  minibatches, accumulate = train.minibatches, train.accumulate
  return dataclasses.replace(
    sizes, minibatches=minibatches, accumulate=accumulate
  )


def layout(mesh: Mesh, rollout: Any, train: Any = None) -> Layout:
  """Lays a run's batches out, with answers shared out where prompts are few.

  Args:
    mesh: as the config has it.
    rollout, train: see `of_run`.

  Raises:
    UserError: if several processes would share out the answers to a prompt.
  """
  sizes = of_run(mesh, None, rollout, train)
  mesh = sharding.share_answers(mesh, sizes.shared)
  if sizes.shared > 1:
    _check_processes(mesh.devices, sizes)
  return Layout(mesh, sizes.minibatches, rollout.answers)


def _check_processes(devices: np.ndarray, sizes: Sizes) -> None:
  """Checks that each process has whole groups of answers."""
  for row in np.moveaxis(devices, 2, -1).reshape(-1, sizes.shared):
    found = sorted({device.process_index for device in row})
    if len(found) > 1:
      more = sizes.parts * sizes.data * sizes.fsdp
      raise UserError(
        f"config.rollout.prompts: expected the {sizes.shared} devices that"
        " share out the answers to a prompt in one process, found processes"
        f" {', '.join(map(str, found))}; with a multiple of {more} prompts none"
        " are shared out"
      )


def check_group(found: Layout, group: int) -> Layout:
  """Checks that groups divide over the devices that share them out.

  Args:
    found: from `layout`.
    group: answers per prompt, those that the policy doesn't sample included.

  Raises:
    UserError: naming the field of the config.
  """
  if group % found.shared:
    raise UserError(
      "config.rollout.answers: expected groups that divide over the"
      f" {found.shared} devices that share them out, as prompts are fewer than"
      f" devices, found {group}"
    )
  return dataclasses.replace(found, group=group)


def check(found: Sizes) -> None:
  """Checks that every part of every minibatch fits.

  Raises:
    UserError: naming the field of the config, and what would fit.
  """
  if found.fit:
    return
  shards = found.unit // found.parts
  names, numbers = "", f"{found.minibatches} x {found.accumulate}"
  if shards > 1:
    names, numbers = f" x {shards} shards of the mesh", f"{numbers} x {shards}"
  raise UserError(
    "config.rollout.prompts: expected a multiple of train.minibatches x"
    f" train.accumulate{names} = {numbers}, found {found.prompts}; it fits with"
    f" {advice(found)}"
  )


def check_mesh(found: Sizes, where: str) -> None:
  """Checks that a mesh fits the batch of a run, which is on another one.

  Args:
    found: a whole batch on the mesh.
    where: the config field of the mesh.

  Raises:
    UserError: naming that field, and a mesh that would fit.
  """
  if found.fit:
    return
  name = where.removeprefix("config.")
  fields = {axis: f"{name}.{axis}" for axis in ("data", "fsdp", "tensor")}
  fits = advice(found, fields)
  raise UserError(
    f"{where}: expected data x fsdp to divide rollout.prompts, {found.prompts},"
    f" found {found.data * found.fsdp}"
    + (f"; it fits with {fits}" if fits else "")
  )


def changes(found: Sizes) -> list[dict[str, int]]:
  """Proposes sizes that fit in place of some that don't.

  Each proposal changes as little as it can of one thing: the number of prompts,
  that of minibatches or of their parts, the mesh.

  Args:
    found: what doesn't fit.

  Returns:
    For each proposal, the new values by their names in `Sizes`. The first,
    which there always is, changes the prompts.
  """
  proposals = [
    _prompts(found),
    _fewer(found, "minibatches") or _fewer(found, "accumulate"),
    _mesh(found),
  ]
  return [changed for changed in proposals if changed]


def _prompts(found: Sizes) -> dict[str, int]:
  """Returns the nearest number of prompts that fits; the larger of two."""
  below, rest = divmod(found.prompts, found.unit)
  up = 2 * rest >= found.unit
  return {"prompts": found.unit * max(1, below + up)}


def _fewer(found: Sizes, name: str) -> dict[str, int]:
  """Returns the largest smaller number of parts that fits."""
  for count in range(getattr(found, name) - 1, 0, -1):
    if dataclasses.replace(found, **{name: count}).fit:
      return {name: count}
  return {}


def _mesh(found: Sizes) -> dict[str, int]:
  """Returns a mesh of as many devices with fewer shards of prompts.

  `fsdp`, whose devices may share out answers, takes what it needs from `data`.
  If that doesn't help, `tensor` takes as little as it can: from `fsdp` where it
  can, so that each device has as much of the parameters.
  """
  devices = found.data * found.fsdp * found.tensor
  for tensor in range(found.tensor, max(found.heads, found.tensor) + 1):
    if devices % tensor or (tensor != found.tensor and found.heads % tensor):
      continue
    for data in range(found.data, 0, -1):
      fsdp, rest = divmod(devices // tensor, data)
      changed = {"data": data, "fsdp": fsdp, "tensor": tensor}
      if not rest and dataclasses.replace(found, **changed).fit:
        return changed
  return {}


def advice(found: Sizes, fields: Mapping[str, str] = FIELDS) -> str:
  """Says which changes let sizes fit, as flags, for an error.

  Args:
    found: what doesn't fit.
    fields: the config field of each size that may be changed.
  """
  return " or ".join(
    flags({fields[name]: n for name, n in changed.items()})
    for changed in changes(found)
    if changed.keys() <= fields.keys()
  )


def flags(changed: Mapping[str, object]) -> str:
  """Writes changes of a config as flags of a command."""
  return " ".join(f"--config.{name}={value}" for name, value in changed.items())
