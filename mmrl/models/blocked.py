"""Attention inside runs of a packed sequence, block by block.

Pictures of all sizes lie one after the other in one sequence, and a patch
attends to its own frame. Blocks of queries visit only the blocks of keys that
their frames touch, so the cost is the sum of the squares of the frames, and
no map larger than a pair of blocks exists, forward or backward. The blocks to
visit are data, not shapes: any mix of pictures runs the same program.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models.attention import MASKED


def _side() -> int:
  """Patches along the side of a block.

  On a CPU small blocks waste least on small pictures (measured); elsewhere
  they would leave the matrix units idle.
  """
  return 64 if jax.default_backend() == "cpu" else 512


def attend_runs(
  queries: Float[Array, "B M H head"],
  keys: Float[Array, "B M H head"],
  values: Float[Array, "B M H head"],
  runs: Int[Array, "B M 2"],
  *,
  block: int = 0,
) -> Float[Array, "B M H head"]:
  """Softmax attention of each patch over the run that it is part of.

  Args:
    queries, keys, values: of packed patches.
    runs: first patch and one past the last of each patch's run. Runs are
      contiguous. Where both are equal there is padding: its output is zero.
    block: patches of a block; 0 leaves the choice to the backend.

  Returns:
    The output, of the queries' type. Softmax is float32.
  """
  count = queries.shape[1]
  block = min(block or _side(), count)
  pad = ((0, 0), (0, -count % block), (0, 0))
  arrays = (jnp.pad(x, (*pad, (0, 0))) for x in (queries, keys, values))
  attend = functools.partial(_attend, block)
  return jax.vmap(attend)(*arrays, jnp.pad(runs, pad))[:, :count]


def _blocks(x: Array, block: int) -> Array:
  return x.reshape(-1, block, *x.shape[1:])


def _touched(runs: Int[Array, "n block 2"]) -> Int[Array, "n 2"]:
  """First block and one past the last that the runs of each block touch."""
  size = runs.shape[1]
  first, last = runs[..., 0], runs[..., 1]
  first = jnp.where(last > first, first, size * runs.shape[0]).min(-1)
  return jnp.stack([first // size, -(-last.max(-1) // size)], axis=-1)


def _take(x: Array, index: Array, block: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, index * block, block)


def _seen(
  runs: Int[Array, "block 2"], index: Array
) -> Bool[Array, "1 block block"]:
  """Which keys of block `index` the queries with these runs see."""
  key = index * runs.shape[0] + jnp.arange(runs.shape[0])
  return ((key >= runs[:, :1]) & (key < runs[:, 1:]))[None]


def _scores(queries: Array, keys: Array, seen: Array) -> Array:
  scores = jnp.einsum(
    "qhd,khd->hqk", queries, keys, preferred_element_type=jnp.float32
  )
  return jnp.where(seen, scores * queries.shape[-1] ** -0.5, MASKED)


def _dot(pattern: str, *arrays: Array) -> Array:
  return jnp.einsum(pattern, *arrays, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(block, queries, keys, values, runs):
  return _forward(block, queries, keys, values, runs)[0]


def _forward(block, queries, keys, values, runs):
  heads, size = queries.shape[1:]

  def one(arrays):
    query, run, (first, last) = arrays

    def visit(index, carry):
      total, weight, top = carry
      scores = _scores(query, _take(keys, index, block), _seen(run, index))
      highest = jnp.maximum(top, scores.max(-1))
      scores = jnp.exp(scores - highest[..., None])
      scores = jnp.where(_seen(run, index), scores, 0.0)
      shrink = jnp.exp(top - highest)
      value = _take(values, index, block)
      total = total * shrink[..., None] + _dot(
        "hqk,khd->hqd", scores.astype(value.dtype), value
      )
      return total, weight * shrink + scores.sum(-1), highest

    start = (
      jnp.zeros((heads, block, size), jnp.float32),
      jnp.zeros((heads, block), jnp.float32),
      jnp.full((heads, block), MASKED, jnp.float32),
    )
    total, weight, top = jax.lax.fori_loop(first, last, visit, start)
    weight = jnp.where(weight > 0, weight, 1.0)
    out = (total / weight[..., None]).astype(queries.dtype)
    return jnp.moveaxis(out, 0, 1), (top + jnp.log(weight)).T

  run_blocks = _blocks(runs, block)
  out, logs = jax.lax.map(
    one, (_blocks(queries, block), run_blocks, _touched(run_blocks))
  )
  out, logs = out.reshape(queries.shape), logs.reshape(-1, heads)
  return out, (queries, keys, values, runs, out, logs)


def _backward(block, residuals, gradient):
  """Two softmaxes a pair of blocks: one for its queries, one for its keys.

  "Sees" is symmetric, so the blocks whose queries see a block of keys are the
  blocks whose keys its queries see.
  """
  queries, keys, values, runs, out, logs = residuals
  scale = queries.shape[-1] ** -0.5
  inner = jnp.sum(
    gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1
  )
  run_blocks = _blocks(runs, block)

  def pair(at_queries, at_keys):
    """Probabilities and score gradients of one pair of blocks."""
    query, slope, log, dot, run = (
      _take(x, at_queries, block)
      for x in (queries, gradient, logs, inner, runs)
    )
    key, value = (_take(x, at_keys, block) for x in (keys, values))
    seen = _seen(run, at_keys)
    weights = jnp.exp(_scores(query, key, seen) - log.T[..., None])
    weights = jnp.where(seen, weights, 0.0)
    change = _dot("qhd,khd->hqk", slope, value) - dot.T[..., None]
    change = weights * change * scale
    return weights.astype(query.dtype), change.astype(query.dtype)

  def one(arrays):
    here, (first, last) = arrays

    def visit(there, carry):
      of_query, of_key, of_value = carry
      key = _take(keys, there, block)
      query, slope = (_take(x, there, block) for x in (queries, gradient))
      _, change = pair(here, there)
      of_query += _dot("hqk,khd->qhd", change, key)
      weights, change = pair(there, here)
      of_key += _dot("hqk,qhd->khd", change, query)
      of_value += _dot("hqk,qhd->khd", weights, slope)
      return of_query, of_key, of_value

    zeros = jnp.zeros((block, *queries.shape[1:]), jnp.float32)
    return jax.lax.fori_loop(first, last, visit, (zeros,) * 3)

  numbers = jnp.arange(len(run_blocks))
  found = jax.lax.map(one, (numbers, _touched(run_blocks)))
  gradients = (x.reshape(queries.shape).astype(queries.dtype) for x in found)
  return (*gradients, None)


_attend.defvjp(_forward, _backward)
