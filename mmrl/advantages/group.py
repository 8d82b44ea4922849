"""Advantages of an answer relative to the other answers to its prompt."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrl.errors import UserError


def group_normalised(
  rewards: Float[Array, "P G"],
  *,
  scale: str = "group",
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Float[Array, "P G"]:
  """GRPO's advantage: reward minus group mean, over a standard deviation.

      A = (r - mean_g r) / (std r + epsilon)

  Exactly 0 where all rewards of a group are equal: in float32 the rounding
  of mean and deviation would be divided by an epsilon of their own size.

  Args:
    rewards: of each answer.
    scale: "group" divides by the deviation in the group, "batch" by that of
      all rewards, "none" by 1 (Dr.GRPO, arXiv 2503.20783).
    epsilon: added to the deviation; verl has 1e-6, TRL 1e-4.
    ddof: 1 divides squares by n - 1 (TRL, verl), 0 by n.

  Returns:
    The advantages; they sum to zero in every group.

  Raises:
    UserError: if the group has one answer, or there is no such scale.

  Reference: arXiv 2402.03300 section 4.1.2.
  """
  if rewards.shape[1] < 2:
    raise UserError(
      "group_normalised needs at least 2 answers per prompt, got"
      f" {rewards.shape[1]}"
    )
  rewards = rewards.astype(jnp.float32)
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  if scale == "group":
    centred /= rewards.std(axis=1, keepdims=True, ddof=ddof) + epsilon
  elif scale == "batch":
    centred /= rewards.std(ddof=ddof) + epsilon
  elif scale != "none":
    raise UserError(f"scale must be 'group', 'batch' or 'none', got {scale!r}")
  equal = rewards.max(axis=1) == rewards.min(axis=1)
  return jnp.where(equal[:, None], 0.0, centred)
