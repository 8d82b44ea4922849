"""Token weights from the behaviour policy's probability of each token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses.surrogates import per_token, upcast

_SIGNS = ("both", "positive", "negative")


def low_probability(
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  *,
  alpha: float = 0.2,
  sign: str = "both",
) -> Float[Array, "P G R"]:
  """Weighs up tokens that are unlikely under the behaviour policy.

      w_t = 1 + alpha (1 - pi_old(y_t)),  in [1, 1 + alpha]

  Training moves mostly these tokens. Weights aren't normalised to a mean of 1,
  so they also raise the size of the update, by up to alpha.

  Args:
    logprobs_old: of the behaviour policy.
    mask: True on answer tokens.
    advantages: of each answer, or of each token.
    alpha: at least -1. The paper uses 0.2 for Qwen2.5-Math-7B and 0.1 for
      Qwen3-8B-Base. Below 0 rare tokens weigh less, as in the baseline that
      the paper's code calls `reshape`; 0 weighs all tokens equally.
    sign: "both", "positive" or "negative": tokens whose advantage has this sign
      are weighed. The others, and those of advantage 0 unless "both", have
      weight 1.

  Returns:
    The weights, 1 on padding.

  Raises:
    UserError: if alpha is below -1 or there is no such sign.

  Reference: arXiv 2603.22117, and `reshape_reversed` of its code.
  """
  if alpha < -1:
    raise UserError(f"alpha must be at least -1, got {alpha}")
  if sign not in _SIGNS:
    raise UserError(f"sign must be one of {', '.join(_SIGNS)}, got {sign!r}")
  probability = jnp.exp(jnp.where(mask, upcast(logprobs_old), 0.0))
  weights = 1.0 + alpha * (1.0 - probability)
  if sign == "both":
    return weights
  advantages = per_token(advantages)
  weighed = advantages > 0 if sign == "positive" else advantages < 0
  return jnp.where(weighed, weights, 1.0)
