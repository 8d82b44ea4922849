"""REINFORCE++: returns of tokens, whitened over the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.advantages import group, reference
from mmrl.errors import UserError


def returns(
  rewards: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  gamma: float,
) -> Float[Array, "P G R"]:
  """`ret_t = R_t + gamma ret_{t+1}`, where t counts the True of the mask.

  Args:
    rewards: of each token; may be anything where the mask is False.
    mask: True on answer tokens. A gap takes no step: it costs no gamma.
    gamma: discount, in [0, 1].

  Returns:
    The returns, 0 where the mask is False.
  """

  def step(following, now):
    reward, valid = now
    following = jnp.where(valid, reward + gamma * following, following)
    return following, following

  over_tokens = (jnp.moveaxis(rewards, -1, 0), jnp.moveaxis(mask, -1, 0))
  start = jnp.zeros(mask.shape[:-1], jnp.float32)
  _, values = jax.lax.scan(step, start, over_tokens, reverse=True)
  return jnp.where(mask, jnp.moveaxis(values, 0, -1), 0.0)


def whitened(
  values: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  epsilon: float,
  ddof: int = 1,
) -> Float[Array, "P G R"]:
  """`(x - mean) / sqrt(var + epsilon)` over all tokens of the mask.

  The variance divides by n - ddof. Exactly 0 where the mask is False, and
  everywhere if all values are equal or there are fewer than two.
  """
  number = mask.sum()
  mean = jnp.where(mask, values, 0.0).sum() / jnp.maximum(number, 1)
  centred = jnp.where(mask, values - mean, 0.0)
  variance = (centred * centred).sum() / jnp.maximum(number - ddof, 1)
  lowest = jnp.where(mask, values, jnp.inf).min()
  highest = jnp.where(mask, values, -jnp.inf).max()
  scaled = centred / jnp.sqrt(variance + epsilon)
  return jnp.where(lowest < highest, scaled, 0.0)


def reinforce_plus_plus(
  rewards: Float[Array, "P G"],
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"] | None = None,
  *,
  beta: float = 0.0,
  gamma: float = 1.0,
  baseline: bool = False,
  epsilon: float = 1e-8,
  ddof: int = 1,
  estimator: str = "k1",
) -> Float[Array, "P G R"]:
  """REINFORCE++'s advantage of each token.

      R_t   = 1[t = last] r - beta (logprobs_old - logprobs_ref)_t
      ret_t = R_t + gamma ret_{t+1}
      A_t   = (ret_t - mean ret) / sqrt(var ret + epsilon)

  Mean and variance are those of all answer tokens of the batch, so long
  answers weigh more in them.

  Args:
    rewards: r, of each answer.
    logprobs_old: of the behaviour policy.
    mask: True on answer tokens; gaps are skipped.
    logprobs_ref: of the frozen reference; needed if beta is positive.
    beta: weight of the KL in the reward, at least 0; the paper has 0.001.
    gamma: discount from token to token, in [0, 1].
    baseline: True for the variant that first subtracts from r its mean over
      the answers to the same prompt.
    epsilon: added to the variance.
    ddof: 1 divides squares by n - 1 (verl), 0 by n.
    estimator: of the KL in the reward, "k1", "k2" or "k3"; the formula has k1,
      the paper's.

  Returns:
    The advantages; 0 on padding, and everywhere if all returns are equal.

  Raises:
    UserError: if there is a baseline and the group has one answer, beta is
      positive without a reference, gamma is outside [0, 1], or there is no such
      ddof or estimator.

  Reference: arXiv 2501.03262; n - 1 in the variance as in verl.
  Reconstructed: the baseline variant is defined with beta = 0 and gamma = 1,
  where every token has the return r - mean r; here it changes r and nothing
  else.
  """
  if not 0 <= gamma <= 1:
    raise UserError(f"gamma must be in [0, 1], got {gamma}")
  group.check_ddof(ddof)
  if baseline:
    group.check_answers(rewards, "reinforce_plus_plus with a baseline")
    rewards = group.centred(rewards)
  remaining = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]
  # A gap before the last token has 1 left, too; no return reads it.
  of_tokens = jnp.where(remaining == 1, rewards[..., None], 0.0)
  of_tokens -= reference.penalty(
    logprobs_old, logprobs_ref, mask, beta=beta, estimator=estimator
  )
  values = returns(of_tokens, mask, gamma=gamma)
  return whitened(values, mask, epsilon=epsilon, ddof=ddof)
