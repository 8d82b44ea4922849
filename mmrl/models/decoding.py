"""Sampling's step: `extend` by one token, with a cache of the answer's own
keys and values. The prompt's are read from its prefix, never copied."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.models import attention, layers, vlm
from mmrl.models.config import ModelConfig
from mmrl.types import Prefix, PyTree, pytree


@pytree
class Cache:
  """Keys and values of the answers so far.

  Attributes:
    keys, values: rotated keys and values of every layer.
    length: how many answer tokens are in.
  """

  keys: Float[Array, "L P G R K head"]
  values: Float[Array, "L P G R K head"]
  length: Int[Array, ""]


def empty_cache(
  config: ModelConfig, prefix: Prefix, answers: int, length: int
) -> Cache:
  """A cache for `answers` answers of at most `length` tokens per prompt."""
  layers_, prompts, _, heads, size = prefix.keys.shape
  shape = (layers_, prompts, answers, length, heads, size)
  zeros = jnp.zeros(shape, prefix.keys.dtype)
  return Cache(keys=zeros, values=zeros, length=jnp.zeros((), jnp.int32))


def decode(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  cache: Cache,
  token: Int[Array, "P G"],
) -> tuple[Float[Array, "P G D"], Cache]:
  """`extend` by one token, with the earlier tokens' keys in `cache`.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `prefill`.
    cache: earlier tokens of the same answers.
    token: the next token of every answer.

  Returns:
    The final hidden state that emits the token after it, and the new cache.
  """
  x = vlm.embed(params, config, token[..., None])
  angles = vlm.answer_angles(config, prefix, cache.length, 1)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  mask = (jnp.arange(cache.keys.shape[3]) <= cache.length)[None]

  def body(carry, layer):
    x, all_keys, all_values = carry
    layer_params, prefix_keys, prefix_values, index = layer

    def attend(queries, keys, values):
      # Written in place in the carry: stacking scanned-out caches would copy
      # all of them at every token.
      where = (index, 0, 0, cache.length, 0, 0)
      update = jax.lax.dynamic_update_slice
      new_keys = update(all_keys, keys[None], where)
      new_values = update(all_values, values[None], where)
      out = attention.attend_prefix(
        queries,
        prefix_keys,
        prefix_values,
        prefix.mask,
        jax.lax.dynamic_index_in_dim(new_keys, index, keepdims=False),
        jax.lax.dynamic_index_in_dim(new_values, index, keepdims=False),
        mask,
      )
      return out, (new_keys, new_values)

    x, (all_keys, all_values) = block.apply(
      {"params": layer_params}, x, angles, attend
    )
    return (x, all_keys, all_values), None

  indices = jnp.arange(config.text.num_hidden_layers)
  (x, keys, values), _ = jax.lax.scan(
    body,
    (x, cache.keys, cache.values),
    (params["text"]["layers"], prefix.keys, prefix.values, indices),
  )
  hidden = vlm.final_norm(params, config, x)[:, :, 0]
  return hidden, Cache(keys=keys, values=values, length=cache.length + 1)
