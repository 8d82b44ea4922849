"""Attention over chosen blocks by a kernel for TPUs.

A tile of queries visits the tiles of keys that any of them has chosen, in a
list that the kernel is given in advance, and masks the rest of each. No map
larger than a pair of tiles exists. Backward, the gathered form is recomputed.
"""

from collections.abc import Callable
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from mmrl.machines import sharding
from mmrl.models.kernels.blocked import MASKED
from mmrl.models.kernels.blocks import Sparse

# Queries and keys of a tile. The list of tiles lies in scalar memory, 32 KiB a
# key head for 32,768 tokens.
_ROWS, _COLUMNS = 256, 512


def make(
  gather: Callable, sparse: Sparse, *, interpret: bool = False
) -> Callable:
  """Makes attention of whole sequences, given what each query has chosen.

  Args:
    gather: the same function in the gathered form, whose gradient is taken.
    sparse: which other blocks are attended to.
    interpret: whether to run the kernel's operations on any backend.

  Returns:
    A function of queries [P, 1, T, H, head], keys and values [P, 1, K, T,
    head], blocks [P, 1, T, K, top], which tokens are real [P, T], and the
    position of the first, padding included [P]. Its output on padding is
    meaningless.
  """

  def here(queries, keys, values, chosen, real, offset):
    one = functools.partial(_one, sparse=sparse, interpret=interpret)
    arrays = (x[:, 0] for x in (queries, keys, values, chosen))
    out = jax.lax.map(lambda x: one(*x), (*arrays, real, offset))
    return out[:, None]

  @jax.custom_vjp
  def attend(*arrays):
    # The compiler can't partition a kernel: see `splash`.
    if not jax.sharding.get_abstract_mesh().auto_axes:
      return here(*arrays)
    keys = arrays[1]
    prompts, heads = sharding.prompts_and_heads(len(keys), keys.shape[2])
    tokens_first = jax.P(prompts, None, None, heads)
    heads_first, whole = jax.P(prompts, None, heads), jax.P(prompts)
    specs = tokens_first, heads_first, heads_first, tokens_first, whole, whole
    return jax.shard_map(
      here, in_specs=specs, out_specs=tokens_first, check_vma=False
    )(*arrays)

  def forward(*arrays):
    return attend(*arrays), arrays

  def backward(arrays, slope):
    back = jax.vjp(lambda *x: gather(*x, *arrays[3:]), *arrays[:3])[1]
    return (*back(slope), None, None, None)

  attend.defvjp(forward, backward)
  return attend


def visits(
  chosen: Int[Array, "T K top"],
  position: Int[Array, "T"],
  offset: Int[Array, ""],
  sparse: Sparse,
  columns: int,
) -> tuple[Int[Array, "K rows columns"], Int[Array, "K rows"]]:
  """Lists the tiles of keys that each tile of queries visits.

  Args:
    chosen: from `blocks.choose`; T is a multiple of the queries of a tile.
    position: of each query.
    offset: position of the first key.
    sparse: which other blocks are attended to.
    columns: number of tiles of keys.

  Returns:
    The tiles in order, behind them the last one again; and their number.
  """
  kv_heads, rows = chosen.shape[1], len(chosen) // _ROWS
  ends = np.array([0, sparse.block - 1]).reshape(1, 1, 1, 2)
  keys = chosen[..., None] * sparse.block + ends - offset
  tile = jnp.where(chosen[..., None] >= 0, keys // _COLUMNS, columns)
  tile = jnp.clip(tile, 0, columns).reshape(rows, _ROWS, kv_heads, -1)
  tile = tile.transpose(2, 0, 1, 3).reshape(kv_heads, rows, -1)

  def mark(tile):
    return jnp.zeros((columns + 1,), bool).at[tile].set(True)[:columns]

  found = jax.vmap(jax.vmap(mark))(tile)
  # Every query's window, up to itself, and the blocks at the beginning.
  position = position.reshape(rows, _ROWS)
  low = sparse.local_first(position[:, 0]) * sparse.block - offset
  high = position[:, -1] - offset
  start = jnp.arange(columns)[None] * _COLUMNS
  window = (start + _COLUMNS > low[:, None]) & (start <= high[:, None])
  first = start < sparse.first * sparse.block - offset
  found |= (window | first & (start <= high[:, None]))[None]
  count = found.sum(-1)
  order = jnp.argsort(~found, axis=-1, stable=True)
  at = jnp.minimum(jnp.arange(columns).reshape(1, 1, -1), count[..., None] - 1)
  order = jnp.take_along_axis(order, at, axis=-1)
  return order.astype(jnp.int32), count.astype(jnp.int32)


def _one(
  queries: Float[Array, "T H head"],
  keys: Float[Array, "K T head"],
  values: Float[Array, "K T head"],
  chosen: Int[Array, "T K top"],
  real: Bool[Array, "T"],
  offset: Int[Array, ""],
  *,
  sparse: Sparse,
  interpret: bool,
) -> Float[Array, "T H head"]:
  """Attends in one sequence."""
  count, heads, size = queries.shape
  kv_heads = len(keys)
  side = max(_ROWS, _COLUMNS)
  more = -count % side

  def pad(x, axis, fill=0):
    sides = [(0, 0)] * x.ndim
    sides[axis] = 0, more
    return jnp.pad(x, sides, constant_values=fill)

  queries, chosen = pad(queries, 0), pad(chosen, 0, -1)
  keys, values, real = pad(keys, 1), pad(values, 1), pad(real, 0)
  position = offset + jnp.arange(count + more)
  order, number = visits(
    chosen, position, offset, sparse, (count + more) // _COLUMNS
  )
  # No division in the kernel: blocks and windows are given.
  of_keys = jnp.where(real, position, -1)
  of_keys = jnp.stack([of_keys // sparse.block, of_keys])
  chosen = jnp.moveaxis(chosen, 1, 0)
  given = jnp.stack([position, sparse.local_first(position)], -1)
  given = jnp.broadcast_to(given[None], (kv_heads, *given.shape))
  of_queries = jnp.concatenate([given, chosen], -1).astype(jnp.int32)
  queries = (queries * size**-0.5).reshape(len(queries), kv_heads, -1, size)
  out = _call(
    (order, number),
    (queries.transpose(1, 2, 0, 3), keys, values, of_queries, of_keys),
    sparse.first,
    interpret,
  )
  return out.transpose(2, 0, 1, 3).reshape(-1, heads, size)[:count]


def _call(scalars, arrays, first: int, interpret: bool) -> Array:
  """Calls the kernel for all key heads, tiles of queries, and tiles of keys."""
  queries, _, _, of_queries, of_keys = arrays
  kv_heads, rep, count, size = queries.shape
  columns = scalars[0].shape[-1]

  def of_tile(head, row, column, order, number):
    return head, order[head, row, column], 0

  query = pl.BlockSpec(
    (None, rep, _ROWS, size), lambda head, row, *_: (head, 0, row, 0)
  )
  key = pl.BlockSpec((None, _COLUMNS, size), of_tile)
  width = of_queries.shape[-1]
  scratch = [
    pltpu.VMEM((rep * _ROWS, one), jnp.float32) for one in (1, 1, size)
  ]
  return pl.pallas_call(
    functools.partial(_kernel, first=first),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(kv_heads, count // _ROWS, columns),
      in_specs=[
        query,
        key,
        key,
        pl.BlockSpec(
          (None, _ROWS, width), lambda head, row, *_: (head, row, 0)
        ),
        pl.BlockSpec(
          (len(of_keys), _COLUMNS),
          lambda head, row, column, order, number: (
            0,
            order[head, row, column],
          ),
        ),
      ],
      out_specs=query,
      scratch_shapes=scratch,
    ),
    out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
    interpret=interpret,
    name="punctuation_sparse",
  )(*scalars, *arrays)


def _kernel(
  order, number, query, key, value, of_query, of_key, out, top, total, sums,
  *, first: int,
):  # fmt: skip
  """Adds one tile of keys to the softmax of one tile of queries."""
  head, row, column = (pl.program_id(i) for i in range(3))
  rep, rows, size = query.shape

  @pl.when(column == 0)
  def _():
    top[...] = jnp.full_like(top, MASKED)
    total[...] = jnp.zeros_like(total)
    sums[...] = jnp.zeros_like(sums)

  @pl.when(column < number[head, row])
  def _():
    block, at = of_key[0:1, :], of_key[1:2, :]
    asked = of_query[...]
    seen = (block < first) | (block >= asked[:, 1:2])
    for i in range(2, asked.shape[1]):
      seen = seen | (block == asked[:, i : i + 1])
    seen = seen & (at >= 0) & (at <= asked[:, 0:1])
    hidden = jnp.where(seen, 0.0, MASKED)
    hidden = jnp.concatenate([hidden] * rep, axis=0)
    scores = jax.lax.dot_general(
      query[...].reshape(rep * rows, size),
      key[...],
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    scores = scores + hidden
    best = jnp.maximum(top[...], scores.max(-1, keepdims=True))
    weights = jnp.where(hidden < 0, 0.0, jnp.exp(scores - best))
    scale = jnp.exp(top[...] - best)
    top[...] = best
    total[...] = total[...] * scale + weights.sum(-1, keepdims=True)
    sums[...] = sums[...] * scale + jax.lax.dot_general(
      weights.astype(value.dtype),
      value[...],
      (((1,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )

  @pl.when(column == pl.num_programs(2) - 1)
  def _():
    # Padding before the first token sees nothing.
    found = sums[...] / jnp.where(total[...] > 0, total[...], 1.0)
    out[...] = found.reshape(rep, rows, size).astype(out.dtype)
