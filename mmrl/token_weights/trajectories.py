"""Token weights on expert trajectories.

Reference: TGRL, arXiv 2603.26126.
Reconstructed: only the abstract of the paper could be read, which mentions that
tokens are reweighted but not how. Both weights are proposals. Even with weights
of one, the shaped probability of `mmrl.losses.expert_shaped` reweights tokens.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError


def expert_visual(
  logprobs_old: Float[Array, "P G R"],
  logprobs_blind: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  sampled: Bool[Array, "P G"] | None = None,
  *,
  strength: float = 1.0,
) -> Float[Array, "P G R"]:
  """Weighs expert tokens by how much they depend on the picture.

      S_t = |logprobs_old - logprobs_blind|
      u_t = (1 + strength rank_t) / (mean over the trajectory)

  rank_t in [0, 1] is the rank of S_t among the n tokens of the trajectory,
  from 0, over n - 1; equal S share their mean rank. The mean of ranks is 1/2,
  so u is in [1, 1 + strength] / (1 + strength / 2) and has mean 1: the weight
  of the trajectory as a whole is unchanged.

  Args:
    logprobs_old: under the behaviour policy.
    logprobs_blind: under the same policy without the picture.
    mask: True on answer tokens.
    sampled: False on expert rows; None if there are none.
    strength: at least 0; 0 weighs all tokens equally.

  Returns:
    u on expert rows and 0 on their padding; 1 on all other rows. Exactly 1 on
    every token where all S are equal, as without a picture, and on a single
    token.

  Raises:
    UserError: if the strength is negative.

  Reference, Reconstructed: see the module; S is ToR's, arXiv 2603.25077.
  """
  if strength < 0:
    raise UserError(f"strength must be at least 0, got {strength}")
  if sampled is None:
    return jnp.ones(mask.shape, jnp.float32)
  sensitivity = jnp.abs(
    logprobs_old.astype(jnp.float32) - logprobs_blind.astype(jnp.float32)
  )
  rank = _ranks(jnp.where(mask, sensitivity, jnp.inf), mask)
  weights = (1 + strength * rank) / (1 + strength / 2)
  return _on_experts(weights, mask, ~sampled)


def expert_low_probability(
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  sampled: Bool[Array, "P G"] | None = None,
  *,
  alpha: float = 0.2,
) -> Float[Array, "P G R"]:
  """Weighs up expert tokens that are unlikely under the policy.

      u_t = 1 + alpha (1 - pi_old(t))

  The mean isn't normalised: unlikely trajectories weigh more as a whole.

  Args:
    logprobs_old: under the behaviour policy.
    mask: True on answer tokens.
    sampled: False on expert rows; None if there are none.
    alpha: at least -1; below 0 unlikely tokens weigh less.

  Returns:
    u, between 1 and 1 + alpha, on expert rows and 0 on their padding; 1 on all
    other rows.

  Raises:
    UserError: if alpha is below -1.

  Reference: `low_probability`, arXiv 2603.22117, there on sampled answers.
  Reconstructed: its use on experts; see the module.
  """
  if alpha < -1:
    raise UserError(f"alpha must be at least -1, got {alpha}")
  if sampled is None:
    return jnp.ones(mask.shape, jnp.float32)
  unlikely = -jnp.expm1(logprobs_old.astype(jnp.float32))
  return _on_experts(1 + alpha * unlikely, mask, ~sampled)


def _on_experts(
  weights: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  expert: Bool[Array, "P G"],
) -> Float[Array, "P G R"]:
  """Returns weights on expert rows, 0 on their padding, 1 on other rows."""
  return jnp.where(expert[..., None], jnp.where(mask, weights, 0.0), 1.0)


@functools.partial(jnp.vectorize, signature="(r),(r)->(r)")
def _ranks(
  values: Float[Array, "R"], mask: Bool[Array, "R"]
) -> Float[Array, "R"]:
  """Computes the rank of each value among the masked values, in [0, 1].

  Equal values share their mean rank; a single value has 1/2, the mean of all
  ranks. Values where the mask is False must be infinite.
  """
  count = mask.sum()
  find = functools.partial(
    jnp.searchsorted, jnp.sort(values), values, method="sort"
  )
  below = find(side="left")
  not_above = jnp.minimum(find(side="right"), count)
  mean_rank = (below + not_above - 1) / 2
  return jnp.where(count > 1, mean_rank / jnp.maximum(count - 1, 1), 0.5)
