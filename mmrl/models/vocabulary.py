"""Log-probabilities and entropies over a wide vocabulary, part by part.

With N answer tokens and V entries, [N, V] logits exist neither forward nor
backward, only those of a few thousand entries: each part of the head is read,
and each part of its gradient written, once.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.types import Logits

# Logits that exist at once; 64 MiB.
_CHUNK_VALUES = 2**24
# Entries of a part are at least as many, whatever the number of tokens.
_LEAST_ENTRIES = 1024
# The logit of an entry of probability zero.
BANNED = -1e30


def chosen(
  hidden: Float[Array, "N D"],
  head: Float[Array, "V D"] | Float[Array, "D V"],
  tokens: Int[Array, "N"],
  *,
  pattern: str,
  banned: tuple[int, ...],
  temperature: float,
) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
  """Computes tokens' log-probabilities and their distributions' entropies.

      l = hidden W / temperature,    ln p_j = l_j - logsumexp(l),
      entropy = logsumexp(l) - sum_j p_j l_j

  The derivative is written out, with the logits recomputed:

      dln p_k / dl_j = [j = k] - p_j
      dentropy / dl_j = -p_j (ln p_j + entropy)

  Args:
    hidden: the hidden state that emits each token.
    head: the output head, in the type of its products.
    tokens: ids.
    pattern: "vd" or "dv", how the head is laid out.
    banned: ids of probability zero.
    temperature: divides the logits.

  Returns:
    (log-probabilities, entropies), float32, in nats.
  """
  return _chosen(Logits(hidden, head, pattern, banned, temperature), tokens)


def divide(size: int, rows: int) -> tuple[int, int]:
  """Divides `size` entries into parts, for `rows` of logits.

  Returns:
    (entries of a part, parts).
  """
  entries = max(_CHUNK_VALUES // max(rows, 1), _LEAST_ENTRIES)
  entries = min(entries, size)
  return entries, -(-size // entries)


def part(
  logits: Logits, index: Array | int, size: int, entries: int
) -> tuple[Array, Array, Float[Array, "N entries"], Bool[Array, "entries"]]:
  """Computes one part of the logits of N tokens.

  Args:
    logits: of the tokens.
    index: which part.
    size: number of entries; later ones of the head are left out.
    entries: number of entries of a part, from `divide`.

  Returns:
    Its first entry, its slice of the head, its logits, and which of them
    count. The last part begins early enough to be whole.
  """
  axis = logits.pattern.index("v")
  start = jnp.minimum(index * entries, size - entries)
  head = jax.lax.dynamic_slice_in_dim(logits.head, start, entries, axis)
  values = jnp.einsum(
    f"nd,{logits.pattern}->nv",
    logits.hidden,
    head,
    preferred_element_type=jnp.float32,
  )
  entry = start + jnp.arange(entries)
  counts = entry >= index * entries
  for token in logits.banned:
    counts &= entry != token
  values = jnp.where(counts, values / logits.temperature, BANNED)
  return start, head, values, counts


def no_gradients(logits: Logits) -> tuple[Array, Array]:
  """Makes zeros for `add_part`: of hidden states, float32, and of the head."""
  hidden = jnp.zeros(logits.hidden.shape, jnp.float32)
  return hidden, jnp.zeros_like(logits.head)


def add_part(
  gradients: tuple[Array, Array],
  slope: Float[Array, "N entries"],
  logits: Logits,
  start: Array,
  head: Array,
) -> tuple[Array, Array]:
  """Adds a part's share to the gradients of hidden states and head.

  Each entry of the head gets its gradient from all tokens in the one part where
  it counts, a float32 sum that is rounded to the head's type once; elsewhere
  exact zeros are added. So the head's gradient is held in the head's type: in
  float32 it would take V x D x 4 bytes, 2 GB for a 7B model, and lose nothing
  less. The hidden states' gradient is a sum over parts, hence in float32.

  Args:
    gradients: so far.
    slope: derivative by hidden times head, 0 where an entry doesn't count.
    logits: of the tokens.
    start, head: from `part`.
  """
  of_hidden, of_head = gradients
  axis = logits.pattern.index("v")
  slope = slope.astype(logits.hidden.dtype)
  of_hidden += jnp.einsum(
    f"nv,{logits.pattern}->nd", slope, head, preferred_element_type=jnp.float32
  )
  new = jnp.einsum(
    f"nv,nd->{logits.pattern}",
    slope,
    logits.hidden,
    preferred_element_type=jnp.float32,
  )
  new += jax.lax.dynamic_slice_in_dim(of_head, start, slope.shape[-1], axis)
  of_head = jax.lax.dynamic_update_slice_in_dim(
    of_head, new.astype(of_head.dtype), start, axis
  )
  return of_hidden, of_head


def with_gradients(logits: Logits, gradients: tuple[Array, Array]) -> Logits:
  """Replaces the hidden states and head of logits by gradients."""
  of_hidden, of_head = gradients
  of_hidden = of_hidden.astype(logits.hidden.dtype)
  return dataclasses.replace(logits, hidden=of_hidden, head=of_head)


def _at(tokens, start, entries):
  """Returns tokens' places in a part, and whether they are in it."""
  place = tokens - start
  return jnp.clip(place, 0, entries - 1), (place >= 0) & (place < entries)


@jax.custom_vjp
def _chosen(logits, tokens):
  return _forward(logits, tokens)[0]


def _divide(logits):
  """Returns (entries, entries of a part, parts) of the whole head."""
  size = logits.head.shape[logits.pattern.index("v")]
  return size, *divide(size, len(logits.hidden))


def _forward(logits, tokens):
  size, entries, parts = _divide(logits)

  def visit(index, carry):
    top, total, weighted, logit = carry
    start, _, values, _ = part(logits, index, size, entries)
    highest = jnp.maximum(top, values.max(-1))
    shrink = jnp.exp(top - highest)
    weights = jnp.exp(values - highest[:, None])
    total = total * shrink + weights.sum(-1)
    weighted = weighted * shrink + (weights * values).sum(-1)
    place, here = _at(tokens, start, entries)
    own = jnp.take_along_axis(values, place[:, None], axis=-1)[:, 0]
    # A token in two parts is banned in one of them.
    logit = jnp.where(here, jnp.maximum(logit, own), logit)
    return highest, total, weighted, logit

  zeros = jnp.zeros(tokens.shape, jnp.float32)
  lowest = jnp.full(tokens.shape, BANNED, jnp.float32)
  top, total, weighted, logit = jax.lax.fori_loop(
    0, parts, visit, (lowest, zeros, zeros, lowest)
  )
  log_total = top + jnp.log(total)
  entropies = log_total - weighted / total
  residuals = logits, tokens, log_total, entropies
  return (logit - log_total, entropies), residuals


def _backward(residuals, slopes):
  logits, tokens, log_total, entropies = residuals
  of_logprob, of_entropy = (x[:, None] for x in slopes)
  size, entries, parts = _divide(logits)

  def visit(index, found):
    start, head, values, counts = part(logits, index, size, entries)
    logs = values - log_total[:, None]
    slope = of_logprob + of_entropy * (logs + entropies[:, None])
    slope = -jnp.exp(logs) * slope
    place, here = _at(tokens, start, entries)
    own = (jnp.arange(entries)[None] == place[:, None]) & here[:, None]
    slope = jnp.where(own, slope + of_logprob, slope) / logits.temperature
    slope = jnp.where(counts, slope, 0.0)
    return add_part(found, slope, logits, start, head)

  found = jax.lax.fori_loop(0, parts, visit, no_gradients(logits))
  return with_gradients(logits, found), None


_chosen.defvjp(_forward, _backward)
