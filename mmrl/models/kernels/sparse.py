"""Attention over chosen blocks of keys: by a mask, or gathered.

Both forms choose by the same scores (`mmrl.models.kernels.blocks`) and compute
one softmax over the keys that a query sees. The gathered one reads these keys
only, for some queries at a time: its memory is linear in keys. A position is a
place among the real tokens of prompt and answer, so padding changes nothing.

Keys and values come heads first, as rows of [keys, head] are gathered.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.errors import UserError
from mmrl.models.kernels import attention, blocks, gathered, sparse_tpu
from mmrl.models.kernels.blocks import Sparse
from mmrl.models.kernels.gathered import Own, Prefixed


def marks(
  sparse: Sparse | None,
  tokens: Int[Array, "*batch"] | None,
  mask: Array | bool = True,
) -> Bool[Array, "*batch"] | None:
  """Tells which tokens are punctuation; None where nothing reads that."""
  if sparse is None or tokens is None:
    return None
  return sparse.is_punctuation(tokens) & mask


def nothing(
  sparse: Sparse | None, *sizes: int
) -> Int[Array, "*sizes top"] | None:
  """Makes room for chosen blocks; None where all keys are attended to."""
  if sparse is None:
    return None
  return jnp.zeros((*sizes, sparse.top_k), jnp.int32)


def pool(
  keys: Float[Array, "P K S head"],
  mask: Bool[Array, "P S"],
  marks: Bool[Array, "P S"],
  sparse: Sparse,
) -> tuple[Float[Array, "P K N head"], Float[Array, "P K 1 sums"]]:
  """Pools the blocks of prompts, once for all their answers: see `Prefixed`."""
  first, count, unit = jnp.argmax(mask, -1), mask.sum(-1), sparse.unit
  places = jnp.arange((mask.shape[-1] // unit + 1) * unit)[None]
  found = blocks.sums(
    keys, marks, first[:, None] + places, places < count[:, None], unit
  )
  last = (count // unit)[:, None, None, None]
  last = jnp.take_along_axis(found, last, axis=2)
  return blocks.pooled(found, sparse.mix), last


def own(
  keys: Float[Array, "P G K U head"],
  values: Float[Array, "P G K U head"],
  real: Bool[Array, "P U"],
  marks: Bool[Array, "P G U"],
  offset: Int[Array, "P"],
  sparse: Sparse,
) -> Own:
  """Sums the blocks of sequences; see `Own`."""
  count, unit = keys.shape[-2], sparse.unit
  begin = jnp.maximum(offset, 0) // unit * unit - offset
  places = jnp.arange(blocks.own_blocks(count, unit) * unit)[None]
  index = begin[:, None] + places
  there = (index >= 0) & (index < count)
  there &= jnp.take_along_axis(real, jnp.clip(index, 0, count - 1), axis=1)
  found = blocks.sums(keys, marks, index, there, unit)
  return Own(keys, values, real, offset, found)


def attend_causal(
  queries: Float[Array, "P S H head"],
  keys: Float[Array, "P S K head"],
  values: Float[Array, "P S K head"],
  mask: Bool[Array, "P S"],
  marks: Bool[Array, "P S"] | None,
  sparse: Sparse | None,
) -> tuple[Float[Array, "P S H head"], Int[Array, "P S K top"] | None]:
  """Computes attention of each token over the blocks that it chooses.

  Args:
    queries, keys, values: of whole sequences, rotated.
    mask: True on real tokens, which are contiguous.
    marks: True on punctuation.
    sparse: which blocks; all keys if None.

  Returns:
    The output, meaningless on padding, and the chosen blocks, if any are.
  """
  if sparse is None:
    return attention.attend_causal(queries, keys, values, mask), None
  assert marks is not None
  keys, values = (jnp.swapaxes(x, 1, 2)[:, None] for x in (keys, values))
  sides = own(keys, values, mask, marks[:, None], -jnp.argmax(mask, -1), sparse)
  out, chosen = attend(queries[:, None], sides, None, sparse)
  return out[:, 0], chosen[:, 0]


def mask_causal(
  queries: Float[Array, "P S H head"],
  keys: Float[Array, "P S K head"],
  mask: Bool[Array, "P S"],
  marks: Bool[Array, "P S"] | None,
  sparse: Sparse | None,
) -> Bool[Array, "P #K 1 S S"]:
  """Computes which keys each token attends to; see `attend_causal`."""
  if sparse is None:
    return attention.causal_mask(mask)[:, None, None]
  assert marks is not None
  keys = jnp.swapaxes(keys, 1, 2)[:, None]
  sides = own(keys, keys, mask, marks[:, None], -jnp.argmax(mask, -1), sparse)
  position = sides.offset[:, None] + jnp.arange(keys.shape[-2])[None]
  score = _scorer(sides, None, sparse)
  chosen = blocks.choose(score(queries[:, None], position), position, sparse)
  return _seen(sides.real, sides.offset, position, chosen, sparse)[
    :, 0, :, None
  ]


def attend_answers(
  queries: Float[Array, "P G R H head"],
  prefix_keys: Float[Array, "P S K head"],
  prefix_values: Float[Array, "P S K head"],
  prefix_mask: Bool[Array, "P S"],
  keys: Float[Array, "P G R K head"],
  values: Float[Array, "P G R K head"],
  marks: tuple[Bool[Array, "P S"] | None, Bool[Array, "P G R"] | None],
  sparse: Sparse | None,
) -> tuple[Float[Array, "P G R H head"], Int[Array, "P G R K top"] | None]:
  """Computes attention of answers over chosen blocks of prompt and answer.

  Args:
    queries: of answers, rotated.
    prefix_keys, prefix_values: of their prompts.
    prefix_mask: True on real prompt tokens, which are contiguous.
    keys, values: of the answers.
    marks: True on punctuation, of prompts and of answers.
    sparse: which blocks; all keys if None.

  Raises:
    UserError: if the answers' tokens aren't known.
  """
  if sparse is None:
    before = prefix_keys, prefix_values, prefix_mask
    return attention.attend_answers(queries, *before, keys, values), None
  of_prompt, of_own = marks
  if of_own is None:
    raise UserError(
      "config.models.policy.attention: expected the answers' tokens beside"
      " their embeddings, whose punctuation it reads, found none; pass tokens="
    )
  assert of_prompt is not None
  prefix_keys, prefix_values = (
    jnp.swapaxes(x, 1, 2) for x in (prefix_keys, prefix_values)
  )
  before = prefix_keys, prefix_values, prefix_mask
  prefix = Prefixed(*before, *pool(prefix_keys, prefix_mask, of_prompt, sparse))
  keys, values = (jnp.swapaxes(x, 2, 3) for x in (keys, values))
  real = jnp.ones((keys.shape[0], keys.shape[3]), bool)
  sides = own(keys, values, real, of_own, prefix.count, sparse)
  return attend(queries, sides, prefix, sparse)


def attend(
  queries: Float[Array, "P G T H head"],
  own: Own,
  prefix: Prefixed | None,
  sparse: Sparse,
  at: Int[Array, ""] | int = 0,
  *,
  by_gathering: bool | None = None,
) -> tuple[Float[Array, "P G T H head"], Int[Array, "P G T K top"]]:
  """Computes attention of T queries over chosen blocks.

  Args:
    queries: rotated.
    own: keys of the same sequences.
    prefix: keys of the prompts before them, if there are any.
    sparse: which blocks.
    at: which of the own tokens the first query is.
    by_gathering: which form; by default the mask where maps are small.

  Returns:
    The output, and the chosen blocks, -1 where there is none.
  """
  count = queries.shape[2]
  keys = own.keys.shape[3] + (0 if prefix is None else prefix.mask.shape[1])
  if by_gathering is None:
    small = queries.size // queries.shape[-1] * keys <= attention.DENSE_VALUES
    by_gathering = count == 1 or not small

  def places(offset):
    return offset[:, None] + at + jnp.arange(count)[None]

  position, score = places(own.offset), _scorer(own, prefix, sparse)

  def choose(queries, position):
    return blocks.choose(score(queries, position), position, sparse)

  chosen = gathered.by_parts(choose, queries, position)
  if not by_gathering:
    return _masked(queries, own, prefix, position, chosen, sparse), chosen

  def gather(queries, keys, values, chosen, real, offset):
    sides = Own(keys, values, real, offset)

    def part(queries, position, chosen):
      return gathered.attend(queries, sides, prefix, position, chosen, sparse)

    return gathered.by_parts(part, queries, places(offset), chosen)

  arrays = queries, own.keys, own.values, chosen, own.real, own.offset
  if prefix is not None or count == 1:
    return gather(*arrays), chosen
  # Chosen when lowered, as `attention.attend_causal` does.
  kernel = sparse_tpu.make(gather, sparse)
  out = jax.lax.platform_dependent(*arrays, tpu=kernel, default=gather)
  return out, chosen


def _scorer(own: Own, prefix: Prefixed | None, sparse: Sparse):
  """Returns a function of queries and positions: scores of all blocks."""
  found = own.sums
  assert found is not None
  if prefix is not None:
    # The block that the prompt's end cuts goes on in the answer.
    begin = found[..., :1, :] + prefix.last[:, None]
    found = jnp.concatenate([begin, found[..., 1:, :]], -2)
  keys = jax.lax.stop_gradient(blocks.pooled(found, sparse.mix))

  def score(queries, position):
    queries = jax.lax.stop_gradient(queries).astype(jnp.float32)
    grouped = attention.group(queries, keys.shape[2])
    raw = jnp.einsum("pgtkrd,pgknd->pgtkrn", grouped, keys)
    if prefix is not None:
      before = jax.lax.stop_gradient(prefix.pooled)
      before = jnp.einsum("pgtkrd,pknd->pgtkrn", grouped, before)
      sides = [(0, 0)] * (before.ndim - 1) + [(0, raw.shape[-1])]

      def put(before, raw, at):
        return jax.lax.dynamic_update_slice_in_dim(before, raw, at, -1)

      first = own.offset // sparse.unit
      raw = jax.vmap(put)(jnp.pad(before, sides), raw, first)
    if sparse.windows:
      return blocks.window_scores(raw, position)
    return blocks.block_scores(raw, position, sparse.unit)

  return score


def own_positions(
  real: Bool[Array, "P U"], offset: Int[Array, "P"]
) -> Int[Array, "P U"]:
  """Returns the positions of tokens, -1 on padding."""
  return jnp.where(real, offset[:, None] + jnp.arange(real.shape[1])[None], -1)


def _seen(
  real, offset, position, chosen, sparse
) -> Bool[Array, "P G K T keys"]:
  """Tells which keys each query attends to."""
  keys = own_positions(real, offset)[:, None, None, None]
  found = blocks.seen(chosen, position[:, None, :, None], keys, sparse)
  return jnp.moveaxis(found, 3, 2)


def _masked(queries, own, prefix, position, chosen, sparse) -> Array:
  """Attends to all keys, under a mask."""
  mask = _seen(own.real, own.offset, position, chosen, sparse)
  if prefix is None:
    mask = mask[:, 0, :, None]
    keys, values = (jnp.swapaxes(x[:, 0], 1, 2) for x in (own.keys, own.values))
    out = attention.attend_by_head(queries[:, 0], keys, values, mask)
    return out[:, None]
  before = _seen(prefix.mask, -prefix.first, position, chosen, sparse)
  return attention.attend_prefix(
    queries,
    prefix.keys,
    prefix.values,
    jnp.moveaxis(before, 2, 1)[..., None, :],
    own.keys,
    own.values,
    mask[..., None, :],
  )
