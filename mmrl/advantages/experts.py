"""Advantages in groups of sampled answers and expert trajectories."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.advantages import group
from mmrl.errors import UserError


def expert_group_normalised(
  rewards: Float[Array, "P G"],
  mask: Bool[Array, "P G R"],
  expert: Bool[Array, "P G"] | None = None,
  *,
  scale: str = "group",
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Float[Array, "P G"]:
  """GRPO's advantage over sampled answers and expert trajectories together.

      A = (r - mean r) / (std r + epsilon)

  Mean and deviation are over all sampled answers of the prompt and its kept
  experts: those whose row has a token. Exactly 0 for experts that aren't kept,
  in a group without any token, which was dropped, and where all rewards that
  count are equal: an expert teaches nothing where the policy is right
  throughout. A group without kept experts has the advantages that
  `group_normalised` gives its sampled answers, up to the rounding of a division
  by a number that the compiler doesn't know.

  Args:
    rewards: of each row, by the same rule; of experts that aren't kept it may
      be anything.
    mask: True on answer tokens.
    expert: which rows are experts; None if there are none, and then this is
      `group_normalised`, bit for bit.
    scale: "group" divides by the deviation, "none" by 1.
    epsilon: added to the deviation.
    ddof: 1 divides squares by n - 1, 0 by n, for the n rows that count.

  Returns:
    The advantages; over the rows that count they sum to zero.

  Raises:
    UserError: if there is no such scale or ddof, or a group of one answer.

  Reference: TGRL, arXiv 2603.26126; LUFFY, arXiv 2504.14945.
  Reconstructed: of TGRL's paper only the abstract could be read, which says
  nothing of advantages. That experts stand in the group is LUFFY's choice,
  whose published runs don't divide by the deviation (`scale="none"`).
  """
  if scale not in ("group", "none"):
    raise UserError(f"scale must be 'group' or 'none', got {scale!r}")
  group.check_ddof(ddof)
  if expert is None:
    return group.group_normalised(
      rewards, mask, scale=scale, epsilon=epsilon, ddof=ddof
    )
  rewards = rewards.astype(jnp.float32)
  counts = ~expert | mask.any(axis=-1)
  moments: dict[str, Any] = {"axis": 1, "keepdims": True, "where": counts}
  centred = rewards - rewards.mean(**moments)
  if scale == "group":
    centred /= rewards.std(**moments, ddof=ddof) + epsilon
  largest = rewards.max(**moments, initial=-jnp.inf)
  equal = largest == rewards.min(**moments, initial=jnp.inf)
  dropped = ~mask.any(axis=(1, 2))[:, None]
  return jnp.where(counts & ~equal & ~dropped, centred, 0.0)
