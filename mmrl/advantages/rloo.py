"""RLOO advantages: each answer against the mean of the others."""

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
  """Computes RLOO's advantage: reward minus the mean reward of the others.

      R_i = r_i - beta sum_t (logprobs_old - logprobs_ref)
      A_i = R_i - mean_{j != i} R_j = G / (G - 1) (R_i - mean_g R)

  A is exactly 0 where all R of a group are equal.

  Args:
    rewards: of each answer.
    logprobs_old: of the behaviour policy.
    mask: True on answer tokens; a group without any has advantage 0.
    logprobs_ref: of the frozen reference; needed if beta is positive.
    beta: weight of the KL in the reward, at least 0; in the paper 0.03 (TL;DR)
      and 0.1 (HH). With it, the loss needs no `reference_kl`.
    estimator: of the KL, "k1", "k2" or "k3"; k1, which the formula shows, is
      the paper's.

  Returns:
    The advantages; they sum to zero in every group.

  Raises:
    UserError: if the group has one answer, beta is positive without a
      reference, or there is no such estimator.

  Reference: arXiv 2402.14740.
  Differs from the paper: the loss is a separate term, so the advantage may be
  used with clipped token ratios, as in verl. The paper's loss is
  -A sum_t logprobs, whose on-policy gradient is the same.
  """
  group.check_answers(rewards, "leave_one_out")
  answers = rewards.shape[1]
  kl = reference.penalty(
    logprobs_old, logprobs_ref, mask, beta=beta, estimator=estimator
  )
  total = rewards - kl.sum(axis=-1)
  advantages = answers / (answers - 1) * group.centred(total)
  return jnp.where(mask.any(axis=(1, 2))[:, None], advantages, 0.0)
