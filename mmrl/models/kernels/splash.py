"""Softmax attention by the TPU kernel that comes with JAX.

The kernel visits the blocks that a static mask keeps, and computes the mask
inside them: no map larger than a pair of blocks exists, forward or backward.
Which tokens are padding is data: a query sees keys of its own segment only.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from mmrl.machines import sharding

# A block is a multiple of the lanes. The longest is MaxText's default, of which
# a pair takes 1 MiB in float32; the kernel's own default, 128, is untuned.
_LANES, _BLOCK = 128, 512
# Bits for the place of a token in its answer.
_BITS = 16


@dataclasses.dataclass(frozen=True)
class Answers(splash_attention.Mask):
  """Mask of answers that are concatenated after the prompt they share.

  Attributes:
    queries, keys: numbers of them, padding included.
    length: keys of the prompt.
    count: tokens of an answer.
  """

  queries: int
  keys: int
  length: int
  count: int

  @property
  def shape(self) -> tuple[int, int]:
    return self.queries, self.keys

  @functools.cached_property
  def q_sequence(self) -> np.ndarray:
    """Answer of each query and place in it, in one number.

    So the kernel has both without a division.
    """
    answer, place = np.divmod(np.arange(self.queries), self.count)
    return ((answer << _BITS) + place).astype(np.int32)

  def mask_function(self, query, key):
    """Tells whether such a query sees a key; part of the kernel."""
    first = self.length + (query >> _BITS) * self.count
    last = first + (query & (1 << _BITS) - 1)
    return (key < self.length) | (first <= key) & (key <= last)

  def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
    queries, columns = block
    keys = np.arange(columns.start, columns.stop, dtype=np.int32)
    return self.mask_function(self.q_sequence[queries, None], keys)


def attend_causal(
  queries: Float[Array, "P S H head"],
  keys: Float[Array, "P S K head"],
  values: Float[Array, "P S K head"],
  mask: Bool[Array, "P S"],
  *,
  interpret: bool = False,
) -> Float[Array, "P S H head"]:
  """Computes attention of each token over itself and those before it.

  Args:
    queries, keys, values: rotated; H is a multiple of K.
    mask: True on real tokens; they and padding don't see each other.
    interpret: whether to run the kernel's operations on any backend.

  Returns:
    The output, of the queries' type; on padding it is meaningless.
  """

  def make_mask(queries: int, keys: int):
    return splash_attention.CausalMask((queries, keys))

  return _attend(make_mask, queries, keys, values, mask, mask, interpret)


def attend_answers(
  queries: Float[Array, "P T H head"],
  keys: Float[Array, "P U K head"],
  values: Float[Array, "P U K head"],
  prefix_mask: Bool[Array, "P S"],
  *,
  answers: int,
  interpret: bool = False,
) -> Float[Array, "P T H head"]:
  """Computes attention of answers over their shared prompt and themselves.

  Args:
    queries: of answers of the same length, one after the other.
    keys, values: the prompt's, and after it the answers'.
    prefix_mask: True on real prompt tokens.
    answers: number of answers.
    interpret: whether to run the kernel's operations on any backend.

  Returns:
    The output, of the queries' type.
  """
  length, count = prefix_mask.shape[1], queries.shape[1]

  def make_mask(queries: int, keys: int):
    return Answers(queries, keys, length, count // answers)

  own = jnp.ones(queries.shape[:2], bool)
  seen = jnp.concatenate([prefix_mask, own], axis=1)
  return _attend(make_mask, queries, keys, values, own, seen, interpret)


def _sides(count: int) -> tuple[int, int]:
  """Returns a block's side, and `count` padded to the fewest equal blocks."""
  blocks = -(-count // _BLOCK)
  side = -(-count // (blocks * _LANES)) * _LANES
  return side, blocks * side


def _attend(
  make_mask: Callable[[int, int], splash_attention.Mask],
  queries: Float[Array, "P T H head"],
  keys: Float[Array, "P U K head"],
  values: Float[Array, "P U K head"],
  query_segment: Bool[Array, "P T"],
  key_segment: Bool[Array, "P U"],
  interpret: bool,
) -> Float[Array, "P T H head"]:
  count, size = queries.shape[1], queries.shape[-1]
  rows, padded_queries = _sides(count)
  columns, padded_keys = _sides(keys.shape[1])
  mask = make_mask(padded_queries, padded_keys)

  def attend(queries, keys, values, segments):
    heads = queries.shape[1]
    kernel = splash_attention.make_splash_mha(
      splash_attention.MultiHeadMask((mask,) * heads),
      block_sizes=splash_attention.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
      ),
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    return jax.vmap(kernel)(queries, keys, values, segments)

  # The compiler can't partition a kernel, so prompts and heads are sharded
  # here, over the mesh in context (`jax.set_mesh`,
  # `jax.sharding.use_abstract_mesh`).
  if jax.sharding.get_abstract_mesh().auto_axes:
    spec = sharding.prompts_and_heads(queries.shape[0], keys.shape[2])
    attend = jax.shard_map(
      attend,
      in_specs=(spec, spec, spec, jax.P(*spec[:1])),
      out_specs=spec,
      check_vma=False,
    )

  def pad(x: Array, length: int) -> Array:
    rest = [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *rest))

  def heads_first(x: Array, length: int) -> Array:
    return jnp.swapaxes(pad(x, length), 1, 2)

  segments = splash_attention.SegmentIds(
    pad(query_segment.astype(jnp.int32), padded_queries),
    pad(key_segment.astype(jnp.int32), padded_keys),
  )
  # The kernel doesn't scale.
  queries = heads_first(queries * size**-0.5, padded_queries)
  keys, values = (heads_first(x, padded_keys) for x in (keys, values))
  out = attend(queries, keys, values, segments)
  return jnp.swapaxes(out, 1, 2)[:, :count]
