"""Token weights from how far the update moves the rest of the answer.

Reference: Future-KL Influenced Policy Optimization (FIPO), arXiv 2603.19835.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.losses.surrogates import log_ratio, per_token, token_ratio


def discounted_sum(
  values: Float[Array, "*batch R"], half_life: float
) -> Float[Array, "*batch R"]:
  """Computes `F_t = values_t + gamma F_{t+1}`, `gamma = 2^(-1 / half_life)`."""
  gamma = jnp.full_like(values, 2.0 ** (-1.0 / half_life))

  def compose(later, earlier):
    decay, total = earlier
    return decay * later[0], total + decay * later[1]

  _, total = jax.lax.associative_scan(
    compose, (gamma, values), reverse=True, axis=values.ndim - 1
  )
  return total


def future_kl(
  logprobs: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  minibatch: reduce.Minibatch | None = None,
  *,
  half_life: float = 32.0,
  low: float = 0.8,
  high: float = 1.2,
  ratio_max: float = 10.0,
  safety: float = 3.0,
  row_filter: bool = True,
) -> Float[Array, "P G R"]:
  """Computes FIPO's weights: exp of the discounted future log-ratio.

      d_t = ln pi_t - ln pi_old_t,    rho_t = exp(d_t)
      F_t = sum_{k >= t} gamma^(k - t) 1[rho_k <= ratio_max] d_k
      w_t = clip(exp(F_t), low, high),    gamma = 2^(-1 / half_life)
      where A_t < 0 and rho_t > safety:   w_t <- clip(w_t, 0.8, 1)

  k - t counts positions: masked tokens and tokens left out of the sum are
  discounted, too. At theta_old every weight is exactly 1, so the method acts
  from the second update of a rollout batch.

  The weights are meant for `clipped_ratio` with `dual_clip` = ratio_max and
  `token_mean`. A positive weight of the loss is a weight of the advantage,
  dual clip included.

  The row filter removes from the mean those answers in which the dual clip acts
  on more than one token. Their weights are 0; the others' are scaled by
  tokens / remaining tokens, so that `token_mean` is the mean over the remaining
  tokens. Both are counted over the whole minibatch on all devices. A minibatch
  that is computed in parts, and any other reduction, raise UserError.

  Args:
    logprobs: of the current policy; without gradient here.
    logprobs_old: of the behaviour policy.
    advantages: of each answer, or of each token.
    mask: True on answer tokens.
    minibatch: its devices and parts; None for one part on one device. Only the
      row filter reads it.
    half_life: positive, in tokens.
    low, high: bounds of the weight, 0 <= low <= high. The paper uses 0.8 and
      1.2 for 7B, 1.0 and 1.2 for 32B. With 0 and 0 the only bound is 10.
    ratio_max: above 1; tokens of a larger ratio are left out of the sum.
    safety: positive; in the paper 3 for 7B, 10 for 32B.
    row_filter: whether answers that the dual clip hits are removed.

  Raises:
    UserError: if an option is outside its range, or the row filter is used with
      a minibatch in parts or another reduction than `token_mean`.

  Reference: arXiv 2603.19835, with its released code.
  Differs from the paper: its text resets the weight to 1 where its code, as
  here, clips it to [0.8, 1]; the row filter is in its code only.
  """
  if not (half_life > 0 and safety > 0 and ratio_max > 1):
    raise UserError(
      "half_life and safety must be positive and ratio_max above 1, got"
      f" {half_life}, {safety} and {ratio_max}"
    )
  if not 0 <= low <= high:
    raise UserError(f"low and high must be 0 <= low <= high, got {low}, {high}")
  if high == 0:
    high = 10.0
  logprobs = jax.lax.stop_gradient(logprobs)
  ratio = token_ratio(logprobs, logprobs_old, mask)
  kept = ratio <= ratio_max
  moved = jnp.clip(log_ratio(logprobs, logprobs_old, mask), -20.0, 20.0)
  future = discounted_sum(jnp.where(kept, moved, 0.0), half_life)
  weights = jnp.clip(jnp.exp(future), low, high)
  # On padding the ratio is 1, so padding is neither clipped nor a hit.
  negative = per_token(advantages) < 0
  weights = jnp.where(
    negative & (ratio > safety), jnp.clip(weights, 0.8, 1.0), weights
  )
  if not row_filter:
    return weights
  # Where A < 0 the loss is -A w max(rho, 1 - clip_low), which exceeds the
  # bound -A w ratio_max where rho > ratio_max, whatever the clip widths.
  hits = (negative & ~kept).sum(-1, keepdims=True)
  minibatch = minibatch or reduce.Minibatch()
  minibatch.require("token_mean", "row_filter")
  tokens, left = (
    minibatch.total(x, "row_filter") for x in (mask, mask & (hits <= 1))
  )
  scale = tokens / jnp.maximum(left, 1)
  return jnp.where(hits <= 1, weights * scale, 0.0)
