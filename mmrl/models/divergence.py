"""Divergence of two policies over a wide vocabulary, part by part.

As in `mmrl.models.vocabulary`, [N, V] logits exist neither forward nor
backward. The value takes two passes over the entries: for the sums of both
policies, then for their difference. The gradient takes a third.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrl.machines import groups
from mmrl.models import vocabulary
from mmrl.types import Logits


def divergence(
  student: Logits, teacher: Logits, *, beta: float, temperature: float = 1.0
) -> Float[Array, "*batch"]:
  """Computes generalised Jensen-Shannon divergence over the whole vocabulary.

  With the teacher's probabilities p, the student's q and m = beta p +
  (1 - beta) q,

      D = beta KL(p || m) + (1 - beta) KL(q || m),    0 < beta < 1
      D = KL(q || p) at beta = 1,    D = KL(p || q) at beta = 0

  The derivative by the student's logits l is written out:

      dD / dl_j = q_j (g_j - sum_k q_k g_k),    g_k = dD / dq_k
      g_k = (1 - beta) ln(q_k / m_k),    ln(q_k / p_k),    1 - p_k / q_k

  in the three cases above; constants that the difference removes are left
  out. Value and gradient are exactly 0 where the teacher's arrays equal the
  student's: both go through the same sums, and every term has a factor
  ln(q / p) or q - p.

  Args:
    student: logits of tokens, [*batch, V]; the only one with a gradient.
    teacher: of the same tokens; its width, type and layout may differ. Of
      two sizes of the vocabulary, one padded, the smaller counts. What either
      bans has probability zero in both.
    beta: in [0, 1].
    temperature: divides both logits, which are divided by their own
      temperatures already.

  Returns:
    Float32, in nats, at least 0 up to rounding; in (0, 1) at most the entropy
    of (beta, 1 - beta).

  Reference: GKD, arXiv 2306.13649 eq. 1.
  Differs from the paper: D itself is 0 at beta = 0 and 1. As in TRL, these
  mean the limits of D / beta and D / (1 - beta).
  """
  batch = student.hidden.shape[:-1]
  banned = tuple(sorted({*student.banned, *teacher.banned}))

  def flat(logits):
    return dataclasses.replace(
      logits,
      hidden=groups.flat(logits.hidden, batch),
      banned=banned,
      temperature=logits.temperature * temperature,
    )

  found = _divergence(beta, flat(student), flat(teacher))
  return groups.unflat(found, batch)


def _divide(student, teacher):
  """Returns (entries that both have, entries of a part, parts)."""
  size = min(x.head.shape[x.pattern.index("v")] for x in (student, teacher))
  return size, *vocabulary.divide(size, 2 * len(student.hidden))


def _part(student, teacher, index):
  """Returns part `index`: first entry, student's head there, both logits."""
  size, entries, _ = _divide(student, teacher)
  start, head, values, _ = vocabulary.part(student, index, size, entries)
  _, _, of_teacher, _ = vocabulary.part(teacher, index, size, entries)
  # Fused with what reads them, equal arrays might give unequal logits.
  return start, head, jax.lax.optimization_barrier((values, of_teacher))


def _log_totals(student, teacher):
  """Computes both policies' log-sum-exp of the logits over entries."""

  def add(top, total, values):
    highest = jnp.maximum(top, values.max(-1))
    weights = jnp.exp(values - highest[:, None])
    return highest, total * jnp.exp(top - highest) + weights.sum(-1)

  def visit(index, carry):
    *_, both = _part(student, teacher, index)
    return [
      add(top, total, values)
      for (top, total), values in zip(carry, both, strict=True)
    ]

  count = len(student.hidden)
  lowest = jnp.full(count, vocabulary.BANNED, jnp.float32)
  carry = [(lowest, jnp.zeros(count, jnp.float32))] * 2
  *_, parts = _divide(student, teacher)
  carry = jax.lax.fori_loop(0, parts, visit, carry)
  return [top + jnp.log(total) for top, total in carry]


def _terms(beta, log_q, log_p):
  """Computes (q, what each entry adds to D, q g): see `divergence`."""
  q, p, difference = jnp.exp(log_q), jnp.exp(log_p), log_q - log_p
  if beta == 1:
    return q, q * difference, q * difference
  if beta == 0:
    return q, -p * difference, q - p
  # From the larger of p and q, m is at most a factor beta or 1 - beta away.
  share = jnp.where(difference > 0, beta, 1 - beta)
  near = jnp.log1p(share * jnp.expm1(-jnp.abs(difference)))
  of_p = beta * p * (-near - jnp.maximum(difference, 0.0))
  of_q = (1 - beta) * q * (jnp.minimum(difference, 0.0) - near)
  return q, of_p + of_q, of_q


def _visit_terms(beta, student, teacher, log_totals, index):
  """Returns part `index`: first entry, student's head there, its terms."""
  start, head, both = _part(student, teacher, index)
  logs = (v - t[:, None] for v, t in zip(both, log_totals, strict=True))
  return start, head, _terms(beta, *logs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(beta, student, teacher):
  return _forward(beta, student, teacher)[0]


def _forward(beta, student, teacher):
  log_totals = _log_totals(student, teacher)

  def visit(index, carry):
    _, _, (_, *terms) = _visit_terms(beta, student, teacher, log_totals, index)
    return [sums + x.sum(-1) for sums, x in zip(carry, terms, strict=True)]

  *_, parts = _divide(student, teacher)
  zeros = [jnp.zeros(len(student.hidden), jnp.float32)] * 2
  value, mean = jax.lax.fori_loop(0, parts, visit, zeros)
  return value, (student, teacher, log_totals, mean)


def _backward(beta, residuals, slopes):
  student, teacher, log_totals, mean = residuals
  scale = slopes[:, None] / student.temperature

  def visit(index, found):
    start, head, (q, _, flow) = _visit_terms(
      beta, student, teacher, log_totals, index
    )
    slope = scale * (flow - q * mean[:, None])
    return vocabulary.add_part(found, slope, student, start, head)

  *_, parts = _divide(student, teacher)
  found = vocabulary.no_gradients(student)
  found = jax.lax.fori_loop(0, parts, visit, found)
  return vocabulary.with_gradients(student, found), None


_divergence.defvjp(_forward, _backward)
