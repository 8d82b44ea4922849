"""Log-probabilities and entropies over a wide vocabulary, part by part.

With N answer tokens and V entries, [N, V] logits exist neither forward nor
backward, only those of a few thousand entries: each part of the head is read,
and each part of its gradient written, once.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
  """Log-probabilities of tokens, and entropies of their distributions.

      l = hidden W / temperature,    ln p_j = l_j - logsumexp(l),
      entropy = logsumexp(l) - sum_j p_j l_j

  The derivative is written out, with the logits computed again:

      dln p_k / dl_j = [j = k] - p_j
      dentropy / dl_j = -p_j (ln p_j + entropy)

  Args:
    hidden: what emits each token.
    head: the output head, in the type of its products.
    tokens: ids.
    pattern: "vd" or "dv", how the head is laid out.
    banned: ids of probability zero.
    temperature: divides the logits.

  Returns:
    (log-probabilities, entropies), float32, in nats.
  """
  settings = pattern, banned, temperature
  return _chosen(settings, hidden, head, tokens)


def _parts(head: Array, pattern: str, count: int) -> tuple[int, int, int]:
  """(axis of the entries, entries of a part, parts)."""
  axis = pattern.index("v")
  entries = max(_CHUNK_VALUES // max(count, 1), _LEAST_ENTRIES)
  entries = min(entries, head.shape[axis])
  return axis, entries, -(-head.shape[axis] // entries)


def _part(settings, hidden, head, index):
  """Part `index`: its first entry, its slice of the head, its logits, and
  which of them count. The last part begins early enough to be whole."""
  pattern, banned, temperature = settings
  axis, entries, _ = _parts(head, pattern, len(hidden))
  start = jnp.minimum(index * entries, head.shape[axis] - entries)
  part = jax.lax.dynamic_slice_in_dim(head, start, entries, axis)
  logits = jnp.einsum(
    f"nd,{pattern}->nv", hidden, part, preferred_element_type=jnp.float32
  )
  entry = start + jnp.arange(entries)
  counts = entry >= index * entries
  for token in banned:
    counts &= entry != token
  return start, part, jnp.where(counts, logits / temperature, BANNED), counts


def _at(tokens, start, entries):
  """Where tokens stand in a part, and whether they do."""
  place = tokens - start
  return jnp.clip(place, 0, entries - 1), (place >= 0) & (place < entries)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chosen(settings, hidden, head, tokens):
  return _forward(settings, hidden, head, tokens)[0]


def _forward(settings, hidden, head, tokens):
  _, entries, parts = _parts(head, settings[0], len(hidden))

  def visit(index, carry):
    top, total, weighted, logit = carry
    start, _, logits, _ = _part(settings, hidden, head, index)
    highest = jnp.maximum(top, logits.max(-1))
    shrink = jnp.exp(top - highest)
    weights = jnp.exp(logits - highest[:, None])
    total = total * shrink + weights.sum(-1)
    weighted = weighted * shrink + (weights * logits).sum(-1)
    place, here = _at(tokens, start, entries)
    own = jnp.take_along_axis(logits, place[:, None], axis=-1)[:, 0]
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
  residuals = hidden, head, tokens, log_total, entropies
  return (logit - log_total, entropies), residuals


def _backward(settings, residuals, slopes):
  hidden, head, tokens, log_total, entropies = residuals
  of_logprob, of_entropy = (x[:, None] for x in slopes)
  pattern, _, temperature = settings
  axis, entries, parts = _parts(head, pattern, len(hidden))

  def visit(index, carry):
    of_hidden, of_head = carry
    start, part, logits, counts = _part(settings, hidden, head, index)
    logs = logits - log_total[:, None]
    slope = of_logprob + of_entropy * (logs + entropies[:, None])
    slope = -jnp.exp(logs) * slope
    place, here = _at(tokens, start, entries)
    own = (jnp.arange(entries) == place[:, None]) & here[:, None]
    slope = jnp.where(own, slope + of_logprob, slope) / temperature
    slope = jnp.where(counts, slope, 0.0).astype(hidden.dtype)
    of_hidden += jnp.einsum(
      f"nv,{pattern}->nd", slope, part, preferred_element_type=jnp.float32
    )
    new = jnp.einsum(f"nv,nd->{pattern}", slope, hidden)
    old = jax.lax.dynamic_slice_in_dim(of_head, start, entries, axis)
    of_head = jax.lax.dynamic_update_slice_in_dim(
      of_head, old + new.astype(of_head.dtype), start, axis
    )
    return of_hidden, of_head

  zeros = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(head)
  of_hidden, of_head = jax.lax.fori_loop(0, parts, visit, zeros)
  return of_hidden.astype(hidden.dtype), of_head, None


_chosen.defvjp(_forward, _backward)
