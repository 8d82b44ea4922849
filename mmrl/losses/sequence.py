"""Policy-gradient losses with one importance ratio per answer, minimised."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses import surrogates

# Upper bound of the log-ratio, as in verl: its exponential is finite.
_MAX_LOG_RATIO = 10.0


def clipped_sequence_ratio(
  logprobs: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  level: str = "sequence",
  length_normalize: bool = True,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
) -> Float[Array, "P G R"]:
  """Computes the clipped surrogate with one ratio per answer (GSPO).

      d_t = ln pi_t - ln pi_old_t
      s = exp(sum_t d_t / length)       exp(sum_t d_t) if not length_normalize
      s_t = s                           level "sequence", GSPO
      s_t = sg[s] pi_t / sg[pi_t]       level "token", GSPO-token
      loss_t = max(-A s_t, -A clip(s_t, 1 - clip_low, 1 + clip_high)) * w_t

  Every token of an answer has the loss of the answer. So `sequence_mean`, the
  paper's reduction, is the mean of the answers' losses; any other reduction
  weighs answers by their length.

  Both levels have the same value. They have the same gradient where advantages
  and weights are constant along an answer; at level "token" the advantage of a
  token acts on that token alone. Value and gradient at theta_old equal those of
  `clipped_ratio`, so the ratio acts from the second update of a rollout batch.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_old: of the behaviour policy.
    advantages: of each answer, or of each token.
    token_weights: w, of each token; ones change nothing, bit for bit.
    mask: True on answer tokens.
    level: "sequence" or "token".
    length_normalize: True for a log-ratio that is a mean over tokens, False
      for their sum, as in TRL's RLOO (with clip widths of 0.2).
    clip_low: in [0, 1).
    clip_high: at least 0.

  Returns:
    The unreduced loss, 0 on padding.

  Raises:
    UserError: if there is no such level, a clip width is outside its range, or
      "token" isn't normalised: `sequence_mean` would then divide its gradient
      by the length once more.

  Reference: arXiv 2507.18071; the sum is TRL's form of arXiv 2402.14740.
  Differs from the paper: ln s is clamped from above at 10, as in verl; TRL
  doesn't.
  """
  surrogates.check_clip(clip_low, clip_high)
  if level not in ("sequence", "token"):
    raise UserError(f"level must be 'sequence' or 'token', got {level!r}")
  if level == "token" and not length_normalize:
    raise UserError("level 'token' must have length_normalize, got False")
  log_ratio = surrogates.log_ratio(logprobs, logprobs_old, mask)
  log_ratio = log_ratio.sum(-1, keepdims=True)
  if length_normalize:
    log_ratio /= jnp.maximum(mask.sum(-1, keepdims=True), 1)
  if level == "token":
    # Its value is 0, its gradient that of the token.
    own = surrogates.log_ratio(logprobs, jax.lax.stop_gradient(logprobs), mask)
    log_ratio = jax.lax.stop_gradient(log_ratio) + own
  ratio = jnp.exp(jnp.minimum(log_ratio, _MAX_LOG_RATIO))
  # Padding must not reach the product: its NaN would reach the whole answer.
  advantages, token_weights = jax.lax.stop_gradient(
    (
      jnp.where(mask, surrogates.per_token(advantages), 0.0),
      jnp.where(mask, token_weights, 0.0),
    )
  )
  loss = surrogates.surrogate(ratio, advantages, clip_low, clip_high)
  return loss * token_weights
