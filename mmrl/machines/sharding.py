"""Sharding of a run's arrays: one mesh, one table of rules.

The mesh has three axes. Prompts are sharded over `data` and `fsdp` together,
parameters and optimiser state over `fsdp` and `tensor`. A program is written
for whole arrays; the compiler inserts the collectives (GSPMD).

Where prompts are too few, `share_answers` splits `fsdp` in two: prompts are
sharded over the first part, their answers over the second, `group`, parameters
over both as before. See `mmrl.machines.groups`.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.types import Logits, PyTree, map_prompts

AXES = ("data", "fsdp", "tensor")
# The axes that prompts are sharded over.
BATCH = ("data", "fsdp")
# The axis that answers are sharded over, where a mesh has it.
GROUP = "group"

# The first rule whose expression matches a parameter's path holds. Layers are
# stacked on axis 0, which stays whole: a scan takes one after the other.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
  ("text/embed/embedding", PartitionSpec("tensor", "fsdp")),
  ("text/head/kernel", PartitionSpec("fsdp", "tensor")),
  ("vision/merger/fc1/kernel", PartitionSpec("fsdp", "tensor")),
  ("vision/merger/fc2/kernel", PartitionSpec("tensor", "fsdp")),
  (".*/(o|down|proj|fc2)/kernel", PartitionSpec(None, "tensor", "fsdp")),
  ("vision/patch_embed/kernel", PartitionSpec("fsdp", None)),
  (".*/kernel", PartitionSpec(None, "fsdp", "tensor")),
  (".*", PartitionSpec()),
)
# The axis of an adapter's A and B that isn't its kernel's: that of the rank,
# which stays whole. The other one is sharded as the kernel's.
_RANK_AXIS = {"lora_a": -1, "lora_b": -2}


def make_mesh(
  sizes: dict[str, int],
  devices: Sequence[jax.Device] | None = None,
  where: str = "config.mesh",
) -> Mesh:
  """Builds the mesh of a run.

  Args:
    sizes: of each axis; one of them may be -1: the remaining devices.
    devices: all of them by default.
    where: the config field, for errors.

  Raises:
    UserError: if the sizes don't multiply to the number of devices.
  """
  devices = devices if devices is not None else jax.devices()
  shape = [sizes[axis] for axis in AXES]
  written = " x ".join(f"{axis} {sizes[axis]}" for axis in AXES)
  if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
    raise UserError(
      f"{where}: expected sizes of at least 1, one of them -1 at most,"
      f" found {written}"
    )
  rest = math.prod(n for n in shape if n != -1)
  shape = [len(devices) // rest if n == -1 else n for n in shape]
  if math.prod(shape) != len(devices):
    raise UserError(
      f"{where}: expected sizes that multiply to {len(devices)} devices,"
      f" found {written}; change them, or set one to -1"
    )
  # Auto: under JAX's default, Explicit, look-ups in a sharded embedding would
  # have to spell out their output's sharding.
  return jax.make_mesh(
    tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def share_answers(mesh: Mesh, size: int) -> Mesh:
  """Returns a mesh whose axis `group` of some size is taken out of `fsdp`.

  Devices of one process come to stand beside each other on `fsdp`: a process
  grades whole groups.
  """
  if size == 1:
    return mesh
  data, fsdp, tensor = mesh.devices.shape
  devices = np.stack([_by_process(devices) for devices in mesh.devices])
  devices = devices.reshape(data, fsdp // size, size, tensor)
  axes = (*BATCH, GROUP, "tensor")
  return Mesh(devices, axes, axis_types=(AxisType.Auto,) * 4)


def _by_process(devices: np.ndarray) -> np.ndarray:
  """Orders devices [fsdp, tensor] by their processes, which may be one."""
  processes = [[one.process_index for one in row] for row in devices]
  return devices[sorted(range(len(devices)), key=processes.__getitem__)]


def batch_axes(prompts: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the axes that P prompts are sharded over in a pass.

  Args:
    prompts: P. Where they divide over `group` as well, answers needn't.
    sizes: of a mesh's axes.
  """
  for count in (3, 2):
    axes = tuple(x for x in (*BATCH, GROUP)[:count] if x in sizes)
    if axes and prompts % math.prod(sizes[axis] for axis in axes) == 0:
      return axes
  return ()


def _fitting(
  path: str, shape: Sequence[int], sizes: Mapping[str, int]
) -> PartitionSpec:
  """Looks up a parameter's rule, without axes of size 1 or not dividing it."""
  parent, _, name = path.rpartition("/")
  rank = _RANK_AXIS.get(name)
  if rank is not None:
    path = f"{parent}/kernel"
  spec = next(spec for rule, spec in RULES if re.fullmatch(rule, path))
  if rank is not None:
    axes = list(spec)
    axes[rank] = None
    spec = PartitionSpec(*axes)

  def one(axis, size):
    # `group` is a part of `fsdp`.
    both = ("fsdp", GROUP) if axis == "fsdp" and GROUP in sizes else (axis,)
    if axis is None or size % math.prod(sizes[a] for a in both):
      return None
    axes = [a for a in both if sizes[a] > 1]
    return tuple(axes) if len(axes) > 1 else next(iter(axes), None)

  return PartitionSpec(*map(one, spec, shape))


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, and how prompts, parameters and numbers are sharded on it.

  A batch of P prompts is P / n consecutive ones on each of n shards. The order
  of prompts is chosen so that every minibatch takes an equal share of each
  shard, in the order that one device has: see `order`.

  Attributes:
    mesh: of the run.
    parts: number of minibatches of a rollout batch.
    group: answers per prompt, which `mesh` may share out.
  """

  mesh: Mesh
  parts: int = 1
  group: int = 0

  @property
  def shards(self) -> int:
    """Number n of shards of the prompts."""
    return math.prod(self.mesh.shape[axis] for axis in BATCH)

  @property
  def most(self) -> int:
    """Number of shards of as many prompts as there can be."""
    return self.shards * self.shared

  @property
  def shared(self) -> int:
    """Number of devices that share out the answers to a prompt."""
    return self.mesh.shape.get(GROUP, 1)

  @property
  def prompts(self) -> NamedSharding:
    """Sharding of arrays that lead with P or B."""
    return NamedSharding(self.mesh, PartitionSpec(BATCH))

  def leading(self, shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding of an array that leads with P or B: [P, G, ...].

    It is by prompts, and by answers where they are shared out.
    """
    if self.shared > 1 and len(shape) > 1 and shape[1] == self.group:
      return NamedSharding(self.mesh, PartitionSpec(BATCH, GROUP))
    return self.prompts

  @property
  def everywhere(self) -> NamedSharding:
    """Sharding of numbers that are replicated on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  def parameter(self, path: str, shape: Sequence[int]) -> NamedSharding:
    """Returns a parameter's sharding by `RULES`.

    An axis that doesn't divide is left whole.
    """
    return NamedSharding(self.mesh, _fitting(path, shape, self.mesh.shape))

  def of(self, tree: PyTree) -> PyTree:
    """Returns shardings of a state: parameters and all that is shaped alike.

    Moments of the optimiser and averages are found by the path of their
    parameter, the last key of their own.
    """

    def one(path, leaf):
      keys = [str(k.key) for k in path if hasattr(k, "key")]
      return self.parameter(keys[-1] if keys else "", leaf.shape)

    return jax.tree_util.tree_map_with_path(one, tree)

  def order(self, prompts: int) -> Int[np.ndarray, "P"]:
    """Returns, for each place in a batch, its prompt of the stream.

    One device takes minibatch m from places m * P / parts on. Here each of n
    shards holds a piece of every minibatch, so that cutting a batch moves
    nothing between devices, and minibatches hold the same prompts on any mesh.
    """
    places = np.arange(prompts).reshape(self.parts, self.shards, -1)
    return places.swapaxes(0, 1).reshape(-1)

  def cut(self, tree: PyTree, parts: int, part: Int[Array, ""]) -> PyTree:
    """Slices one of `parts` equal parts of arrays led by P or B; in a jit."""

    def one(x):
      pieces = x.reshape(self.shards, parts, -1, *x.shape[1:])
      piece = jax.lax.dynamic_index_in_dim(pieces, part, 1, keepdims=False)
      piece = piece.reshape(-1, *x.shape[1:])
      return self.constrain(piece)

    return map_prompts(one, tree)

  def constrain(self, tree: PyTree) -> PyTree:
    """Shards arrays that lead with P or B; in a jit."""

    def one(x):
      where = self.leading(x.shape)
      return jax.lax.with_sharding_constraint(x, where)

    return map_prompts(one, tree)

  def reshard(self, tree: PyTree) -> PyTree:
    """Reshards arrays with leading P or B from another mesh of the devices."""

    def one(x):
      if isinstance(x, Logits):
        hidden = jax.device_put(x.hidden, self.leading(x.hidden.shape))
        head = jax.device_put(x.head, self.everywhere)
        return dataclasses.replace(x, hidden=hidden, head=head)
      return jax.device_put(x, self.leading(x.shape))

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Logits))

  def places(self, prompts: int) -> Int[np.ndarray, "local"]:
    """Returns the places of a batch that this process holds."""
    parts = self.prompts.addressable_devices_indices_map((prompts,)).values()
    indices = [index[0] for index in parts if index is not None]
    ranges = sorted({(i.start or 0, i.stop or prompts) for i in indices})
    return np.concatenate([np.arange(*r) for r in ranges])

  def put(self, local: PyTree) -> PyTree:
    """Shards NumPy arrays of this process's prompts into global arrays."""

    def one(x):
      where = self.leading(x.shape)
      return jax.make_array_from_process_local_data(where, x)

    return jax.tree.map(one, local)

  def put_whole(self, whole: PyTree) -> PyTree:
    """Shards NumPy arrays, the same on every process, into global arrays."""
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(
        x.shape, self.prompts, lambda index: x[index]
      ),
      whole,
    )

  def number(self, value: np.number) -> Array:
    """Replicates a number on every device."""
    return jax.make_array_from_callback(
      np.shape(value), self.everywhere, lambda _: value
    )

  def local(self, array: Array) -> np.ndarray:
    """Returns this process's prompts of a global array."""
    rows: dict[int, dict[int, Array]] = collections.defaultdict(dict)
    for shard in array.addressable_shards:
      first, *rest = (index.start or 0 for index in shard.index)
      rows[first][rest[0] if rest else 0] = shard.data
    # This process has all answers to its prompts; copies are left out.
    found = []
    for _, row in sorted(rows.items()):
      parts = [np.asarray(row[start]) for start in sorted(row)]
      found.append(np.concatenate(parts, axis=1) if parts[1:] else parts[0])
    return np.concatenate(found)

  def jit(self, function: Callable, **options) -> Callable:
    """Compiles a function by `jax.jit`, with this mesh in context."""

    @functools.wraps(function)
    def traced(*args):
      with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
        return function(*args)

    return jax.jit(traced, **options)


def check_heads(where: str, model: Any, layout: Layout) -> None:
  """Checks that a mesh's axis `tensor` divides the heads of a `ModelConfig`.

  Raises:
    UserError: naming the field of the config.
  """
  tensor = layout.mesh.shape["tensor"]
  for name in ("num_attention_heads", "num_key_value_heads"):
    heads = getattr(model.text, name)
    if heads % tensor:
      raise UserError(
        f"{where}.mesh.tensor: expected a divisor of the model's {name},"
        f" {heads}, found {tensor}"
      )


def on_one(device: jax.Device, parts: int = 1) -> Layout:
  """Returns a layout with everything on one device."""
  return Layout(make_mesh(dict.fromkeys(AXES, 1), [device]), parts)


def over_prompts(x: Array) -> Array:
  """Shards an activation's first axis over the prompts' axes, and no other.

  Does nothing without a mesh in context, or where the axis doesn't divide.
  """
  axes, shards = prompt_axes(len(x))
  if shards == 1:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def whole(x: Array) -> Array:
  """Replicates an array on every device; does nothing without a mesh."""
  if not _in_context():
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def gathered(path: str, x: Array) -> Array:
  """Gathers a parameter's shards on the axis `fsdp`.

  Does nothing without a mesh in context.
  """
  if not _in_context():
    return x
  one = dict.fromkeys(("fsdp", GROUP), 1)
  sizes = dict(jax.sharding.get_abstract_mesh().shape) | one
  spec = _fitting(path, x.shape, sizes)
  return jax.lax.with_sharding_constraint(x, spec)


def prompts_and_heads(prompts: int, heads: int) -> PartitionSpec:
  """Returns the spec of arrays [P, heads, ...]; axes that divide are sharded.

  It is for the mesh in context.

  Args:
    prompts: P.
    heads: number of key and value heads, which are the fewest.
  """
  axes, _ = prompt_axes(prompts)
  size = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  return PartitionSpec(
    axes or None,
    "tensor" if size > 1 and heads % size == 0 else None,
  )


def prompt_axes(prompts: int) -> tuple[tuple[str, ...], int]:
  """Returns the axes in context that shard P prompts, and their size.

  They are none, of size 1, without a mesh or where P doesn't divide.
  """
  sizes = _in_context()
  axes = batch_axes(prompts, sizes)
  return axes, math.prod(sizes[axis] for axis in axes)


def _in_context() -> dict[str, int]:
  """Returns the sizes of the axes in context that may shard a batch."""
  mesh = jax.sharding.get_abstract_mesh()
  batch = (*BATCH, GROUP)
  return {axis: mesh.shape[axis] for axis in mesh.auto_axes if axis in batch}
