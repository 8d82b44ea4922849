"""Keys of a sequence and of its prompt, gathered by their positions.

A position is a place among the real tokens of prompt and answer. Keys and
values come heads first, as rows of [keys, head] are gathered.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models.kernels import attention, blocks
from mmrl.models.kernels.blocked import MASKED
from mmrl.types import pytree

# Queries whose keys are gathered at once.
_QUERIES = 128


@pytree
class Prefixed:
  """Keys of prompts that their answers share.

  Attributes:
    keys, values: rotated, with padding.
    mask: True on real tokens, which are contiguous.
    pooled: the pooled key of each block.
    last: sums of the block that the prompt's end cuts; zero if none is cut.
  """

  keys: Float[Array, "P K S head"]
  values: Float[Array, "P K S head"]
  mask: Bool[Array, "P S"]
  pooled: Float[Array, "P K N head"]
  last: Float[Array, "P K 1 sums"]

  @property
  def first(self) -> Int[Array, "P"]:
    """Index of the first real token."""
    return jnp.argmax(self.mask, axis=-1)

  @property
  def count(self) -> Int[Array, "P"]:
    """Number of real tokens: the position of an answer's first."""
    return self.mask.sum(-1)


@pytree
class Own:
  """Keys of the sequences that attend: whole prompts, or answers.

  Attributes:
    keys, values: rotated.
    real: True on real tokens; padding behind the queries may be real, too.
    offset: position of the first of them, padding included; may be negative.
    sums: of their blocks (`blocks.sums`), the first of which holds position
      max(offset, 0).
  """

  keys: Float[Array, "P G K U head"]
  values: Float[Array, "P G K U head"]
  real: Bool[Array, "P U"]
  offset: Int[Array, "P"]
  sums: Float[Array, "P G K N sums"] | None = None


def by_parts(function: Callable, *arrays: Array) -> Array:
  """Calls a function of queries, for some of them at a time.

  Args:
    function: of the same arrays of some queries, to an array [P, G, T, ...].
    *arrays: [P, G, T, ...], or [P, T] of positions.
  """
  count = arrays[0].shape[2]
  if count <= _QUERIES:
    return function(*arrays)
  parts = -(-count // _QUERIES)

  def split(x):
    axis = 1 if x.ndim == 2 else 2
    sides = [(0, 0)] * x.ndim
    sides[axis] = 0, parts * _QUERIES - count
    x = jnp.pad(x, sides, mode="edge")
    shape = *x.shape[:axis], parts, _QUERIES, *x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  found = jax.lax.map(
    lambda one: jax.checkpoint(function)(*one), tuple(map(split, arrays))
  )
  found = jnp.moveaxis(found, 0, 2)
  return found.reshape(*found.shape[:2], -1, *found.shape[4:])[:, :, :count]


def _take(x: Float[Array, "keys head"], index: Int[Array, "..."]) -> Array:
  return jnp.take(x, index, axis=0, mode="clip")


def _read(own: Own, prefix: Prefixed | None, positions: Array, apart: bool):
  """Gathers keys and values by their positions.

  Args:
    own: of the sequences.
    prefix: of the prompts before them.
    positions: [P, X], or [P, G, K, X] if they are `apart` for each key head.
    apart: see there.

  Returns:
    Keys and values, [P, G, K, X, head].
  """
  heads = 0 if apart else None
  of_own = jax.vmap(jax.vmap(jax.vmap(_take, (0, heads)), (0, heads)))
  lead = [1] * (positions.ndim - 1)
  index = positions - own.offset.reshape(-1, *lead)
  found = [of_own(x, index) for x in (own.keys, own.values)]
  if prefix is None:
    return found
  index = positions + prefix.first.reshape(-1, *lead)
  before = positions < prefix.count.reshape(-1, *lead)
  if apart:
    of_prompt = jax.vmap(jax.vmap(jax.vmap(_take), (None, 0)))
    taken = [of_prompt(x, index) for x in (prefix.keys, prefix.values)]
  else:
    of_prompt = jax.vmap(jax.vmap(_take, (0, None)))
    taken = [of_prompt(x, index)[:, None] for x in (prefix.keys, prefix.values)]
    before = before[:, None, None]
  before = before[..., None]
  return [
    jnp.where(before, one, other)
    for one, other in zip(taken, found, strict=True)
  ]


def attend(queries, own, prefix, position, chosen, sparse) -> Array:
  """Attends to the keys of the chosen blocks, gathered."""
  prompts, answers, count, kv_heads, _ = chosen.shape
  block, first = sparse.block, sparse.first * sparse.block
  # Blocks at the beginning, and a band that holds all queries' windows.
  begin = sparse.local_first(position[:, :1]) * block
  band = begin + jnp.arange(count + sparse.local + block - 2)[None]
  start = jnp.broadcast_to(jnp.arange(first)[None], (prompts, first))
  fixed = jnp.concatenate([start, jnp.where(band < first, -1, band)], -1)
  none = jnp.full((prompts, 1, sparse.top_k), -1)
  seen = blocks.seen(none, position, fixed[:, None], sparse)[:, None, :, None]
  # Others for each query and key head.
  within = jnp.arange(block).reshape(1, 1, 1, 1, 1, -1)
  top = chosen[..., None] * block + within
  there = jnp.broadcast_to(chosen[..., None] >= 0, top.shape)
  top, there = (x.reshape(*x.shape[:4], -1) for x in (top, there))
  by_head = jnp.moveaxis(top, 3, 2).reshape(prompts, answers, kv_heads, -1)
  keys, values = _read(own, prefix, fixed, apart=False)
  own_keys, own_values = (
    x.reshape(prompts, answers, kv_heads, count, -1, x.shape[-1])
    for x in _read(own, prefix, by_head, apart=True)
  )
  grouped = attention.group(queries, kv_heads)
  parts = (
    ("pgtkrd,pgkxd->pgtkrx", keys, seen),
    ("pgtkrd,pgktxd->pgtkrx", own_keys, there),
  )
  scores = [
    jnp.where(
      mask[..., None, :],
      jnp.einsum(pattern, grouped, keys, preferred_element_type=jnp.float32),
      MASKED,
    )
    for pattern, keys, mask in parts
  ]
  weights = jax.nn.softmax(jnp.concatenate(scores, -1), axis=-1)
  weights = weights.astype(values.dtype)
  on_fixed, on_top = jnp.split(weights, [fixed.shape[1]], axis=-1)
  out = jnp.einsum(
    "pgtkrx,pgkxd->pgtkrd",
    on_fixed,
    values,
    preferred_element_type=jnp.float32,
  ) + jnp.einsum(
    "pgtkrx,pgktxd->pgtkrd",
    on_top,
    own_values,
    preferred_element_type=jnp.float32,
  )
  return out.astype(values.dtype).reshape(queries.shape)
