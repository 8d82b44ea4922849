"""Data-parallel wrappers of a run's loss: `pmap`, `shard_map` and `jit`.

A run itself uses `jit` over a mesh that also shards parameters
(`mmrl.machines.sharding`). These wrappers are for pure data parallelism and
custom training loops.

Each wraps the loss of a run (`mmrl.train.step.make_loss`), of terms without
state or other models, in a function of (params, batch) that shards the batch's
prompts over devices. Value and metrics equal those of one device to float32
rounding. Sums run over all devices before they are divided, so uneven answer
lengths don't matter.

Differentiate the wrapped function. A gradient taken inside `pmap`, through its
sums, is a different and wrong one on each device.
"""

from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.machines import sharding
from mmrl.train import objective
from mmrl.train.objective import Term
from mmrl.types import Batch, Prompt, PyTree

AXIS = "data"
Wrapped = Callable[[PyTree, Batch], tuple[Array, dict[str, Array]]]


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes a mesh whose axis `data` has all devices."""
  return sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)


def _local(loss: Callable, terms: Sequence[Term], axis_name: str | None):
  def local(params: PyTree, batch: Batch):
    coefficients = objective.reduction_coefficients(
      terms, batch.mask, batch.fields, axis_name=axis_name
    )
    value, (metrics, _) = loss(params, batch, coefficients, axis_name=axis_name)
    return value, reduce.finish(metrics)

  return local


def _divide(mask: Bool[Array, "P ..."], devices: int) -> None:
  prompts = mask.shape[0]
  if prompts % devices:
    raise UserError(
      f"expected a multiple of {devices} prompts for {devices} devices, found"
      f" {prompts}; change the batch size"
    )


def pmap_loss(loss: Callable, terms: Sequence[Term]) -> Wrapped:
  """Wraps a loss in `jax.pmap`: replicates parameters, shards prompts."""
  devices = jax.local_device_count()
  mapped = jax.pmap(
    _local(loss, terms, AXIS), AXIS, in_axes=(None, 0), out_axes=None
  )

  def wrapped(params: PyTree, batch: Batch):
    _divide(batch.mask, devices)
    parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    return mapped(params, parts)

  return wrapped


def shard_map_loss(
  loss: Callable, terms: Sequence[Term], mesh: Mesh
) -> Wrapped:
  """Wraps a loss in `jax.shard_map` over a mesh's `data` axis."""
  mapped = jax.shard_map(
    _local(loss, terms, AXIS),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
    out_specs=PartitionSpec(),
    # The model's scans start from zeros, which the check would require to be
    # marked as varying per device. Gradients, taken outside, don't need it.
    check_vma=False,
  )
  mapped = jax.jit(mapped)

  def wrapped(params: PyTree, batch: Batch):
    _divide(batch.mask, mesh.shape[AXIS])
    return mapped(params, batch)

  return wrapped


def pmap_rollout(rollout: Callable) -> Callable:
  """Wraps a rollout in `jax.pmap`, which shards the prompts over devices.

  Args:
    rollout: (params, prompt, keys) -> arrays [P, ...], as `sampler.generate`
      returns them. There is one key per prompt, so that a prompt's answers
      don't depend on its device.
  """
  devices = jax.local_device_count()
  mapped = jax.pmap(rollout, in_axes=(None, 0, 0))

  def wrapped(params: PyTree, prompt: Prompt, keys: Array):
    _divide(prompt.mask, devices)
    parts = jax.tree.map(
      lambda x: x.reshape(devices, -1, *x.shape[1:]), (prompt, keys)
    )
    found = mapped(params, *parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

  return wrapped


def shard_map_rollout(rollout: Callable, mesh: Mesh) -> Callable:
  """Wraps a rollout in `jax.shard_map` over a mesh's `data` axis.

  See `pmap_rollout` for the arguments.
  """
  shared = PartitionSpec(AXIS)
  mapped = jax.shard_map(
    rollout,
    mesh=mesh,
    in_specs=(PartitionSpec(), shared, shared),
    out_specs=shared,
    check_vma=False,
  )
  mapped = jax.jit(mapped)

  def wrapped(params: PyTree, prompt: Prompt, keys: Array):
    _divide(prompt.mask, mesh.shape[AXIS])
    return mapped(params, prompt, keys)

  return wrapped


def jit_loss(loss: Callable, terms: Sequence[Term], mesh: Mesh) -> Wrapped:
  """Wraps a loss in `jit` over global arrays; XLA inserts the collectives."""
  shared = NamedSharding(mesh, PartitionSpec(AXIS))
  everywhere = NamedSharding(mesh, PartitionSpec())
  compiled = jax.jit(
    _local(loss, terms, None), in_shardings=(everywhere, shared)
  )

  def wrapped(params: PyTree, batch: Batch):
    _divide(batch.mask, mesh.shape[AXIS])
    # XLA can't partition custom kernels: they read the mesh from this context.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return compiled(params, batch)

  return wrapped
