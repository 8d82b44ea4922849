"""Sampling of one token from logits: greedy, top-k and top-p."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.models import nucleus


def keep_top_k(
  logits: Float[Array, "*batch V"], k: int
) -> Float[Array, "*batch V"]:
  """Sets all but the `k` largest logits to -inf.

  Of equal logits at the threshold the first are kept, as in a nucleus.
  """
  smallest = jax.lax.top_k(logits, k)[0][..., -1:]
  ties = k - (logits > smallest).sum(-1, keepdims=True)
  kept = nucleus.first_ties(logits, smallest, ties)
  return jnp.where(kept, logits, -jnp.inf)


def keep_top_p(
  logits: Float[Array, "*batch V"], p: float
) -> Float[Array, "*batch V"]:
  """Sets logits outside the nucleus to -inf; see `nucleus.in_nucleus`."""
  return jnp.where(nucleus.in_nucleus(logits, p), logits, -jnp.inf)


def categorical(
  uniform: Float[Array, "*batch 2"], logits: Float[Array, "*batch V"]
) -> Int[Array, "*batch"]:
  """Samples one token per row from `softmax(logits)`, by two random numbers.

  The first chooses a block of about sqrt(V) tokens, the second a token in it,
  each by the cumulative sum of probabilities. (One Gumbel number per vocabulary
  entry, as in `jax.random.categorical`, costs more than the decoder does.)

  Args:
    uniform: in [0, 1).
    logits: -inf for tokens that can't be drawn.
  """
  *batch, size = logits.shape
  block = 2 ** math.ceil(math.log2(size) / 2)
  padding = [(0, 0)] * len(batch) + [(0, -size % block)]
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  weights = jnp.pad(weights, padding).reshape(*batch, -1, block)
  first = _draw(weights.sum(-1), uniform[..., 0])
  inside = jnp.take_along_axis(weights, first[..., None, None], axis=-2)
  return first * block + _draw(inside[..., 0, :], uniform[..., 1])


def _draw(
  weights: Float[Array, "*batch n"], uniform: Float[Array, "*batch"]
) -> Int[Array, "*batch"]:
  """Returns the first entry whose cumulative weight exceeds `uniform` * total.

  Rounding can't choose an entry of weight 0: if no entry remains, the largest
  is chosen.
  """
  # A cumulative sum of a few hundred numbers is fastest as a matrix product.
  until = jnp.tri(weights.shape[-1]).T
  running = jnp.matmul(weights, until, precision="highest")
  above = running > uniform[..., None] * running[..., -1:]
  order = jnp.where(above & (weights > 0), jnp.inf, weights)
  return jnp.argmax(order, axis=-1).astype(jnp.int32)


def sample(
  uniform: Float[Array, "*batch 2"],
  logits: Float[Array, "*batch V"],
  *,
  greedy: bool = False,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Int[Array, "*batch"]:
  """Samples a token for each row of `logits`.

  Args:
    uniform: random numbers in [0, 1).
    logits: already divided by the temperature.
    greedy: return the most likely token.
    top_k: sample from the k most likely tokens; 0 means all.
    top_p: sample from the smallest set of this mass (nucleus), in (0, 1].

  Returns:
    Token ids, int32.
  """
  if greedy:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  if 0 < top_k < logits.shape[-1]:
    logits = keep_top_k(logits, top_k)
  if top_p < 1.0:
    logits = keep_top_p(logits, top_p)
  return categorical(uniform, logits)
