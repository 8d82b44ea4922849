"""Attention rows of answer tokens, computed where they are read.

`extend` returns the queries and keys of chosen layers. Rows of S + R numbers
are computed a few tokens at a time, in the forward and again in the backward
pass, so what is kept for a loss on attention doesn't grow with the length of
the prompt times that of the answer.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mmrl.errors import UserError
from mmrl.models.kernels import blocks, sparse
from mmrl.models.kernels.attention import group
from mmrl.models.kernels.blocked import MASKED
from mmrl.models.kernels.blocks import Sparse
from mmrl.types import Attention, Prefix, PyTree

# Numbers of the attention maps that exist at once; 64 MiB.
_CHUNK_VALUES = 2**24


def attention_policy(
  attention: Attention, *, row: str = "self", apart: bool = False
) -> Attention:
  """Turns attention into policies over earlier positions (RAL, eq. 2).

      p^t(i) = alpha_{t,i} / sum_{j<t} alpha_{t,j},    i < t

  Args:
    attention: from `extend`.
    row: "self", the row of token t with its own position dropped and the
      rest renormalised, or "emit", the row t-1 whose logits emit token t
      (the last prompt token's for the first), which sums to one already.
    apart: whether each head of each layer is a policy of its own; else their
      mean is one.

  Returns:
    Attention whose rows are the policies of the answer tokens. Padding,
    later positions and, with "self", the token itself are exactly zero; a
    row with no earlier position is all zero.

  Raises:
    ValueError: if `row` is neither.

  Reference: arXiv 2602.04884, eq. 2.
  Reconstructed: the paper doesn't say which row "position t" is; "self" is
  the reading in which its normaliser does something.
  """
  if row not in ("self", "emit"):
    raise ValueError(f"row must be 'self' or 'emit', got {row!r}")

  def before(first, x):
    first = first[:, None, None]
    first = jnp.broadcast_to(first, (*x.shape[:2], 1, *x.shape[3:]))
    return jnp.concatenate([first, x[:, :, :-1]], axis=2)

  # Chosen blocks are None where attention isn't sparse.
  rows = attention.queries, attention.chosen
  if row == "emit":
    last = attention.last_query, attention.last_chosen
    rows = jax.tree.map(before, last, rows)
  queries, chosen = rows
  return dataclasses.replace(
    attention, queries=queries, chosen=chosen, row=row, apart=apart
  )


def attention_rows(
  attention: Attention, start: Array | int = 0, count: int = 0
) -> Float[Array, "P G count keys"]:
  """Computes float32 rows over S + R keys, mean over heads and layers.

  Args:
    attention: of answer tokens; policies if `attention_policy` made it.
    start: first of the answer tokens.
    count: how many of them; 0 is all.
  """
  length, kv_heads = attention.queries.shape[2], attention.keys.shape[-2]
  count = count or length
  queries, chosen = jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, 2),
    (attention.queries, attention.chosen),
  )
  heads = queries.shape[3] * queries.shape[4]
  # Row t of "emit" is the row of token t - 1.
  at = start + jnp.arange(count)[:, None]
  key = jnp.arange(length)[None]
  earlier = key < at
  own = earlier if attention.row == "emit" else key <= at
  prompt = attention.prefix_mask[:, None, None, :]

  def add(total, head):
    """Adds the maps of the queries of one layer that read one key head."""
    queries, keys, prefix_keys, chosen = head
    on_prompt, on_own = (
      (prompt, own) if chosen is None else _seen(attention, chosen, at[:, 0])
    )
    # One query head at a time: a CPU is slow at sums over another axis than
    # the last, and at what they need backward.
    for i in range(queries.shape[-2]):
      over_prefix, over_own = (
        jnp.einsum(
          pattern, queries[..., i, :], keys, preferred_element_type=jnp.float32
        )
        for pattern, keys in (
          ("pgtd,psd->pgts", prefix_keys),
          ("pgtd,pgud->pgtu", keys),
        )
      )
      scores = jnp.concatenate(
        [
          jnp.where(on_prompt, over_prefix, MASKED),
          jnp.where(on_own, over_own, MASKED),
        ],
        axis=-1,
      )
      total += jax.nn.softmax(scores, axis=-1)
    return total, None

  rows = jnp.zeros((*queries.shape[:3], prompt.shape[-1] + length), jnp.float32)
  rows, _ = jax.lax.scan(
    add,
    rows,
    (
      _by_head(group(queries, kv_heads), axis=3),
      _by_head(attention.keys, axis=3),
      _by_head(attention.prefix_keys, axis=2),
      jax.tree.map(lambda x: _by_head(x, axis=3), chosen),
    ),
  )
  rows = rows / heads
  if not attention.row:
    return rows
  prompt = jnp.broadcast_to(prompt, (*rows.shape[:3], prompt.shape[-1]))
  valid = jnp.concatenate(
    [prompt, jnp.broadcast_to(earlier, (*rows.shape[:3], length))], axis=-1
  )
  rows = jnp.where(valid, rows, 0.0)
  total = rows.sum(-1, keepdims=True)
  # The sum goes through `where` before the division, or 0/0 would put NaN
  # in the gradient of rows without an earlier position.
  return jnp.where(total > 0, rows / jnp.where(total > 0, total, 1.0), 0.0)


def _seen(
  attention: Attention,
  chosen: Int[Array, "P G count top"],
  at: Int[Array, "count"],
) -> tuple[Bool[Array, "P G count S"], Bool[Array, "P G count R"]]:
  """Tells which positions of prompt and answer the rows of a head are over."""
  mask, length = attention.prefix_mask, attention.keys.shape[2]
  offset = mask.sum(-1)
  position = offset[:, None] + at[None] - (attention.row == "emit")
  keys = (
    sparse.own_positions(mask, -jnp.argmax(mask, axis=-1)),
    sparse.own_positions(jnp.ones((len(mask), length), bool), offset),
  )
  on_prompt, on_own = (
    blocks.seen(chosen, position[:, None], x[:, None, None], attention.sparse)
    for x in keys
  )
  return on_prompt, on_own


def _by_head(x: Array, axis: int) -> Array:
  """Flattens layers and key heads, at `axis` and the next, to axis 0."""
  x = jnp.moveaxis(x, (axis, axis + 1), (0, 1))
  return x.reshape(-1, *x.shape[2:])


def weighed(
  attention: Attention, weights: Float[Array, "P S n"]
) -> Float[Array, "P G R values"]:
  """Sums each row over the prompt, n times weighed, and over the answer.

  Args:
    attention: of answer tokens.
    weights: of the prompt's positions.

  Returns:
    n weighed sums over the prompt, and the sum over the answer; float32.
  """

  def of_rows(rows):
    on_prompt, own = jnp.split(rows, [weights.shape[1]], axis=-1)
    sums = jnp.einsum("pgrs,psn->pgrn", on_prompt, weights)
    return jnp.concatenate([sums, own.sum(-1, keepdims=True)], axis=-1)

  return map_rows(of_rows, attention)


def weighed_layer(
  queries: Float[Array, "P G R H head"],
  keys: Float[Array, "P G R K head"],
  prefix_keys: Float[Array, "P S K head"],
  mask: Bool[Array, "P S"],
  weights: Float[Array, "P S n"],
  chosen: Int[Array, "P G R K top"] | None = None,
  *,
  sparse: Sparse | None = None,
) -> Float[Array, "P G R values"]:
  """Sums the rows of one layer, over chosen blocks if any; see `weighed`."""
  attention = Attention(
    queries=queries[..., None, :, :],
    keys=keys[..., None, :, :],
    prefix_keys=prefix_keys[:, :, None],
    prefix_mask=mask,
    last_query=queries[:, 0, :1],
    chosen=None if chosen is None else chosen[..., None, :, :],
    last_chosen=None if chosen is None else chosen[:, 0, :1],
    sparse=sparse,
  )
  return weighed(attention, weights)


def last_rows(
  prefix: Prefix, layers: tuple[int, ...], sparse: Sparse | None = None
) -> Float[Array, "P S"]:
  """Computes the row of each prompt's last token, mean over heads and layers.

  Args:
    prefix: with the queries of these layers.
    layers: whose attention is wanted.
    sparse: which keys they attend to; all if None.
  """
  assert prefix.last_query is not None, "prefill had no attention_layers"
  keys = jnp.stack([prefix.keys[i] for i in layers], axis=2)
  attention = Attention(
    queries=prefix.last_query[:, None, None],
    # It sees no answer: a row before the first token.
    keys=jnp.zeros_like(keys[:, None, :1]),
    prefix_keys=keys,
    prefix_mask=prefix.mask,
    last_query=prefix.last_query,
    row="emit",
    chosen=jax.tree.map(lambda x: x[:, None, None], prefix.last_chosen),
    last_chosen=prefix.last_chosen,
    sparse=sparse,
  )
  return attention_rows(attention)[:, 0, 0, :-1]


def plain(attention: Attention) -> Attention:
  """Returns attention whose rows are those of the softmax, not policies.

  They are the rows of the same tokens: "self" with the token itself, "emit"
  those before.
  """
  row = "" if attention.row == "self" else attention.row
  return dataclasses.replace(attention, row=row)


def smaller(attention: Attention) -> Attention | Float[Array, "P G R keys"]:
  """Returns attention, or its rows if they take less memory.

  Attention whose heads are apart stays: rows are the mean of all heads.
  """
  if attention.apart:
    return attention
  prompts, answers, length = attention.queries.shape[:3]
  keys = attention.prefix_keys.shape[1] + length
  own = sum(x.nbytes for x in jax.tree.leaves(attention))
  rows = 4 * prompts * answers * length * keys
  return attention if own < rows else attention_rows(attention)


def map_rows(
  function: Callable[..., PyTree],
  *arguments: Attention | Shaped[Array, "P G R ..."],
) -> PyTree:
  """Maps `function` over attention rows, a few answer tokens at a time.

  Args:
    function: reads `count` answer tokens of every argument, of attention the
      rows [P, G, count, keys], and returns arrays [P, G, count, ...].
    *arguments: attention of the same answers, the first of them at least, and
      arrays.

  Returns:
    Its results for all rows, [P, G, R, ...]; where heads are apart, the mean of
    those for each head. In the backward pass they are recomputed.
  """
  if any(isinstance(one, Attention) and one.apart for one in arguments):
    return _over_heads(function, arguments)
  length = jax.tree.leaves(arguments[0])[0].shape[2]
  values = sum(map(_values, arguments))
  chunks = min(length, -(-values // _CHUNK_VALUES))
  if chunks <= 1:
    return function(*(_take(one, 0, length) for one in arguments))
  count = -(-length // chunks)
  chunks = -(-length // count)

  @jax.checkpoint
  def part(start):
    return function(*(_take(one, start, count) for one in arguments))

  # The last part begins early enough to be whole; what it repeats is dropped.
  starts = jnp.minimum(jnp.arange(chunks) * count, length - count)
  found = jax.lax.map(part, starts)
  repeated = chunks * count - length

  def join(parts):
    parts = jnp.moveaxis(parts, 0, 2)
    head = parts[:, :, :-1].reshape(*parts.shape[:2], -1, *parts.shape[4:])
    return jnp.concatenate([head, parts[:, :, -1, repeated:]], axis=2)

  return jax.tree.map(join, found)


def _over_heads(
  function: Callable[..., PyTree], arguments: tuple[Any, ...]
) -> PyTree:
  """Averages the results of `map_rows` over the heads of all layers."""
  found = [one for one in arguments if isinstance(one, Attention)]
  counts = {one.queries.shape[3:5] for one in found}
  if len(counts) > 1 or not all(one.apart for one in found):
    raise UserError(
      "config.attention.heads: expected models with as many heads, which are"
      f" compared one by one, found {' and '.join(map(str, sorted(counts)))}"
      " layers and heads; set it to 'averaged'"
    )
  count = math.prod(counts.pop())

  @jax.checkpoint
  def of_head(head):
    parts = [
      _one_head(one, head) if isinstance(one, Attention) else one
      for one in arguments
    ]
    return map_rows(function, *parts)

  def add(total, head):
    return jax.tree.map(jnp.add, total, of_head(head)), None

  total, _ = jax.lax.scan(add, of_head(0), jnp.arange(1, count))
  return jax.tree.map(lambda x: x / count, total)


def _one_head(attention: Attention, head: Array | int) -> Attention:
  """Takes a query head, counted over all layers, and the keys it reads."""
  heads = attention.queries.shape[4]
  kv_heads = attention.keys.shape[4]
  group_size = heads // kv_heads
  layer, within = head // heads, head % heads

  def take(x, axis, which):
    x = jax.lax.dynamic_slice_in_dim(x, layer, 1, axis)
    return jax.lax.dynamic_slice_in_dim(x, which, 1, axis + 1)

  return dataclasses.replace(
    attention,
    queries=take(attention.queries, 3, within),
    keys=take(attention.keys, 3, within // group_size),
    prefix_keys=take(attention.prefix_keys, 2, within // group_size),
    last_query=take(attention.last_query, 1, within),
    apart=False,
    chosen=jax.tree.map(
      lambda x: take(x, 3, within // group_size), attention.chosen
    ),
    last_chosen=jax.tree.map(
      lambda x: take(x, 1, within // group_size), attention.last_chosen
    ),
  )


def _values(argument: Any) -> int:
  """Counts the numbers of an argument's attention maps; 0 for an array."""
  if not isinstance(argument, Attention):
    return 0
  *batch, _ = argument.queries.shape
  return math.prod(batch) * (argument.prefix_keys.shape[1] + batch[2])


def _take(argument: Any, start: Array | int, count: int) -> Array:
  if isinstance(argument, Attention):
    return attention_rows(argument, start, count)
  return jax.lax.dynamic_slice_in_dim(argument, start, count, 2)
