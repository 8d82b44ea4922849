"""Attention-policy losses (RAL), which treat attention as a policy.

All terms are minimised.

Reference: Reinforced Attention Learning (RAL), arXiv 2602.04884.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.losses.surrogates import per_token, upcast
from mmrl.models.rows import map_rows
from mmrl.types import Attention

# Attention policies, computed row by row from `Attention` or precomputed.
Rows = Attention | Float[Array, "P G R keys"]


def _log_to_middle(p: Array, q: Array) -> Array:
  """Computes `ln(2 p / (p + q))`, 0 where p is 0.

  Where p and q are near, it is computed as `ln(1 + (p - q) / (p + q))`, which
  avoids the rounding error of the quotient: attention moves little between two
  updates.
  """
  positive = p > 0
  total = jnp.where(positive, p + q, 1.0)
  change = jnp.where(positive, (p - q) / total, 0.0)
  # Neither is differentiated: the derivative of the divergence is written out.
  return jnp.where(
    jnp.abs(change) < 0.5, jnp.log1p(change), jnp.log(2.0 * p / total)
  )


@jax.custom_jvp
def jensen_shannon(
  p: Float[Array, "*batch keys"], q: Float[Array, "*batch keys"]
) -> Float[Array, "*batch"]:
  """Computes the Jensen-Shannon divergence along the last axis, in nats.

      m = (p + q) / 2,    JSD = 1/2 sum p ln(p/m) + 1/2 sum q ln(q/m)

  It is in [0, ln 2]. The derivative is explicit, dJSD/dp = 1/2 ln(p/m): it is
  exactly 0 where p = q, which automatic differentiation would miss by
  rounding.

  Args:
    p, q: distributions; all-zero rows have divergence 0.
  """
  terms = p * _log_to_middle(p, q) + q * _log_to_middle(q, p)
  return 0.5 * terms.sum(-1)


@jensen_shannon.defjvp
def _jensen_shannon_jvp(primals, tangents):
  p, q = primals
  dp, dq = tangents
  slope = dp * _log_to_middle(p, q) + dq * _log_to_middle(q, p)
  return jensen_shannon(p, q), 0.5 * slope.sum(-1)


def attention_divergence(
  attention: Rows, target: Rows, mask: Bool[Array, "P G R"]
) -> Float[Array, "P G R"]:
  """Computes the JSD of each token's attention policy from a fixed target.

  Values on padding are arbitrary; the target has no gradient.
  """

  def of_rows(p, q, mask):
    # Masked before the divergence: padding must not reach its derivative.
    p = jnp.where(mask[..., None], upcast(p), 0.0)
    return jensen_shannon(p, upcast(q))

  return map_rows(of_rows, attention, jax.lax.stop_gradient(target), mask)


def attention_jsd(
  attention: Rows,
  attention_old: Rows,
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  attention_moved: Float[Array, "P G R"] | None = None,
) -> Float[Array, "P G R"]:
  """Computes RAL's term: advantage times JSD from the behaviour's attention.

      loss_t = A_t JSD(p_theta^t || p_old^t)

  The term is minimised: a positive advantage pulls attention back to what it
  was when the answer was sampled, a negative one pushes it away. Value and
  gradient are exactly 0 at theta = theta_old, so a run needs at least two
  updates per rollout batch for the term to act.

  Args:
    attention: policies of the current parameters, from `mmrl.models.score`.
    attention_old: policies of the behaviour parameters, same function.
    advantages: of each answer, or of each token.
    mask: True on answer tokens.
    attention_moved: the divergence, if already computed: see
      `mmrl.train.objective`, which also reports it.

  Returns:
    The unreduced term. It is neither clipped nor weighted by the ratio.

  Reference: arXiv 2602.04884 eq. 3.
  Differs from the paper: eq. 4 as printed adds this to a quantity that is
  maximised; the consistent reading, minimise -clipped + beta KL + lambda
  attention, is what the losses of a config add up to.
  """
  if attention_moved is None:
    attention_moved = attention_divergence(attention, attention_old, mask)
  advantages = jax.lax.stop_gradient(per_token(advantages))
  return jnp.where(mask, advantages * attention_moved, 0.0)
