"""Filter of the expert trajectories that a batch learns from; on the host."""

from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl.errors import UserError


def check_options(solved: float, quantile: float | None) -> None:
  """Checks the options of `keep_experts`.

  Raises:
    UserError: if a number is outside its range.
  """
  if not 0 < solved <= 1:
    raise UserError(f"solved must be in (0, 1], got {solved}")
  if quantile is not None and not 0 <= quantile < 1:
    raise UserError(f"quantile must be in [0, 1), got {quantile}")


def keep_experts(
  accuracy: Float[np.ndarray, "P experts"],
  formed: Bool[np.ndarray, "P experts"],
  lengths: Int[np.ndarray, "P experts"],
  policy_accuracy: Float[np.ndarray, "P"],
  *,
  longest: int,
  solved: float = 0.5,
  mean_logprobs: Float[np.ndarray, "P experts"] | None = None,
  quantile: float | None = None,
) -> Bool[np.ndarray, "P experts"]:
  """Selects right, well-formed trajectories of questions not yet solved.

      keep = accuracy = 1  and  formed  and  1 <= length <= longest
             and  policy_accuracy < solved
             and, with a quantile,  mean_logprob >= that of those kept so far

  A wrong expert would have a negative advantage and push good text down. An
  expert of a solved question adds gradient without information. A very unlikely
  one has a noisy gradient.

  Args:
    accuracy: of each trajectory, by the verifier of the sampled answers; 1 is
      right.
    formed: whether each trajectory is well-formed.
    lengths: number of tokens of each; 0 where there is no trajectory.
    policy_accuracy: share of right ones among the question's sampled answers.
    longest: R.
    solved: in (0, 1]; accuracy of the policy from which on a question's experts
      are left out. 1 leaves them out only where every answer is right.
    mean_logprobs: mean log-probability of each trajectory's tokens under the
      behaviour policy; read only where all other conditions hold.
    quantile: in [0, 1); share of the least likely that is left out, over all
      trajectories given. None leaves none out.

  Returns:
    Which trajectories are kept.

  Raises:
    UserError: if a number is outside its range, or a quantile comes without
      `mean_logprobs`.

  Reference: TGRL, arXiv 2603.26126.
  Reconstructed: only the abstract of the paper could be read, which mentions
  that trajectories are filtered but not how. The rule and solved = 0.5 are
  ours.
  """
  check_options(solved, quantile)
  keep = (accuracy == 1) & formed & (lengths >= 1) & (lengths <= longest)
  keep &= (policy_accuracy < solved)[:, None]
  if quantile is None:
    return keep
  if mean_logprobs is None:
    raise UserError("expected mean_logprobs with a quantile, got None")
  if keep.any():
    keep &= mean_logprobs >= np.quantile(mean_logprobs[keep], quantile)
  return keep
