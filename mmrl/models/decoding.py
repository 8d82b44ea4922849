"""Decoding step: `extend` by one token, with a cache of keys and values.

The cache holds the answers' own keys and values. The prompt's are read once
for all its answers.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.machines import sharding
from mmrl.models import layers, parameters, vlm
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import attention, blocks, sparse
from mmrl.models.kernels import working as working_lib
from mmrl.models.kernels.blocks import Sparse
from mmrl.models.kernels.gathered import Own, Prefixed
from mmrl.models.kernels.working import Working
from mmrl.types import Prefix, PyTree, pytree


@pytree
class Layers:
  """Inputs of decoding of one layer, or of all in a stack, at every token.

  Attributes:
    params: parameters.
    keys, values: of the prompts, heads first as matrix products read them.
    pooled, last: of their blocks, see `Prefixed`; None where all keys
      are attended to.
    sparse: which keys are.
  """

  params: PyTree
  keys: Float[Array, "*L P K S head"]
  values: Float[Array, "*L P K S head"]
  pooled: Float[Array, "*L P K N head"] | None = None
  last: Float[Array, "*L P K 1 sums"] | None = None
  sparse: Sparse | None = dataclasses.field(
    default=None, metadata={"static": True}
  )


@pytree
class Cache:
  """Keys and values of the answers so far.

  Attributes:
    keys, values: rotated keys and values of each layer, or of all in a stack.
    length: number of answer tokens in the cache.
    start: of each prompt, the `length` at which its one answer began: keys are
      in a ring, and the column of the first is `start` modulo its capacity.
      None if all began at 0.
    sums: those of the answers' blocks, likewise; None where all keys are
      attended to.
    unit: keys of a block.
  """

  keys: (
    tuple[Float[Array, "P G K R head"], ...] | Float[Array, "L P G K R head"]
  )
  values: (
    tuple[Float[Array, "P G K R head"], ...] | Float[Array, "L P G K R head"]
  )
  length: Int[Array, ""]
  start: Int[Array, "P"] | None = None
  sums: (
    tuple[Float[Array, "P G K N sums"], ...]
    | Float[Array, "L P G K N sums"]
    | None
  ) = None
  unit: int = dataclasses.field(default=0, metadata={"static": True})


def cast(params: PyTree, config: ModelConfig) -> PyTree:
  """Casts the decoder's matrices to the compute type and gathers their shards.

  Kernels held in a wider type than the compute type are rounded once, not at
  every token. Norms, biases and adapters, which are small, keep their type.
  Pairs aren't merged into kernels: rounded to the compute type, those would
  lose a part of what a pair adds, and take memory again
  (experiments/bench/lora.py). On a mesh, shards on the axis `fsdp` are
  gathered, once per rollout; the axis `tensor` stays sharded.
  """

  def narrow(path, x):
    name = parameters.path_name(path)
    if parameters.is_pair(name):
      return sharding.gathered(name, x)
    if path[-1].key not in ("kernel", "embedding"):
      return x
    return sharding.gathered(name, x.astype(config.dtype))

  return {"text": jax.tree_util.tree_map_with_path(narrow, params["text"])}


def take_apart(
  params: PyTree, prefix: Prefix, sparse_: Sparse | None = None
) -> tuple[Layers, ...] | Layers:
  """Prepares the decoder for `decode`: split into layers, or as a stack.

  It is split where the model unrolls its layers: no layer's weights and keys
  are then sliced out of a stack at every token, but all are copied once.

  Args:
    params: model parameters.
    prefix: from `prefill`.
    sparse_: which keys are attended to; all if None.
  """
  stacked = Layers(
    params=params["text"]["layers"],
    keys=jnp.swapaxes(prefix.keys, 2, 3),
    values=jnp.swapaxes(prefix.values, 2, 3),
    sparse=sparse_,
  )
  if sparse_ is not None:
    assert prefix.marks is not None
    pool = functools.partial(
      sparse.pool, mask=prefix.mask, marks=prefix.marks, sparse=sparse_
    )
    pooled, last = jax.vmap(pool)(stacked.keys)
    stacked = dataclasses.replace(stacked, pooled=pooled, last=last)
  if not vlm.unrolled(params):
    return stacked
  return tuple(
    jax.tree.map(lambda x: x[i], stacked)  # noqa: B023
    for i in range(len(prefix.keys))
  )


def empty_cache(
  decoder: tuple[Layers, ...] | Layers, answers: int, length: int
) -> Cache:
  """Makes a cache for `answers` answers of at most `length` tokens a prompt."""

  def zeros(layers: Layers):
    *before, heads, _, size = layers.keys.shape
    return jnp.zeros((*before, answers, heads, length, size), layers.keys.dtype)

  def no_sums(layers: Layers):
    *before, heads, _, size = layers.keys.shape
    count = blocks.own_blocks(length, unit)
    return jnp.zeros((*before, answers, heads, count, 2 * (size + 1)))

  def of_all(make: Callable[[Layers], Array]):
    if isinstance(decoder, Layers):
      return make(decoder)
    return tuple(map(make, decoder))

  one = decoder if isinstance(decoder, Layers) else decoder[0]
  unit = one.sparse.unit if one.sparse else 0
  empty, begin = of_all(zeros), jnp.zeros((), jnp.int32)
  sums = of_all(no_sums) if unit else None
  return Cache(empty, empty, begin, sums=sums, unit=unit)


def lengthen(cache: Cache, length: int) -> Cache:
  """Pads a cache to room for `length` tokens."""

  def pad(x, length=length):
    more = length - x.shape[-2]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])

  room = blocks.own_blocks(length, cache.unit) if cache.unit else 0
  return dataclasses.replace(
    cache,
    keys=jax.tree.map(pad, cache.keys),
    values=jax.tree.map(pad, cache.values),
    sums=jax.tree.map(lambda x: pad(x, room), cache.sums),
  )


def resize(cache: Cache, length: int) -> Cache:
  """Moves a ring to room for `length` tokens, at least as many as are read."""
  room = capacity(cache)
  # The newest of the columns that come to each place; older ones aren't read.
  newest = cache.length - 1 - (cache.length - 1 - jnp.arange(length)) % length
  move = functools.partial(jnp.take, indices=newest % room, axis=-2)
  keys, values = jax.tree.map(move, (cache.keys, cache.values))
  return dataclasses.replace(cache, keys=keys, values=values)


def capacity(cache: Cache) -> int:
  """Returns how many tokens of an answer the cache has room for."""
  return jax.tree.leaves(cache.keys)[0].shape[-2]


def _prompts(x: Array) -> int:
  """Returns the prompts' axis of keys or values; layers lead in a stack."""
  return x.ndim - 5


def take_answers(cache: Cache, working: Working) -> Cache:
  """Gathers the cache of some answers; whole where attention is sparse."""
  if cache.unit:
    return cache

  def take(x):
    return working_lib.take(x, working, _prompts(x))

  keys, values = jax.tree.map(take, (cache.keys, cache.values))
  return dataclasses.replace(cache, keys=keys, values=values)


def put_answers(cache: Cache, working: Working, part: Cache) -> Cache:
  """Writes the answers of `part`, and its length, into a cache."""
  if cache.unit:
    return part

  def put(x, new):
    return working_lib.put(x, working, new, _prompts(x))

  pairs = (cache.keys, cache.values), (part.keys, part.values)
  keys, values = jax.tree.map(put, *pairs)
  return dataclasses.replace(part, keys=keys, values=values)


def decode(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  decoder: tuple[Layers, ...] | Layers,
  cache: Cache,
  token: Int[Array, "n W"],
  working: Working | None = None,
) -> tuple[Float[Array, "n W D"], Cache]:
  """Extends every answer by one token, with the earlier tokens in `cache`.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `prefill`.
    decoder: from `take_apart`.
    cache: earlier tokens of the same answers.
    token: the next token of every answer, [P, G].
    working: which answers token and cache are of, if not all. With sparse
      attention the cache is of all, and so is the work of attending.

  Returns:
    The final hidden state that emits the token after it, and the new cache.
  """
  inputs = vlm.embed(params, config, token)
  where = params, config, prefix, decoder, cache
  x, cache = decode_inputs(*where, inputs, token, working)
  return vlm.final_norm(params, config, x), cache


def decode_inputs(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  decoder: tuple[Layers, ...] | Layers,
  cache: Cache,
  inputs: Float[Array, "n W D"],
  token: Int[Array, "n W"],
  working: Working | None = None,
) -> tuple[Float[Array, "n W D"], Cache]:
  """Extends every answer by one embedding, that of a token or another.

  For the other arguments see `decode`.

  Returns:
    The last layer's output, before the final norm, and the new cache.
  """
  x = inputs[:, :, None].astype(config.dtype)
  start = 0 if cache.start is None else cache.start[:, None, None]
  angles = vlm.answer_angles(config, prefix, cache.length - start, 1)
  if working is not None:
    own = working.place.reshape(len(angles), -1).shape
    angles = jnp.broadcast_to(angles, (*own, *angles.shape[2:]))
    angles = working_lib.take(angles, working)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  room = capacity(cache)
  column, mask = cache.length, (jnp.arange(room) <= cache.length)[None]
  if cache.start is not None:
    column = cache.length % room
    age = (column - jnp.arange(room)) % room
    mask = age[None] <= (cache.length - cache.start)[:, None]
    mask = mask[:, None, None, None, None]
  marks = sparse.marks(config.sparse, working_lib.spread(token, working))

  def add(sums, keys):
    """Adds the token to the sums of its block."""
    assert marks is not None
    offset, unit = prefix.mask.sum(-1), cache.unit
    at = (offset + cache.length) // unit - offset // unit
    return blocks.add(sums, keys, marks, at)

  def attend_sparse(layer: Layers, queries, keys, values, sums):
    pooled, last = layer.pooled, layer.last
    assert pooled is not None and last is not None
    assert layer.sparse is not None
    before = Prefixed(layer.keys, layer.values, prefix.mask, pooled, last)
    real = jnp.ones((len(keys), room), bool)
    own = Own(keys, values, real, before.count, sums)
    return sparse.attend(queries, own, before, layer.sparse, cache.length)[0]

  def one(x, layer: Layers, old, index=()):
    """Runs a layer, whose cache is at `index` of `old`."""
    x = sharding.over_prompts(x)

    def attend(queries, keys, values):
      if layer.sparse is not None:
        queries, keys, values = (
          working_lib.spread(x, working) for x in (queries, keys, values)
        )

      # Written in place: stacking scanned-out caches would copy all of them at
      # every token.
      def write(cached, new):
        new = jnp.swapaxes(new, 2, 3).reshape(
          *(1 for _ in index), *cached.shape[-5:-2], 1, -1
        )
        where = (*index, 0, 0, 0, column, 0)
        return jax.lax.dynamic_update_slice(cached, new, where)

      new, (*old_pairs, sums) = jnp.swapaxes(keys, 2, 3), old
      kept = tuple(map(write, old_pairs, (keys, values)))
      keys, values = (cached[index] if index else cached for cached in kept)
      if layer.sparse is None:
        before = layer.keys, layer.values, prefix.mask
        out = attention.attend_prefix(
          queries, *before, keys, values, mask, working
        )
        return out, (*kept, None)
      total = add(sums[index] if index else sums, new)
      out = attend_sparse(layer, queries, keys, values, total)
      out = working_lib.take(out, working)
      return out, (*kept, sums.at[index].set(total) if index else total)

    return layers.run(block, layer.params, x, angles, attend)

  if isinstance(decoder, Layers):

    def body(carry, step):
      x, *old = carry
      layer, index = step
      x, kept = one(x, layer, old, (index,))
      return (x, *kept), None

    steps = decoder, jnp.arange(len(decoder.keys))
    carry = x, cache.keys, cache.values, cache.sums
    (x, keys, values, sums), _ = jax.lax.scan(body, carry, steps)
  else:
    kept = []
    old = cache.keys, cache.values, cache.sums or [None] * len(decoder)
    for layer, *parts in zip(decoder, *old, strict=True):
      x, new = one(x, layer, parts)
      kept.append(new)
    keys, values, sums = zip(*kept, strict=True)
    sums = sums if cache.unit else None
  return x[:, :, 0], dataclasses.replace(
    cache, keys=keys, values=values, sums=sums, length=cache.length + 1
  )
