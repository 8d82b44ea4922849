"""Group-relative advantages: each answer against its prompt's other answers."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
import numpy as np

from mmrl.errors import UserError


def informative_groups(
  accuracy: Num[Array, "P G"] | Num[np.ndarray, "P G"],
) -> Bool[Array, "P"] | Bool[np.ndarray, "P"]:
  """Tells which groups have both right and wrong answers: max != min.

  The advantages of a group are 0 where all its rewards are equal. Leave a
  format reward out of `accuracy`: an answer may be well-formed and wrong.

  Args:
    accuracy: of each answer, on the host or on the device.

  Returns:
    One value per prompt; a NumPy array for a NumPy array.

  Reference: DAPO's dynamic sampling, arXiv 2503.14476.
  Differs from the paper: the paper's condition is 0 < number of right answers
  < G, which is the same where accuracies are 0 or 1.
  """
  return accuracy.max(axis=1) != accuracy.min(axis=1)


def check_answers(rewards: Float[Array, "P G"], name: str):
  """Raises UserError for groups of one answer, naming the function `name`."""
  if rewards.shape[1] < 2:
    raise UserError(
      f"{name} needs at least 2 answers per prompt, got {rewards.shape[1]}"
    )


def check_ddof(ddof: int):
  """Raises UserError if `ddof` of a standard deviation is neither 0 nor 1."""
  if ddof not in (0, 1):
    raise UserError(f"ddof must be 0 (n) or 1 (n - 1), got {ddof}")


def centred(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
  """Computes `r - mean_g r` in float32.

  The result is exactly 0 where all rewards of a group are equal. Otherwise the
  mean's rounding error would be divided by a deviation or epsilon of its own
  size.
  """
  rewards = rewards.astype(jnp.float32)
  difference = rewards - rewards.mean(axis=1, keepdims=True)
  return jnp.where(informative_groups(rewards)[:, None], difference, 0.0)


def pooled_std(
  rewards: Float[Array, "P G"],
  bin_of: Int[Array, "P"],
  valid: Bool[Array, "P"],
  *,
  bins: int,
  ddof: int = 1,
) -> Float[Array, "{bins}"]:
  """Computes the standard deviation of all rewards of each bin of prompts.

  Deviations are about the bin's mean.

  Args:
    rewards: of each answer; anything where the prompt isn't valid.
    bin_of: bin of each prompt, in [0, bins).
    valid: False on dropped prompts, which count in no bin.
    bins: number of bins.
    ddof: 1 divides squares by n - 1, 0 by n.

  Returns:
    One value per bin; 0 for an empty one.
  """
  member = valid[None] & (bin_of[None] == jnp.arange(bins)[:, None])
  member = jnp.broadcast_to(member[..., None], (bins, *rewards.shape))
  number = member.sum(axis=(1, 2))
  rewards = rewards.astype(jnp.float32)
  total = jnp.where(member, rewards, 0.0).sum(axis=(1, 2))
  mean = total / jnp.maximum(number, 1)
  difference = jnp.where(member, rewards[None] - mean[:, None, None], 0.0)
  squares = (difference * difference).sum(axis=(1, 2))
  return jnp.sqrt(squares / jnp.maximum(number - ddof, 1))


def group_normalised(
  rewards: Float[Array, "P G"],
  mask: Bool[Array, "P G R"] | None = None,
  *,
  scale: str = "group",
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Float[Array, "P G"]:
  """Computes GRPO's advantage: reward minus group mean, over a deviation.

      A = (r - mean_g r) / (std r + epsilon)

  A is exactly 0 where all rewards of a group are equal. Otherwise the float32
  rounding error of the mean would be divided by an epsilon of its own size.

  Args:
    rewards: of each answer.
    mask: True on answer tokens. A group without any was dropped: it counts
      in no deviation and its advantages are 0. None drops none.
    scale: "group" divides by the deviation in the group, "batch" by that of
      all rewards, "none" by 1 (Dr.GRPO, arXiv 2503.20783).
    epsilon: added to the deviation; verl uses 1e-6, TRL 1e-4.
    ddof: 1 divides squares by n - 1 (TRL, verl), 0 by n.

  Returns:
    The advantages; they sum to zero in every group.

  Raises:
    UserError: if the group has one answer, or there is no such scale or ddof.

  Reference: arXiv 2402.03300 section 4.1.2.
  """
  check_answers(rewards, "group_normalised")
  check_ddof(ddof)
  rewards = rewards.astype(jnp.float32)
  advantages, keep = centred(rewards), informative_groups(rewards)
  if mask is not None:
    valid = mask.any(axis=(1, 2))
    keep &= valid
  if scale == "group":
    advantages /= rewards.std(axis=1, keepdims=True, ddof=ddof) + epsilon
  elif scale == "batch" and mask is None:
    advantages /= rewards.std(ddof=ddof) + epsilon
  elif scale == "batch":
    one = jnp.zeros(len(rewards), jnp.int32)
    (std,) = pooled_std(rewards, one, valid, bins=1, ddof=ddof)
    advantages /= std + epsilon
  elif scale != "none":
    raise UserError(f"scale must be 'group', 'batch' or 'none', got {scale!r}")
  return jnp.where(keep[:, None], advantages, 0.0)
