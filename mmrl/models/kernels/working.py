"""Some of the answers of a batch: those that are still decoded.

They are taken in a line, whatever their prompts: of a batch on n shards, W of
the P / n * G answers that each shard has, so that nothing moves between
devices. Both directions gather, which is faster than to scatter.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mmrl.machines import sharding
from mmrl.types import pytree


@pytree
class Working:
  """Which answers of a batch are decoded.

  Attributes:
    index: of each shard, the places of the chosen among its answers.
    place: the other way round: where each answer is in the line; W if nowhere.
    answers: G.
  """

  index: Int[Array, "n W"]
  place: Int[Array, "n each"]
  answers: int = dataclasses.field(metadata={"static": True})


def by_shard(x: Bool[Array, "P G"]) -> Bool[Array, "n each"]:
  """Puts the answers of each shard in a line."""
  return x.reshape(sharding.prompt_axes(len(x))[1], -1)


def choose(done: Bool[Array, "P G"], width: int) -> Working:
  """Chooses the unfinished answers of each shard, filled up with others.

  Args:
    done: which answers have ended.
    width: W, at least as many as are unfinished on a shard.
  """
  lines = by_shard(done)
  index = jnp.argsort(lines, axis=1, stable=True)[:, :width]
  nowhere = jnp.full(lines.shape, width)
  place = jax.vmap(lambda x, i: x.at[i].set(jnp.arange(width)))(nowhere, index)
  return Working(index, place, done.shape[1])


def take(x: Array, working: Working | None, axis: int = 0) -> Array:
  """Gathers the chosen answers: [P, G, ...] to [n, W, ...].

  Args:
    x: with prompts on `axis`, answers on the next.
    working: the chosen; all, and `x` as it is, if None.
    axis: that of the prompts.
  """
  if working is None:
    return x
  before, after = x.shape[:axis], x.shape[axis + 2 :]
  lines = x.reshape(*before, len(working.place), -1, *after)
  return _gather(lines, working.index, axis)


def put(x: Array, working: Working | None, new: Array, axis: int = 0) -> Array:
  """Replaces the chosen answers of [P, G, ...] by [n, W, ...]; see `take`."""
  if working is None:
    return new
  before, after = x.shape[:axis], x.shape[axis + 2 :]
  there = working.place < working.index.shape[1]
  there = there.reshape(*x.shape[axis : axis + 2], *[1] * len(after))
  spread = _gather(new, working.place, axis).reshape(x.shape)
  there = there.reshape(*[1] * len(before), *there.shape)
  return jnp.where(there, spread, x)


def spread(new: Array, working: Working | None) -> Array:
  """Puts [n, W, ...] to their prompts, [P, G, ...], with copies elsewhere."""
  if working is None:
    return new
  found = _gather(new, working.place, 0)
  return found.reshape(-1, working.answers, *new.shape[2:])


def _gather(x: Array, index: Int[Array, "n i"], axis: int) -> Array:
  """Gathers along the axis after `axis`, of each shard by itself."""

  def one(x, index):
    return jnp.take(x, index, axis=axis, mode="clip")

  return jax.vmap(one, (axis, 0), axis)(x, index)
