"""What a reward does in a group: three numbers that a run logs of each.

An auxiliary reward, such as one of attention, can decide where the main one is
the same for all answers of a group: an advantage divides by the group's
deviation, however small that is. Then what it follows, and be it an answer's
length, is what is learned.

  reward_within/NAME  the share of its variance that is inside groups,
                      sum (x - group's mean)^2 / sum (x - mean)^2
  reward_length/NAME  its correlation with the number of tokens inside groups:
                      of what is left of both without the groups' means
  reward_alone/NAME   the share of groups that only this reward tells apart:
                      what it adds to the total, with its placebo and factors,
                      differs within the group, and what others add doesn't

A number that isn't defined, as of a reward that is always the same, is left
out. Values that a reward doesn't apply to, NaN, count in nothing.
"""

from collections.abc import Mapping

from jaxtyping import Bool, Float, Num
import numpy as np

# Squares below this share of the mean square are rounding of float32 values.
_ROUNDING = 1e-12


def squares(
  values: Float[np.ndarray, "P G"],
  lengths: Num[np.ndarray, "P G"],
  mean: float,
) -> dict[str, float]:
  """Computes mean squares over answers, whose mean processes can take.

  Args:
    values: of a reward.
    lengths: number of tokens of the answers.
    mean: of the reward, over all processes.
  """
  applies = np.isfinite(values)
  x, length = (_centred(one, applies) for one in (values, lengths))
  size = np.where(applies, values, 0.0).astype(np.float64)
  about = np.where(applies, size - mean, 0.0)
  return {
    "inside": float((x * x).mean()),
    "all": float((about * about).mean()),
    "size": float((size * size).mean()),
    "length": float((length * length).mean()),
    "both": float((x * length).mean()),
  }


def finish(found: Mapping[str, float]) -> dict[str, float]:
  """Computes `within` and `length` from the mean of `squares`."""
  numbers = {}
  if found["all"] > _ROUNDING * found["size"]:
    numbers["within"] = found["inside"] / found["all"]
  if found["inside"] > 0 and found["length"] > 0:
    spread = np.sqrt(found["inside"] * found["length"])
    numbers["length"] = float(found["both"] / spread)
  return numbers


def alone(addends: Mapping[str, Float[np.ndarray, "P G"]]) -> dict[str, float]:
  """Computes the share of groups that only one reward tells apart.

  Args:
    addends: what each reward adds to the total.

  Returns:
    The share of each, by name.
  """
  apart = {name: x.max(1) != x.min(1) for name, x in addends.items()}
  count = sum(apart.values(), start=np.zeros((), int))
  return {name: float((x & (count == 1)).mean()) for name, x in apart.items()}


def _centred(
  values: Num[np.ndarray, "P G"], applies: Bool[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G"]:
  """Subtracts each group's mean over the answers that a reward applies to.

  The result is exactly 0 where these are all equal.
  """
  x = values.astype(np.float64)
  count = np.maximum(applies.sum(1, keepdims=True), 1)
  mean = np.where(applies, x, 0.0).sum(1, keepdims=True) / count
  high = np.where(applies, x, -np.inf).max(1, keepdims=True)
  low = np.where(applies, x, np.inf).min(1, keepdims=True)
  return np.where(applies & (high > low), x - mean, 0.0)
