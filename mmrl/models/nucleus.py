"""Nuclei, which top-p sampling draws from, and their entropies."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
import numpy as np

from mmrl.errors import UserError
from mmrl.machines import groups, sharding
from mmrl.models import vocabulary
from mmrl.types import Logits

# Logits that exist at once on a device; 64 MiB.
_CHUNK_VALUES = 2**24
# As integers, the bits of positive floats are in the order of their values.
_LEAST, _ONE = np.array([np.finfo(np.float32).tiny, 1], np.float32).view(
  np.int32
)


def nucleus_entropies(
  logits: Logits, *, top_p: float = 0.95, renormalise: bool = True
) -> Float[Array, "*batch"]:
  """Computes entropies over the nuclei of the tokens' distributions.

  [tokens, V] logits are never held in full: they are computed a few tokens at
  a time, on each device those of its own prompts. See `nucleus_entropy`.

  Args:
    logits: of the tokens, [*batch, V].
    top_p: mass of the nucleus, in (0, 1].
    renormalise: whether the nucleus is a distribution of its own.

  Returns:
    Float32, in nats; at least 0.

  Raises:
    UserError: if top_p is outside (0, 1].
  """
  if not 0 < top_p <= 1:
    raise UserError(f"top_p must be in (0, 1], got {top_p}")
  *batch, width = logits.hidden.shape
  entries = logits.head.shape[logits.pattern.index("v")]
  banned = np.isin(np.arange(entries), logits.banned)
  tokens = groups.flat(logits.hidden, tuple(batch))
  shards = groups.shards(*batch[:2])
  hidden = tokens.reshape(shards, -1, width)
  count = hidden.shape[1]
  chunks = -(-count // max(_CHUNK_VALUES // entries, 1))
  rows = -(-count // chunks)
  chunks = -(-count // rows)

  def chunk(start: Int[Array, ""]) -> Float[Array, "shards rows"]:
    some = jax.lax.dynamic_slice_in_dim(hidden, start, rows, axis=1)
    values = jnp.einsum(
      f"snd,{logits.pattern}->snv",
      sharding.over_prompts(some),
      logits.head,
      preferred_element_type=jnp.float32,
    )
    values = jnp.where(banned, vocabulary.BANNED, values / logits.temperature)
    return nucleus_entropy(values, top_p=top_p, renormalise=renormalise)

  # The last chunk begins early enough to be whole; what it repeats is dropped.
  starts = jnp.minimum(jnp.arange(chunks) * rows, count - rows)
  found = jnp.moveaxis(jax.lax.map(chunk, starts), 0, 1)
  before, last = found[:, :-1].reshape(shards, -1), found[:, -1]
  last = last[:, chunks * rows - count :]
  found = jnp.concatenate([before, last], axis=1).reshape(-1)
  return groups.unflat(found, tuple(batch))


def nucleus_entropy(
  logits: Float[Array, "*batch V"],
  *,
  top_p: float = 0.95,
  renormalise: bool = True,
) -> Float[Array, "*batch"]:
  """Computes entropy over the most likely tokens of total mass `top_p`.

      N = the nucleus, see `in_nucleus`
      q = p / sum_N p,    H = - sum_N q ln q

  Args:
    logits: divided by the temperature.
    top_p: mass of the nucleus, in (0, 1].
    renormalise: False takes p in place of q.

  Returns:
    Float32, in nats; exactly 0 where one token is kept and renormalised.

  Reference: arXiv 2603.25077 eq. 5.
  Reconstructed: whether q or p.
  """
  logs, weights, least, ties = _edge(logits, top_p)
  above = weights > least[..., None]
  mass = jnp.where(above, weights, 0.0).sum(-1) + ties * least
  weighted = jnp.where(above, weights * logs, 0.0).sum(-1)
  weighted += ties * least * jnp.log(least)
  if renormalise:
    return jnp.log(mass) - weighted / mass
  total = weights.sum(-1)
  return (mass * jnp.log(total) - weighted) / total


def in_nucleus(
  logits: Float[Array, "*batch V"], top_p: float
) -> Bool[Array, "*batch V"]:
  """Marks the nucleus: the smallest set of tokens that has mass `top_p`.

  It holds the most likely tokens while the mass before them is below top_p.
  Of tokens with exactly the least probability in it, as many are kept as the
  mass needs: the first of the vocabulary.

  Args:
    logits: divided by the temperature.
    top_p: mass of the nucleus, in (0, 1].

  Reference: arXiv 1904.09751.
  Reconstructed: that the token which crosses top_p is kept.
  """
  _, weights, least, ties = _edge(logits, top_p)
  return first_ties(weights, least[..., None], ties[..., None])


def first_ties(
  values: Float[Array, "*batch V"],
  least: Float[Array, "*batch 1"],
  ties: Num[Array, "*batch 1"],
) -> Bool[Array, "*batch V"]:
  """Marks the values above `least`, and the first `ties` that equal it."""
  tied = values == least
  return (values > least) | tied & (jnp.cumsum(tied, axis=-1) <= ties)


def _edge(logits: Float[Array, "*batch V"], top_p: float):
  """Computes the weights of the tokens and the least weight in the nucleus.

  The least weight in it is found by halving an interval that contains it, which
  takes 30 sums over V and no sort.

  Returns:
    (logarithms of the weights, weights, the least weight in the nucleus, how
    many tokens of just this weight are in it). The largest weight is 1.
  """
  logits = logits.astype(jnp.float32)
  logs = logits - logits.max(-1, keepdims=True)
  weights = jnp.exp(logs)
  wanted = top_p * weights.sum(-1)

  def halve(_, bounds):
    """Halves the bounds: the least weight is at least `low`, below `high`."""
    low, high = bounds
    middle = (low + high) // 2
    least = jax.lax.bitcast_convert_type(middle, jnp.float32)[..., None]
    mass = jnp.where(weights >= least, weights, 0.0).sum(-1)
    reached = mass >= wanted
    return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

  low = jnp.full_like(wanted, _LEAST, jnp.int32)
  bounds = low, jnp.full_like(low, _ONE + 1)
  steps = int(_ONE - _LEAST).bit_length()
  low, _ = jax.lax.fori_loop(0, steps, halve, bounds)
  least = jax.lax.bitcast_convert_type(low, jnp.float32)
  above = weights > least[..., None]
  mass = jnp.where(above, weights, 0.0).sum(-1)
  ties = jnp.ceil((wanted - mass) / least)
  ties = jnp.minimum(ties, (weights == least[..., None]).sum(-1))
  return logs, weights, least, ties
