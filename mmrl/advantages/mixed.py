"""Advantages in groups of sampled answers and expert trajectories."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.advantages import group
from mmrl.errors import UserError


def expert_group_normalised(
  rewards: Float[Array, "P G"],
  mask: Bool[Array, "P G R"],
  sampled: Bool[Array, "P G"] | None = None,
  *,
  scale: str = "group",
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Float[Array, "P G"]:
  """Computes GRPO's advantage over sampled answers and kept experts together.

      A = (r - mean r) / (std r + epsilon)

  Mean and deviation are over all sampled answers of the prompt and its kept
  experts: those whose row has a token. A is exactly 0 for experts that aren't
  kept, in a dropped group (one without any token), and where all rewards that
  count are equal: an expert teaches nothing where the policy is right
  throughout. In a group without kept experts, A equals `group_normalised` of
  the sampled answers, up to the rounding of a division by a number that the
  compiler doesn't know.

  Args:
    rewards: of each row, by the same rule; anything on experts that aren't
      kept.
    mask: True on answer tokens.
    sampled: False on expert rows; None if there are none, which is
      `group_normalised`, bit for bit.
    scale: "group" divides by the deviation, "none" by 1.
    epsilon: added to the deviation.
    ddof: 1 divides squares by n - 1, 0 by n, for the n rows that count.

  Returns:
    The advantages; they sum to zero over the rows that count.

  Raises:
    UserError: if there is no such scale or ddof, or a group of one answer.

  Reference: TGRL, arXiv 2603.26126; LUFFY, arXiv 2504.14945.
  Reconstructed: only the abstract of TGRL's paper could be read, which doesn't
  mention advantages. Experts are part of the group as in LUFFY, whose
  published runs don't divide by the deviation (`scale="none"`).
  """
  if scale not in ("group", "none"):
    raise UserError(f"scale must be 'group' or 'none', got {scale!r}")
  group.check_ddof(ddof)
  if sampled is None:
    return group.group_normalised(
      rewards, mask, scale=scale, epsilon=epsilon, ddof=ddof
    )
  rewards = rewards.astype(jnp.float32)
  counts = sampled | mask.any(axis=-1)
  moments: dict[str, Any] = {"axis": 1, "keepdims": True, "where": counts}
  centred = rewards - rewards.mean(**moments)
  if scale == "group":
    centred /= rewards.std(**moments, ddof=ddof) + epsilon
  largest = rewards.max(**moments, initial=-jnp.inf)
  equal = largest == rewards.min(**moments, initial=jnp.inf)
  dropped = ~mask.any(axis=(1, 2))[:, None]
  return jnp.where(counts & ~equal & ~dropped, centred, 0.0)
