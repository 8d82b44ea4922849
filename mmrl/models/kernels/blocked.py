"""Softmax attention block by block, over runs of keys.

A query sees one run of keys or several: a patch its frame, a prompt's token
the tokens up to itself, an answer's token the whole prompt and its own answer
up to itself. Blocks of queries visit only the blocks of keys that their runs
touch, and no map larger than a pair of blocks exists, forward or backward. The
blocks to visit are data, not shapes: any mix of lengths is the same program.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Finite, so that a row with every key masked is uniform instead of NaN.
MASKED = -1e30


def _side() -> int:
  """Returns the number of queries and keys of a block (measured on a CPU)."""
  return 256 if jax.default_backend() == "cpu" else 512


def attend_runs(
  queries: Float[Array, "B T H head"],
  keys: Float[Array, "B U K head"],
  values: Float[Array, "B U K head"],
  runs: Int[Array, "B T runs 2"],
  *,
  block: int = 0,
) -> Float[Array, "B T H head"]:
  """Computes attention of each query over its runs of keys, by one softmax.

  Args:
    queries, keys, values: rotated; H is a multiple of K.
    runs: the first key and one past the last of each run that a query sees;
      runs of a query don't overlap, and equal numbers are an empty run. A
      query that sees nothing has the output zero.
    block: queries and keys of a block; 0 leaves the choice to the backend.

  Returns:
    The output, of the queries' type. Softmax is float32.
  """
  block = block or _side()
  sides = min(block, queries.shape[1]), min(block, keys.shape[1])
  return _attend(sides, queries, keys, values, runs)


def attend_causal(
  queries: Float[Array, "P S H head"],
  keys: Float[Array, "P S K head"],
  values: Float[Array, "P S K head"],
  mask: Bool[Array, "P S"],
) -> Float[Array, "P S H head"]:
  """Computes attention of each token over itself and the real ones before.

  Args:
    queries, keys, values: rotated; H is a multiple of K.
    mask: True on real tokens, which are contiguous.

  Returns:
    The output, of the queries' type; zero on padding.
  """
  first = jnp.argmax(mask, axis=-1)[:, None]
  last = jnp.arange(mask.shape[1]) + 1
  runs = jnp.stack(jnp.broadcast_arrays(first, last), -1)
  runs = jnp.where(mask[..., None], runs, 0)[:, :, None]
  return attend_runs(queries, keys, values, runs)


def attend_answers(
  queries: Float[Array, "P T H head"],
  keys: Float[Array, "P U K head"],
  values: Float[Array, "P U K head"],
  prefix_mask: Bool[Array, "P S"],
  *,
  answers: int,
) -> Float[Array, "P T H head"]:
  """Computes attention of answers over their shared prompt and themselves.

  Args:
    queries: of answers of the same length, one after the other.
    keys, values: the prompt's, and after it the answers'.
    prefix_mask: True on real prompt tokens, which are contiguous.
    answers: number of answers.

  Returns:
    The output, of the queries' type.
  """
  length, count = prefix_mask.shape[1], queries.shape[1] // answers
  first = jnp.argmax(prefix_mask, axis=-1)
  last = first + prefix_mask.sum(-1)
  at = jnp.arange(answers * count)
  own = length + jnp.stack([at // count * count, at + 1], -1)
  runs = jnp.stack(
    jnp.broadcast_arrays(jnp.stack([first, last], -1)[:, None], own), axis=2
  )
  return attend_runs(queries, keys, values, runs)


# Blocks are laid out as [blocks, B, K, rows, head], the queries' rows being
# (query head of the key head, query): one matrix product for each key head.


def _query_blocks(x: Array, side: int, heads: int) -> Array:
  """Reshapes queries [B, T, H, c] to [blocks, B, K, rep * side, c]."""
  batch, count, all_heads, size = x.shape
  x = jnp.pad(x, ((0, 0), (0, -count % side), (0, 0), (0, 0)))
  rep = all_heads // heads
  x = x.reshape(batch, -1, side, heads, rep, size)
  x = x.transpose(1, 0, 3, 4, 2, 5)
  return x.reshape(-1, batch, heads, rep * side, size)


def _from_query_blocks(x: Array, side: int, shape: tuple[int, ...]) -> Array:
  batch, count, all_heads, size = shape
  blocks, _, heads, rows, _ = x.shape
  x = x.reshape(blocks, batch, heads, rows // side, side, size)
  x = x.transpose(1, 0, 4, 2, 3, 5)
  return x.reshape(batch, -1, all_heads, size)[:, :count]


def _key_blocks(x: Array, side: int) -> Array:
  """Reshapes keys [B, U, K, head] to [blocks, B, K, side, head]."""
  batch, count, heads, size = x.shape
  x = jnp.pad(x, ((0, 0), (0, -count % side), (0, 0), (0, 0)))
  return x.reshape(batch, -1, side, heads, size).transpose(1, 0, 3, 2, 4)


def _from_key_blocks(x: Array, shape: tuple[int, ...]) -> Array:
  batch, count, heads, size = shape
  x = x.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, size)
  return x[:, :count]


def _run_blocks(runs: Array, side: int) -> Array:
  """Reshapes runs [B, T, runs, 2] to [blocks, runs, B, side, 2]."""
  batch, count, number, _ = runs.shape
  runs = jnp.pad(runs, ((0, 0), (0, -count % side), (0, 0), (0, 0)))
  return runs.reshape(batch, -1, side, number, 2).transpose(1, 3, 0, 2, 4)


def _touched(runs: Int[Array, "n runs B side 2"], side: int) -> Array:
  """Finds the blocks of keys that each block of queries visits for its runs.

  Returns:
    The first block and one past the last, [n, runs, 2].
  """
  first, last = runs[..., 0], runs[..., 1]
  # A block that sees nothing goes from 0 to 0.
  first = jnp.where(last > first, first, jnp.iinfo(jnp.int32).max)
  first, last = first.min((2, 3)), last.max((2, 3))
  return jnp.stack([jnp.minimum(first, last) // side, -(-last // side)], -1)


def _seen(runs: Int[Array, "B side 2"], start: Array, side: int, rep: int):
  """Masks which of `side` keys from `start` on the queries of a block see."""
  key = (start + jnp.arange(side))[None, None]
  seen = (key >= runs[..., :1]) & (key < runs[..., 1:])
  return jnp.tile(seen, (1, rep, 1))[:, None]


def _visit_all(visit, runs: Array, touched: Array, carry):
  """Calls `visit(run, index of a block of keys, carry)` for all blocks."""
  for run, (first, last) in zip(runs, touched, strict=True):
    carry = jax.lax.fori_loop(first, last, functools.partial(visit, run), carry)
  return carry


def _dot(pattern: str, *arrays: Array) -> Array:
  return jnp.einsum(pattern, *arrays, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sides, queries, keys, values, runs):
  return _forward(sides, queries, keys, values, runs)[0]


def _forward(sides, queries, keys, values, runs):
  rows, columns = sides
  heads = keys.shape[2]
  rep = queries.shape[2] // heads
  scale = queries.shape[-1] ** -0.5
  key_blocks, value_blocks = (_key_blocks(x, columns) for x in (keys, values))
  run_blocks = _run_blocks(runs, rows)

  def one(arrays):
    query, runs, touched = arrays

    def visit(run, index, carry):
      total, weight, top = carry
      scores = scale * _dot("bkqd,bksd->bkqs", query, key_blocks[index])
      seen = _seen(run, index * columns, columns, rep)
      scores = jnp.where(seen, scores, MASKED)
      # Online softmax: earlier sums are rescaled to the new maximum.
      highest = jnp.maximum(top, scores.max(-1))
      scores = jnp.where(seen, jnp.exp(scores - highest[..., None]), 0.0)
      shrink = jnp.exp(top - highest)
      value = value_blocks[index]
      total = total * shrink[..., None] + _dot(
        "bkqs,bksd->bkqd", scores.astype(value.dtype), value
      )
      return total, weight * shrink + scores.sum(-1), highest

    start = (
      jnp.zeros(query.shape, jnp.float32),
      jnp.zeros(query.shape[:-1], jnp.float32),
      jnp.full(query.shape[:-1], MASKED, jnp.float32),
    )
    total, weight, top = _visit_all(visit, runs, touched, start)
    # A query that sees nothing has the output zero, not NaN.
    weight = jnp.where(weight > 0, weight, 1.0)
    out = (total / weight[..., None]).astype(queries.dtype)
    return out, top + jnp.log(weight)

  query_blocks = _query_blocks(queries, rows, heads)
  out, logs = jax.lax.map(
    one, (query_blocks, run_blocks, _touched(run_blocks, columns))
  )
  out = _from_query_blocks(out, rows, queries.shape)
  logs = _from_query_blocks(logs[..., None], rows, (*queries.shape[:3], 1))[
    ..., 0
  ]
  return out, (queries, keys, values, runs, out, logs)


def _backward(sides, residuals, slope):
  """Computes gradients; a block of queries adds to all key blocks it saw."""
  queries, keys, values, runs, out, logs = residuals
  rows, columns = sides
  heads = keys.shape[2]
  rep = queries.shape[2] // heads
  scale = queries.shape[-1] ** -0.5
  # Softmax's gradient needs each row's sum of weights times their gradients,
  # which is this, without any map.
  inner = jnp.sum(slope.astype(jnp.float32) * out.astype(jnp.float32), -1)
  key_blocks, value_blocks = (_key_blocks(x, columns) for x in (keys, values))
  run_blocks = _run_blocks(runs, rows)

  def one(carry, arrays):
    query, slope, log, inner, runs, touched = arrays

    def visit(run, index, carry):
      of_query, of_keys, of_values = carry
      key, value = key_blocks[index], value_blocks[index]
      scores = scale * _dot("bkqd,bksd->bkqs", query, key)
      seen = _seen(run, index * columns, columns, rep)
      weights = jnp.where(seen, jnp.exp(scores - log), 0.0)
      change = _dot("bkqd,bksd->bkqs", slope, value) - inner
      change = (scale * weights * change).astype(query.dtype)
      of_query += _dot("bkqs,bksd->bkqd", change, key)
      of_key = _dot("bkqs,bkqd->bksd", change, query)
      of_value = _dot("bkqs,bkqd->bksd", weights.astype(slope.dtype), slope)
      return (
        of_query,
        of_keys.at[index].add(of_key),
        of_values.at[index].add(of_value),
      )

    of_query = jnp.zeros(query.shape, jnp.float32)
    of_query, *carry = _visit_all(visit, runs, touched, (of_query, *carry))
    return tuple(carry), of_query

  zeros = jnp.zeros(key_blocks.shape, jnp.float32)
  blocks = functools.partial(_query_blocks, side=rows, heads=heads)
  carry, of_queries = jax.lax.scan(
    one,
    (zeros, zeros),
    (
      blocks(queries),
      blocks(slope),
      blocks(logs[..., None]),
      blocks(inner[..., None]),
      run_blocks,
      _touched(run_blocks, columns),
    ),
  )
  of_queries = _from_query_blocks(of_queries, rows, queries.shape)
  of_keys, of_values = (_from_key_blocks(x, keys.shape) for x in carry)
  return (
    of_queries.astype(queries.dtype),
    of_keys.astype(keys.dtype),
    of_values.astype(values.dtype),
    None,
  )


_attend.defvjp(_forward, _backward)
