"""REINFORCE++ advantages: per-token returns, whitened over the batch."""

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
  """Computes discounted returns, `ret_t = R_t + gamma ret_{t+1}`.

  t counts the tokens where the mask is True.

  Args:
    rewards: of each token; anything where the mask is False.
    mask: True on answer tokens. A gap isn't a step: it isn't discounted.
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
  """Whitens values over all masked tokens: `(x - mean) / sqrt(var + epsilon)`.

  The variance divides by n - ddof. The result is exactly 0 where the mask is
  False, and everywhere if all values are equal or there are fewer than two.
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
  """Computes REINFORCE++'s advantage of each token.

      R_t   = 1[t = last] r - beta (logprobs_old - logprobs_ref)_t
      ret_t = R_t + gamma ret_{t+1}
      A_t   = (ret_t - mean ret) / sqrt(var ret + epsilon)

  Mean and variance are over all answer tokens of the batch, so long answers
  weigh more in them.

  Args:
    rewards: r, of each answer.
    logprobs_old: of the behaviour policy.
    mask: True on answer tokens; gaps are skipped.
    logprobs_ref: of the frozen reference; needed if beta is positive.
    beta: weight of the KL in the reward, at least 0; 0.001 in the paper.
    gamma: discount from token to token, in [0, 1].
    baseline: True for the variant that first subtracts from r its mean over
      the answers to the same prompt.
    epsilon: added to the variance.
    ddof: 1 divides squares by n - 1 (verl), 0 by n.
    estimator: of the KL in the reward, "k1", "k2" or "k3"; k1, which the
      formula shows, is the paper's.

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
