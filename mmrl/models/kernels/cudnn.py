"""Softmax attention by NVIDIA's kernels, through `jax.nn`.

No map exists, forward or backward. The kernels see the first keys of a sequence
up to a length, so that padding is moved after the real tokens and excluded.
Lowered for CUDA, forward and backward, and checked on a CPU with the kernels'
reference in their place; never run on a GPU, never timed.
"""

from collections.abc import Callable
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.machines import sharding

# Sequences are padded to multiples of this. With a mask the backward pass takes
# even lengths only, and with keys that fill half a tile a release of cuDNN has
# returned NaN (PyTorch's issue 196678).
_TILE = 128
_TYPES = (jnp.bfloat16, jnp.float16)


def takes(queries: Float[Array, "*batch H head"]) -> bool:
  """Tells whether cuDNN has attention for such queries, and its gradient.

  It supports two types, and heads of multiples of 8 channels. All GPUs from
  compute capability 8.0 on train heads of up to 128, which is what is taken
  here; some train larger ones (cuDNN's documentation, "Attention").
  """
  size = queries.shape[-1]
  if queries.dtype not in _TYPES or size % 8 or size > 128:
    return False
  shape = jax.ShapeDtypeStruct((1, _TILE, 1, size), queries.dtype)
  attend = functools.partial(
    jax.nn.dot_product_attention, implementation="cudnn"
  )
  try:
    jax.eval_shape(attend, shape, shape, shape)
  except (RuntimeError, NotImplementedError):  # It isn't here, or is too old.
    return False
  return all(
    float(device.compute_capability) >= 8
    for device in jax.local_devices()
    if device.platform == "gpu"
  )


def attend_causal(
  queries: Float[Array, "P S H head"],
  keys: Float[Array, "P S K head"],
  values: Float[Array, "P S K head"],
  mask: Bool[Array, "P S"],
  *,
  implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "P S H head"]:
  """Computes attention of each token over itself and the real ones before.

  Args:
    queries, keys, values: rotated; H is a multiple of K.
    mask: True on real tokens, which are contiguous.
    implementation: "cudnn", or "xla", the reference on any backend.

  Returns:
    The output, of the queries' type; zero on padding.
  """
  count = mask.shape[1]

  def attend(queries, keys, values, mask):
    index = _real_first(mask, _padded(count))
    number = mask.sum(-1, dtype=jnp.int32)
    queries, keys, values = (_take(x, index) for x in (queries, keys, values))
    out = jax.nn.dot_product_attention(
      queries,
      keys,
      values,
      is_causal=True,
      query_seq_lengths=number,
      key_value_seq_lengths=number,
      implementation=implementation,
    )
    place = jnp.arange(count)[None]
    first = jnp.argmax(mask, axis=-1)[:, None]
    return _take(out, jnp.where(mask, place - first, out.shape[1] + place))

  return _on_each_device(attend, queries, keys, values, mask)


def attend_answers(
  queries: Float[Array, "P G R H head"],
  prefix_keys: Float[Array, "P S K head"],
  prefix_values: Float[Array, "P S K head"],
  prefix_mask: Bool[Array, "P S"],
  keys: Float[Array, "P G R K head"],
  values: Float[Array, "P G R K head"],
  *,
  implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "P G R H head"]:
  """Computes attention of answers over their shared prompt and themselves.

  It is one call, in which an answer is a sequence: its own keys, then those of
  a copy of the prompt. While it runs there are G copies of the prompt's keys
  and values of one layer, and a mask of R (R + S) numbers, the same for all
  answers, of the queries' type; backward, before jax 0.11, also a gradient of
  the mask.

  Two calls, merged by their log-sum-exp, would need no copies and no mask.
  But `jax.nn` returns the latter rounded to the queries' type, and without a
  gradient.

  Args:
    queries: rotated; H is a multiple of K.
    prefix_keys, prefix_values: the prompt's.
    prefix_mask: True on real prompt tokens, which are contiguous.
    keys, values: the answers' own.
    implementation: "cudnn", or "xla", the reference on any backend.

  Returns:
    The output, of the queries' type.
  """
  answers, count = queries.shape[1:3]
  length = prefix_mask.shape[1]
  rows, columns = _padded(count), _padded(count + length)
  # An answer's token sees its own answer up to itself, and the prompt.
  key = jnp.arange(columns)[None]
  seen = (key <= jnp.arange(rows)[:, None]) | (key >= count)

  def attend(queries, prefix_keys, prefix_values, prefix_mask, keys, values):
    index = _real_first(prefix_mask, columns - count)

    def joined(prefix, own):
      prefix = jnp.broadcast_to(
        _take(prefix, index)[:, None],
        (*own.shape[:2], columns - count, *own.shape[3:]),
      )
      both = jnp.concatenate([own, prefix], axis=2)
      return both.reshape(-1, *both.shape[2:])

    padding = [(0, 0)] * queries.ndim
    padding[2] = 0, rows - count
    number = count + prefix_mask.sum(-1, dtype=jnp.int32)
    number = jnp.repeat(number, answers)
    out = jax.nn.dot_product_attention(
      jnp.pad(queries, padding).reshape(-1, rows, *queries.shape[3:]),
      joined(prefix_keys, keys),
      joined(prefix_values, values),
      mask=seen[None, None],
      query_seq_lengths=jnp.full_like(number, count),
      key_value_seq_lengths=number,
      implementation=implementation,
    )
    return out[:, :count].reshape(queries.shape)

  return _on_each_device(
    attend, queries, prefix_keys, prefix_values, prefix_mask, keys, values
  )


def _padded(count: int) -> int:
  return -(-count // _TILE) * _TILE


def _real_first(mask: Bool[Array, "P S"], length: int) -> Int[Array, "P n"]:
  """Returns `length` indices: of the real tokens, then some past the end."""
  place = jnp.arange(length)[None]
  first = jnp.argmax(mask, axis=-1)[:, None]
  real = place < mask.sum(-1)[:, None]
  return jnp.where(real, first + place, mask.shape[1] + place)


def _take(
  x: Float[Array, "P S heads head"], index: Int[Array, "P n"]
) -> Float[Array, "P n heads head"]:
  """Gathers tokens of each sequence, none twice; zero past its end.

  The gradient is zero there, too.
  """
  row = jnp.arange(x.shape[0])[:, None]
  return x.at[row, index].get(mode="fill", fill_value=0, unique_indices=True)


def _on_each_device(attend: Callable, *arrays: Array) -> Array:
  """Runs `attend` on each device's prompts and heads of the mesh in context."""
  if not jax.sharding.get_abstract_mesh().auto_axes:
    return attend(*arrays)
  prompts, heads = sharding.prompts_and_heads(
    arrays[0].shape[0], arrays[1].shape[-2]
  )
  specs = tuple(
    jax.P(prompts, *[None] * (x.ndim - 3), heads)
    if x.ndim > 2
    else jax.P(prompts)
    for x in arrays
  )
  return jax.shard_map(
    attend, in_specs=specs, out_specs=specs[0], check_vma=False
  )(*arrays)
