"""Decoding step: `extend` by one token, with a cache of keys and values.

The cache holds the answers' own keys and values. The prompt's are read once
for all its answers.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.machines import sharding
from mmrl.models import layers, parameters, vlm
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import attention
from mmrl.types import Prefix, PyTree, pytree


@pytree
class Layers:
  """Inputs of decoding of one layer, or of all in a stack, at every token.

  Attributes:
    params: parameters.
    keys, values: of the prompts, heads first as matrix products read them.
  """

  params: PyTree
  keys: Float[Array, "*L P K S head"]
  values: Float[Array, "*L P K S head"]


@pytree
class Cache:
  """Keys and values of the answers so far.

  Attributes:
    keys, values: rotated keys and values of each layer, or of all in a stack.
    length: number of answer tokens in the cache.
  """

  keys: (
    tuple[Float[Array, "P G K R head"], ...] | Float[Array, "L P G K R head"]
  )
  values: (
    tuple[Float[Array, "P G K R head"], ...] | Float[Array, "L P G K R head"]
  )
  length: Int[Array, ""]


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


def take_apart(params: PyTree, prefix: Prefix) -> tuple[Layers, ...] | Layers:
  """Prepares the decoder for `decode`: split into layers, or as a stack.

  It is split where the model unrolls its layers: no layer's weights and keys
  are then sliced out of a stack at every token, but all are copied once.

  Args:
    params: model parameters.
    prefix: from `prefill`.
  """
  stacked = Layers(
    params=params["text"]["layers"],
    keys=jnp.swapaxes(prefix.keys, 2, 3),
    values=jnp.swapaxes(prefix.values, 2, 3),
  )
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

  if isinstance(decoder, Layers):
    empty = zeros(decoder)
  else:
    empty = tuple(map(zeros, decoder))
  return Cache(keys=empty, values=empty, length=jnp.zeros((), jnp.int32))


def lengthen(cache: Cache, length: int) -> Cache:
  """Pads a cache to room for `length` tokens."""

  def pad(x):
    more = length - x.shape[-2]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])

  return Cache(
    keys=jax.tree.map(pad, cache.keys),
    values=jax.tree.map(pad, cache.values),
    length=cache.length,
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
  keys, values = jax.tree.map(
    lambda x: take(x, answers, _prompts(x)), (cache.keys, cache.values)
  )
  return Cache(keys=keys, values=values, length=cache.length)


def put_answers(cache: Cache, answers: Int[Array, "P W"], part: Cache) -> Cache:
  """Writes the answers of `part`, and its length, into a cache."""
  keys, values = jax.tree.map(
    lambda x, new: put(x, answers, new, _prompts(x)),
    (cache.keys, cache.values),
    (part.keys, part.values),
  )
  return Cache(keys=keys, values=values, length=part.length)


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
  x = vlm.embed(params, config, token[..., None])
  angles = vlm.answer_angles(config, prefix, cache.length, 1)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  room = jax.tree.leaves(cache.keys)[0].shape[-2]
  mask = (jnp.arange(room) <= cache.length)[None]

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

      kept = tuple(map(write, old, (keys, values)))
      keys, values = (cached[index] if index else cached for cached in kept)
      out = attention.attend_prefix(
        queries, layer.keys, layer.values, prefix.mask, keys, values, mask
      )
      return out, kept

    return layers.run(block, layer.params, x, angles, attend)

  if isinstance(decoder, Layers):

    def body(carry, step):
      x, *old = carry
      layer, index = step
      x, kept = one(x, layer, old, (index,))
      return (x, *kept), None

    steps = decoder, jnp.arange(len(decoder.keys))
    carry = x, cache.keys, cache.values
    (x, keys, values), _ = jax.lax.scan(body, carry, steps)
  else:
    kept = []
    for layer, *old in zip(decoder, cache.keys, cache.values, strict=True):
      x, new = one(x, layer, old)
      kept.append(new)
    keys, values = zip(*kept, strict=True)
  hidden = vlm.final_norm(params, config, x)[:, :, 0]
  return hidden, Cache(keys=keys, values=values, length=cache.length + 1)
