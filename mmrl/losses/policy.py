"""Policy-gradient terms over answer tokens. We minimise.

Every term is unreduced; `mmrl.losses.reduce` turns terms into numbers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError


def per_token(
  values: Float[Array, "P G"] | Float[Array, "P G R"],
) -> Float[Array, "P G R"] | Float[Array, "P G 1"]:
  """[P, G] as [P, G, 1]; what is per token already stays."""
  return values[..., None] if values.ndim == 2 else values


def token_ratio(
  logprobs: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G R"]:
  """`exp(logprobs - logprobs_old)`, 1 on padding.

  The log-ratio is clamped to +-20, as in verl. It is masked before the
  exponential: padding may hold anything, and 0 * inf is NaN in a gradient.
  """
  difference = jnp.where(mask, logprobs - logprobs_old, 0.0)
  return jnp.exp(jnp.clip(difference, -20.0, 20.0))


def clipped_ratio(
  logprobs: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
) -> Float[Array, "P G R"]:
  """Clipped importance-ratio surrogate of GRPO and PPO.

      rho = pi / pi_old
      loss = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)) * w
      dual clip, where A < 0:  loss = min(loss, -A dual_clip) * w

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_old: of the behaviour policy.
    advantages: of each answer, or of each token.
    token_weights: w, of each token; ones change nothing, bit for bit.
    mask: True on answer tokens.
    clip_low: in [0, 1).
    clip_high: at least 0. DAPO (arXiv 2503.14476) has 0.28 ("clip-higher").
    dual_clip: bound on the ratio of answers with A < 0, above 1; verl has 3.

  Returns:
    The unreduced loss.

  Reference: arXiv 2402.03300 eq. 3; dual clip arXiv 1912.09729.
  """
  ratio = token_ratio(logprobs, logprobs_old, mask)
  advantages = jax.lax.stop_gradient(per_token(advantages))
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
  if dual_clip is not None:
    bound = jnp.minimum(loss, -advantages * dual_clip)
    loss = jnp.where(advantages < 0, bound, loss)
  return loss * jax.lax.stop_gradient(token_weights)


def reference_kl(
  logprobs: Float[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  estimator: str = "k3",
) -> Float[Array, "P G R"]:
  """Estimate of KL(pi || pi_ref) from the sampled tokens.

      k = logprobs_ref - logprobs
      k1 = -k        k2 = k^2 / 2        k3 = exp(k) - k - 1

  Args:
    logprobs: of the current policy.
    logprobs_ref: of the frozen reference.
    mask: True on answer tokens.
    estimator: "k1", "k2" or "k3"; k3 is GRPO's.

  Returns:
    The unreduced estimate, 0 on padding.

  Raises:
    UserError: if there is no such estimator.

  Reference: http://joschu.net/blog/kl-approx.html; arXiv 2402.03300 eq. 4.
  """
  k = jnp.where(mask, logprobs_ref - logprobs, 0.0)
  if estimator == "k1":
    return -k
  if estimator == "k2":
    return k * k / 2
  if estimator == "k3":
    return jnp.expm1(k) - k
  raise UserError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")
