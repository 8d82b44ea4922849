"""RLOO: every answer is compared with the mean of the others."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.advantages import group, reference


def leave_one_out(
  rewards: Float[Array, "P G"],
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"] | None = None,
  *,
  beta: float = 0.0,
  estimator: str = "k1",
) -> Float[Array, "P G"]:
  """RLOO's advantage: reward minus the mean reward of the other answers.

      R_i = r_i - beta sum_t (logprobs_old - logprobs_ref)
      A_i = R_i - mean_{j != i} R_j = G / (G - 1) (R_i - mean_g R)

  Exactly 0 where all R of a group are equal.

  Args:
    rewards: of each answer.
    logprobs_old: of the behaviour policy.
    mask: True on answer tokens; a group without any gets 0.
    logprobs_ref: of the frozen reference; needed if beta is positive.
    beta: weight of the KL in the reward, at least 0; the paper has 0.03
      (TL;DR) and 0.1 (HH). With it, the loss needs no `reference_kl`.
    estimator: of the KL, "k1", "k2" or "k3"; the formula has the paper's, k1.

  Returns:
    The advantages; they sum to zero in every group.

  Raises:
    UserError: if the group has one answer, beta is positive without a
      reference, or there is no such estimator.

  Reference: arXiv 2402.14740.
  Differs from the paper: the loss is a term of its own, so that the advantage
  may be used with clipped ratios of tokens, as in verl; the paper has
  -A sum_t logprobs, the gradient of which on-policy is the same.
  """
  group.check_answers(rewards, "leave_one_out")
  answers = rewards.shape[1]
  kl = reference.penalty(
    logprobs_old, logprobs_ref, mask, beta=beta, estimator=estimator
  )
  total = rewards - kl.sum(axis=-1)
  advantages = answers / (answers - 1) * group.centred(total)
  return jnp.where(mask.any(axis=(1, 2))[:, None], advantages, 0.0)
