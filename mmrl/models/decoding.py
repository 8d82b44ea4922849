"""Sampling's step: `extend` by one token, with a cache of the answer's own
keys and values. The prompt's are read once for all its answers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.models import attention, layers, vlm
from mmrl.models.config import ModelConfig
from mmrl.types import Prefix, PyTree, pytree


@pytree
class Layers:
  """What decoding reads of n consecutive layers at every token.

  Attributes:
    params: their stacked parameters.
    keys, values: of the prompts, heads first, as products want them.
  """

  params: PyTree
  keys: Float[Array, "n P K S head"]
  values: Float[Array, "n P K S head"]


@pytree
class Cache:
  """Keys and values of the answers so far.

  Attributes:
    keys, values: rotated keys and values, for each of `Layers`.
    length: how many answer tokens are in.
  """

  keys: tuple[Float[Array, "n P G K R head"], ...]
  values: tuple[Float[Array, "n P G K R head"], ...]
  length: Int[Array, ""]


def cast(params: PyTree, config: ModelConfig) -> PyTree:
  """The decoder's parameters as its matrix products read them.

  Kernels held in a wider type than the compute type are rounded once, not at
  every token. Norms and biases stay.
  """

  def narrow(path, x):
    read = path[-1].key in ("kernel", "embedding")
    return x.astype(config.dtype) if read else x

  return {"text": jax.tree_util.tree_map_with_path(narrow, params["text"])}


def take_apart(params: PyTree, prefix: Prefix) -> tuple[Layers, ...]:
  """The decoder in the runs of layers that `decode` scans over.

  All in one; each layer alone if the model unrolls them. Then no layer's
  weights and keys are cut out of a stack at every token, but all are copied
  once.

  Args:
    params: model parameters.
    prefix: from `prefill`.
  """
  stacked = Layers(
    params=params["text"]["layers"],
    keys=jnp.swapaxes(prefix.keys, 2, 3),
    values=jnp.swapaxes(prefix.values, 2, 3),
  )
  depth = len(prefix.keys)
  run = 1 if vlm.unrolled(params) else depth
  return tuple(
    jax.tree.map(lambda x: x[i : i + run], stacked)  # noqa: B023
    for i in range(0, depth, run)
  )


def empty_cache(runs: tuple[Layers, ...], answers: int, length: int) -> Cache:
  """A cache for `answers` answers of at most `length` tokens per prompt."""
  zeros = []
  for run in runs:
    count, prompts, heads, _, size = run.keys.shape
    shape = (count, prompts, answers, heads, length, size)
    zeros.append(jnp.zeros(shape, run.keys.dtype))
  zeros = tuple(zeros)
  return Cache(keys=zeros, values=zeros, length=jnp.zeros((), jnp.int32))


def lengthen(cache: Cache, length: int) -> Cache:
  """The same cache with room for `length` tokens."""

  def pad(x):
    more = length - x.shape[4]
    return jnp.pad(x, [(0, 0)] * 4 + [(0, more), (0, 0)])

  return Cache(
    keys=jax.tree.map(pad, cache.keys),
    values=jax.tree.map(pad, cache.values),
    length=cache.length,
  )


def decode(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  runs: tuple[Layers, ...],
  cache: Cache,
  token: Int[Array, "P G"],
) -> tuple[Float[Array, "P G D"], Cache]:
  """`extend` by one token, with the earlier tokens' keys in `cache`.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `prefill`.
    runs: from `take_apart`.
    cache: earlier tokens of the same answers.
    token: the next token of every answer.

  Returns:
    The final hidden state that emits the token after it, and the new cache.
  """
  x = vlm.embed(params, config, token[..., None])
  angles = vlm.answer_angles(config, prefix, cache.length, 1)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  mask = (jnp.arange(cache.keys[0].shape[4]) <= cache.length)[None]

  def body(carry, layer):
    x, all_keys, all_values = carry
    layer, index = layer

    def attend(queries, keys, values):
      # Written in place in the carry: stacking scanned-out caches would copy
      # all of them at every token.
      def write(cached, new):
        new = jnp.swapaxes(new, 2, 3)[None]
        where = (index, 0, 0, 0, cache.length, 0)
        return jax.lax.dynamic_update_slice(cached, new, where)

      def read(cached):
        return jax.lax.dynamic_index_in_dim(cached, index, keepdims=False)

      kept = write(all_keys, keys), write(all_values, values)
      out = attention.attend_prefix(
        queries, layer.keys, layer.values, prefix.mask, *map(read, kept), mask
      )
      return out, kept

    x, kept = block.apply({"params": layer.params}, x, angles, attend)
    return (x, *kept), None

  new = []
  for run, *old in zip(runs, cache.keys, cache.values, strict=True):
    steps = (run, jnp.arange(len(run.keys)))
    (x, *kept), _ = jax.lax.scan(body, (x, *old), steps)
    new.append(kept)
  hidden = vlm.final_norm(params, config, x)[:, :, 0]
  keys, values = zip(*new, strict=True)
  return hidden, Cache(keys=keys, values=values, length=cache.length + 1)
