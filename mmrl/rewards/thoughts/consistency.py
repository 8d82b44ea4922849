"""GRPO-CARE: a bonus for right answers that follow from their reasoning.

Reference: arXiv 2506.16141 and its published code.
Differs from it: all tokens between `<answer>` and `</answer>` count, as they
are found in the text; it counts back from the end, and takes the bracket that
closes the first tag.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses.surrogates import upcast
from mmrl.marks import marked

# Accuracies up to this are those of wrong answers.
_WRONG = 0.1


def bonus(
  accuracy: Float[Array, "P G"],
  likelihood: Float[Array, "P G"],
  *,
  coefficient: float,
  cap: float,
  margin: float,
) -> Float[Array, "P G"]:
  """Computes the bonus from accuracies and how likely answers are.

  right = accuracy > 0.1 and accuracy >= its mean over the group
  c     = min(likelihood, cap)
  bonus = coefficient * accuracy  where right and
          c >= mean of c over the right ones of the group - margin, else 0
  """
  right = (accuracy > _WRONG) & (accuracy >= accuracy.mean(1, keepdims=True))
  likely = jnp.minimum(likelihood, cap)
  total = jnp.where(right, likely, 0.0).sum(1, keepdims=True)
  mean = total / jnp.maximum(right.sum(1, keepdims=True), 1)
  # Equal ones are at their mean, which rounding may put above them.
  kept = right & (likely >= mean - margin - 1e-6)
  return jnp.where(kept, coefficient * accuracy, 0.0)


def _check(
  *, coefficient: float = 0.5, cap: float = 0.95, margin: float = 0.0
) -> None:
  ranges = (
    ("coefficient", coefficient, 10.0),
    ("cap", cap, 1.0),
    ("margin", margin, 1.0),
  )
  for name, value, most in ranges:
    least = "above 0" if name == "cap" else "at least 0"
    if not 0 <= value <= most or (name == "cap" and not value):
      raise UserError(
        f"{name}: expected {least} and at most {most:g}, found {value}"
      )


@marked(
  check=_check,
  hint=(
    "it is for right answers whose text has something between <answer> and"
    " </answer>: let the prompt ask for these tags"
  ),
)
def consistency_bonus(
  reward_accuracy: Float[Array, "P G"],
  logprobs_average: Float[Array, "P G R"],
  tagged: Bool[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  coefficient: float = 0.5,
  cap: float = 0.95,
  margin: float = 0.0,
) -> Float[Array, "P G"]:
  """Rewards right answers that a moving average finds likely after the thought.

  How likely is the geometric mean of the probabilities of the tokens in the
  answer block, given question and reasoning; see `bonus`.

  Args:
    reward_accuracy: the reward of the config that is called accuracy, at least
      0.
    logprobs_average: of the answers under the model `average`, a moving average
      of the policy (`mmrl.train.models.Average`).
    tagged: True between `<answer>` and `</answer>`: see `rollouts.tagged`. An
      answer without such a token has no bonus.
    mask: True on answer tokens.
    coefficient: the bonus of accuracy 1, at least 0.
    cap: of the likelihood, in (0, 1], taken before the mean.
    margin: by how much a likelihood may be below the mean, in [0, 1].

  Raises:
    UserError: if an option is outside its range.
  """
  inside = mask & tagged
  count = inside.sum(-1)
  total = jnp.where(inside, upcast(logprobs_average), 0.0).sum(-1)
  likelihood = jnp.exp(total / jnp.maximum(count, 1))
  accuracy = jnp.where(count > 0, upcast(reward_accuracy), 0.0)
  return bonus(
    accuracy, likelihood, coefficient=coefficient, cap=cap, margin=margin
  )
