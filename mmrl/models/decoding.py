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
from mmrl.models.kernels.blocks import Sparse
from mmrl.models.kernels.gathered import Own, Prefixed
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
  return Cache(empty, empty, begin, of_all(no_sums) if unit else None, unit)


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


def take(x: Array, answers: Int[Array, "P W"], axis: int = 0) -> Array:
  """Gathers W answers of each prompt from an array.

  Prompts are on `axis`, answers on the next. Each prompt is gathered by itself,
  so that a sharded array isn't resharded.
  """
  one = functools.partial(jnp.take, axis=axis, mode="clip")
  return jax.vmap(one, (axis, 0), axis)(x, answers)


def put(
  x: Array, answers: Int[Array, "P W"], new: Array, axis: int = 0
) -> Array:
  """Replaces W answers of each prompt, none twice, by those of `new`."""

  def one(x, chosen, new):
    return x.at[*(slice(None),) * axis, chosen].set(new)

  return jax.vmap(one, (axis, 0, axis), axis)(x, answers, new)


def _prompts(x: Array) -> int:
  """Returns the prompts' axis of keys or values; layers lead in a stack."""
  return x.ndim - 5


def take_answers(cache: Cache, answers: Int[Array, "P W"]) -> Cache:
  """Gathers the cache of W answers of each prompt."""
  keys, values, sums = jax.tree.map(
    lambda x: take(x, answers, _prompts(x)),
    (cache.keys, cache.values, cache.sums),
  )
  return dataclasses.replace(cache, keys=keys, values=values, sums=sums)


def put_answers(cache: Cache, answers: Int[Array, "P W"], part: Cache) -> Cache:
  """Writes the answers of `part`, and its length, into a cache."""
  keys, values, sums = jax.tree.map(
    lambda x, new: put(x, answers, new, _prompts(x)),
    (cache.keys, cache.values, cache.sums),
    (part.keys, part.values, part.sums),
  )
  return dataclasses.replace(part, keys=keys, values=values, sums=sums)


def decode(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  decoder: tuple[Layers, ...] | Layers,
  cache: Cache,
  token: Int[Array, "P G"],
) -> tuple[Float[Array, "P G D"], Cache]:
  """Extends every answer by one token, with the earlier tokens in `cache`.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `prefill`.
    decoder: from `take_apart`.
    cache: earlier tokens of the same answers.
    token: the next token of every answer.

  Returns:
    The final hidden state that emits the token after it, and the new cache.
  """
  inputs = vlm.embed(params, config, token)
  where = params, config, prefix, decoder, cache
  x, cache = decode_inputs(*where, inputs, token)
  return vlm.final_norm(params, config, x), cache


def decode_inputs(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  decoder: tuple[Layers, ...] | Layers,
  cache: Cache,
  inputs: Float[Array, "P G D"],
  token: Int[Array, "P G"],
) -> tuple[Float[Array, "P G D"], Cache]:
  """Extends every answer by one embedding, that of a token or another.

  For the other arguments see `decode`.

  Returns:
    The last layer's output, before the final norm, and the new cache.
  """
  x = inputs[:, :, None].astype(config.dtype)
  angles = vlm.answer_angles(config, prefix, cache.length, 1)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  room = jax.tree.leaves(cache.keys)[0].shape[-2]
  mask = (jnp.arange(room) <= cache.length)[None]
  marks = sparse.marks(config.sparse, token)

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
      # Written in place: stacking scanned-out caches would copy all of them at
      # every token.
      def write(cached, new):
        new = jnp.swapaxes(new, 2, 3).reshape(
          *(1 for _ in index), *cached.shape[-5:-2], 1, -1
        )
        where = (*index, 0, 0, 0, cache.length, 0)
        return jax.lax.dynamic_update_slice(cached, new, where)

      new, (*old_pairs, sums) = jnp.swapaxes(keys, 2, 3), old
      kept = tuple(map(write, old_pairs, (keys, values)))
      keys, values = (cached[index] if index else cached for cached in kept)
      if layer.sparse is None:
        out = attention.attend_prefix(
          queries, layer.keys, layer.values, prefix.mask, keys, values, mask
        )
        return out, (*kept, None)
      total = add(sums[index] if index else sums, new)
      out = attend_sparse(layer, queries, keys, values, total)
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
