"""Losses over answer tokens: policy gradients, KL to the reference, likelihood.

All terms are minimised and unreduced; `mmrl.losses.reduce` reduces them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError

# Bound on the size of log-ratios, as in verl: their exponentials are finite.
_MAX_LOG_RATIO = 20.0
_ESTIMATORS = ("k1", "k2", "k3", "k1+", "k3+")


def upcast(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Casts types narrower than float32, in which losses compute, to float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_token(
  values: Float[Array, "P G"] | Float[Array, "P G R"],
) -> Float[Array, "P G R"] | Float[Array, "P G 1"]:
  """Reshapes [P, G] to [P, G, 1], leaves [P, G, R] as it is; in float32."""
  values = upcast(values)
  return values[..., None] if values.ndim == 2 else values


def log_ratio(
  logprobs: Float[Array, "P G R"],
  others: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G R"]:
  """Computes `logprobs - others` in float32, 0 on padding.

  Inputs on padding may be anything. bfloat16 would be too coarse: near -8, two
  such log-probabilities are 0.03 apart or equal.
  """
  return jnp.where(mask, upcast(logprobs) - upcast(others), 0.0)


def token_ratio(
  logprobs: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G R"]:
  """Computes the importance ratio `exp(logprobs - logprobs_old)`, 1 on padding.

  The log-ratio is clamped to +-20, as in verl. It is masked before the
  exponential: padding may hold anything, and 0 * inf is NaN in a gradient.
  """
  difference = log_ratio(logprobs, logprobs_old, mask)
  return jnp.exp(jnp.clip(difference, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def check_clip(
  clip_low: float, clip_high: float, dual_clip: float | None = None
) -> None:
  """Checks that the clip bounds contain a ratio of 1.

  Raises:
    UserError: naming the bound.
  """
  if not 0 <= clip_low < 1:
    raise UserError(f"clip_low must be in [0, 1), got {clip_low}")
  if not clip_high >= 0:
    raise UserError(f"clip_high must be at least 0, got {clip_high}")
  if dual_clip is not None and not dual_clip > 1:
    raise UserError(f"dual_clip must be above 1, got {dual_clip}")


def surrogate(
  ratio: Float[Array, "P G _"],
  advantages: Float[Array, "P G _"],
  clip_low: float,
  clip_high: float,
) -> Float[Array, "P G _"]:
  """Computes `max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))`."""
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  return jnp.maximum(-advantages * ratio, -advantages * clipped)


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
  """Computes the clipped policy-gradient surrogate of each token (PPO/GRPO).

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
    clip_high: at least 0. DAPO (arXiv 2503.14476) uses 0.28 ("clip-higher").
    dual_clip: bound on the ratio of answers with A < 0, above 1; 3 in verl.
      TRL's `delta`, where it exceeds 1 + clip_high, is the same.

  Returns:
    The unreduced loss.

  Raises:
    UserError: if a bound is outside its range.

  Reference: arXiv 2402.03300 eq. 3; dual clip arXiv 1912.09729.
  """
  check_clip(clip_low, clip_high, dual_clip)
  ratio = token_ratio(logprobs, logprobs_old, mask)
  advantages = jax.lax.stop_gradient(per_token(advantages))
  loss = surrogate(ratio, advantages, clip_low, clip_high)
  if dual_clip is not None:
    bound = jnp.minimum(loss, -advantages * dual_clip)
    loss = jnp.where(advantages < 0, bound, loss)
  return loss * jax.lax.stop_gradient(upcast(token_weights))


def clipped_weight(
  logprobs: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  weight_min: float | None = None,
  weight_max: float | None = 5.0,
) -> Float[Array, "P G R"]:
  """Computes CISPO's policy gradient with clipped importance weights.

      rho = pi / pi_old
      loss = -sg[clip(rho, weight_min, weight_max)] A ln pi * w

  The clip acts on the weight, so no token loses its gradient. The value
  depends on the scale of ln pi and has no meaning; the gradient has.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_old: of the behaviour policy.
    advantages: of each answer, or of each token.
    token_weights: w, of each token; ones change nothing, bit for bit.
    mask: True on answer tokens.
    weight_min: lower bound of the weight; None for none, as in TRL.
    weight_max: upper bound of the weight itself, not of its distance from 1;
      None for none. TRL's `epsilon_high`.

  Returns:
    The unreduced loss, 0 on padding.

  Raises:
    UserError: if weight_min exceeds weight_max.

  Reference: arXiv 2506.13585; 5.0 is from ScaleRL, arXiv 2510.13786.
  Differs from verl: its clip widths 0.2 and 0.28 are weight_min 0.8 and
  weight_max 1.28.
  """
  if (
    weight_min is not None
    and weight_max is not None
    and weight_min > weight_max
  ):
    raise UserError(
      f"weight_min must be at most weight_max, got {weight_min} and"
      f" {weight_max}"
    )
  ratio = token_ratio(logprobs, logprobs_old, mask)
  weights = jax.lax.stop_gradient(jnp.clip(ratio, weight_min, weight_max))
  loss = policy_gradient(logprobs, advantages, token_weights, mask)
  return weights * loss


def policy_gradient(
  logprobs: Float[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G R"]:
  """Computes the REINFORCE loss, with leave-one-out advantages that of RLOO.

      loss = -A ln pi * w

  There is no ratio: with more than one update per rollout batch it is biased.
  Only the gradient is meaningful, not the value. RLOO treats an answer as one
  action, so its sum over tokens is reduced with `sequence_sum`.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    advantages: of each answer, or of each token.
    token_weights: w, of each token; ones change nothing, bit for bit.
    mask: True on answer tokens.

  Returns:
    The unreduced loss, 0 on padding.

  Reference: Williams 1992; RLOO arXiv 2402.14740.
  """
  scale = jax.lax.stop_gradient(-per_token(advantages) * token_weights)
  return jnp.where(mask, scale, 0.0) * jnp.where(mask, upcast(logprobs), 0.0)


def on_policy_ratio(
  logprobs: Float[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G R"]:
  """Computes the surrogate of one update per rollout batch, without a clip.

      loss = -A exp(ln pi - sg[ln pi]) * w

  The ratio is 1 in value, so that nothing is ever clipped, and no behaviour
  policy is scored. With more than one update it is biased.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    advantages: of each answer, or of each token.
    token_weights: w, of each token; ones change nothing, bit for bit.
    mask: True on answer tokens.

  Returns:
    The unreduced loss.

  Reference: TRL 0.14's GRPO, as SEED-Bench-R1 (arXiv 2503.24376) has it.
  """
  ratio = token_ratio(logprobs, jax.lax.stop_gradient(logprobs), mask)
  scale = jax.lax.stop_gradient(per_token(advantages) * upcast(token_weights))
  return -ratio * jnp.where(mask, scale, 0.0)


def reference_kl(
  logprobs: Float[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  estimator: str = "k3",
  bound: float | None = None,
  clamp: float = _MAX_LOG_RATIO,
) -> Float[Array, "P G R"]:
  """Estimates KL(pi || pi_ref) at each sampled token.

      k = logprobs_ref - logprobs
      k1 = -k        k2 = k^2 / 2        k3 = exp(k) - k - 1
      k1+, k3+:  the value of k1 or k3 with the gradient of k2

  In k3, k is clamped to +-clamp, as the log-ratio of `token_ratio` and as in
  verl (TRL doesn't): beyond, the value is constant and the gradient 0. Without
  the clamp the value is inf from 88 nats on, and so is the update.

  On-policy, the expected gradient of k2 is that of the divergence; those of k1
  and k3 aren't. Hence the straight-through forms.

  Args:
    logprobs: of the current policy.
    logprobs_ref: of the frozen reference.
    mask: True on answer tokens.
    estimator: "k1", "k2", "k3", "k1+" or "k3+"; k3 is GRPO's.
    bound: upper bound of k3; None for none. verl uses 10.
    clamp: largest size of k in k3, nats, above 0 and at most 80.
      SEED-Bench-R1 (arXiv 2503.24376) uses 11.

  Returns:
    The unreduced estimate, 0 on padding.

  Raises:
    UserError: if there is no such estimator, a bound or clamp of another than
      k3, or a clamp out of its range.

  Reference: http://joschu.net/blog/kl-approx.html; arXiv 2402.03300 eq. 4;
  the straight-through forms are verl's.
  """
  name = estimator.removesuffix("+")
  if estimator not in _ESTIMATORS:
    raise UserError(
      f"estimator must be one of {', '.join(_ESTIMATORS)}, got {estimator!r}"
    )
  if bound is not None and name != "k3":
    raise UserError(f"bound must be None for {estimator!r}, got {bound}")
  if not 0 < clamp <= 80 or (name != "k3" and clamp != _MAX_LOG_RATIO):
    raise UserError(
      f"clamp must be above 0 and at most 80, of k3 only, got {clamp} for"
      f" {estimator!r}"
    )
  k = log_ratio(logprobs_ref, logprobs, mask)
  k2 = k * k / 2
  if name == "k1":
    value = -k
  elif name == "k2":
    value = k2
  else:
    k = jnp.clip(k, -clamp, clamp)
    value = jnp.expm1(k) - k
    if bound is not None:
      value = jnp.minimum(value, bound)
  if estimator == name:
    return value
  return k2 - jax.lax.stop_gradient(k2) + jax.lax.stop_gradient(value)


def likelihood(
  logprobs: Float[Array, "P G R"], mask: Bool[Array, "P G R"]
) -> Float[Array, "P G R"]:
  """Computes the negative log-likelihood of each answer token, in nats.

  Reduced by `token_mean` it is the cross-entropy of supervised fine-tuning.

  Args:
    logprobs: of the current policy.
    mask: True on answer tokens.

  Returns:
    The unreduced loss, 0 on padding.
  """
  return -jnp.where(mask, upcast(logprobs), 0.0)
