"""Groups of answers on a mesh whose devices share them out.

Where prompts are fewer than devices, a mesh has the axis `group`: each prompt
is on all its k devices, and G / k of its answers on each. A pass over answers
then sees k P prompts with G / k answers each, one after the other on each
shard, as if prompts were as many as devices. Without that axis, or where G
doesn't divide, nothing here does anything.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from mmrl.machines import sharding
from mmrl.machines.sharding import GROUP
from mmrl.types import Prefix, PyTree


def _sizes(prompts: int, answers: int) -> tuple[int, int]:
  """Returns the shards of prompts in context, and k; 1 where none is shared."""
  axes, shards = sharding.prompt_axes(prompts)
  size = jax.sharding.get_abstract_mesh().shape.get(GROUP, 1)
  shared = axes and GROUP not in axes and answers % size == 0
  return shards, size if shared else 1


def shards(prompts: int, answers: int = 1) -> int:
  """Returns the number of shards of groups that are cut, if they are."""
  return math.prod(_sizes(prompts, answers))


def apart(x: Shaped[Array, "P G ..."]) -> Shaped[Array, "kP part ..."]:
  """Cuts groups into those of each device."""
  prompts, answers, *rest = x.shape
  shards, k = _sizes(prompts, answers)
  if k == 1:
    return x
  x = x.reshape(shards, prompts // shards, k, answers // k, *rest)
  x = x.swapaxes(1, 2).reshape(prompts * k, answers // k, *rest)
  return sharding.over_prompts(x)


def together(
  x: Shaped[Array, "kP part ..."], prompts: int, answers: int
) -> Shaped[Array, "P G ..."]:
  """Joins groups that `apart` has cut."""
  shards, k = _sizes(prompts, answers)
  if k == 1:
    return x
  rest = x.shape[2:]
  x = x.reshape(shards, k, prompts // shards, answers // k, *rest)
  return over_answers(x.swapaxes(1, 2).reshape(prompts, answers, *rest))


def _repeat(x: Array, axis: int, answers: int) -> Array:
  """Repeats what leads with P on `axis` for the groups that `apart` cuts."""
  prompts = x.shape[axis]
  shards, k = _sizes(prompts, answers)
  if k == 1:
    return x
  before, after = x.shape[:axis], x.shape[axis + 1 :]
  x = x.reshape(*before, shards, 1, prompts // shards, *after)
  shape = *before, shards, k, prompts // shards, *after
  x = jnp.broadcast_to(x, shape).reshape(*before, prompts * k, *after)
  axes = sharding.prompt_axes(prompts * k)[0]
  spec = PartitionSpec(*[None] * axis, axes)
  return jax.lax.with_sharding_constraint(x, spec)


def repeat(tree: PyTree, answers: int) -> PyTree:
  """Repeats the prompts of a prefix, or of arrays, as `apart` needs them."""
  if not isinstance(tree, Prefix):
    return jax.tree.map(lambda x: _repeat(x, 0, answers), tree)
  rest = {k: v for k, v in vars(tree).items() if k not in ("keys", "values")}
  keys, values = (_repeat(x, 1, answers) for x in (tree.keys, tree.values))
  return dataclasses.replace(
    tree, keys=keys, values=values, **repeat(rest, answers)
  )


def over_answers(x: Shaped[Array, "P G ..."]) -> Shaped[Array, "P G ..."]:
  """Shards an activation over prompts and, where they are few, answers."""
  axes = sharding.prompt_axes(len(x))[0]
  if _sizes(*x.shape[:2])[1] == 1:
    return sharding.over_prompts(x)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, GROUP))


def flat(
  x: Shaped[Array, "..."], batch: tuple[int, ...]
) -> Shaped[Array, "N ..."]:
  """Puts the tokens of a batch, [P, G, R] or another, in a line.

  Each device's own stay there; see `unflat`.

  Args:
    x: leads with `batch`.
    batch: sizes of its first axes.
  """
  rest = x.shape[len(batch) :]
  x = apart(x) if len(batch) > 1 else x
  return x.reshape(math.prod(batch), *rest)


def unflat(
  x: Shaped[Array, "N ..."], batch: tuple[int, ...]
) -> Shaped[Array, "..."]:
  """Puts tokens of a line back to their batch; see `flat`."""
  if len(batch) < 2:
    return x.reshape(*batch, *x.shape[1:])
  prompts, answers, *rest = batch
  k = _sizes(prompts, answers)[1]
  x = x.reshape(prompts * k, answers // k, *rest, *x.shape[1:])
  return together(x, prompts, answers)
