"""EgoReasoner's rewards: whether a chain of thought agrees with the scene.

    r = accuracy + 0.5 grounding + 0.5 logic + 0.1 structure

are `first_option`, `chain_steps` (grounding and logic), `chain_structure`.
`times: ("accuracy",)` of `chain_steps` is the gate on accuracy.

Reference: arXiv 2603.06561. Reconstructed: formulas and weights; see
`mmrl.chains`.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, Literal

from jaxtyping import Float
import numpy as np

from mmrl.chains import comparing, parsing, writing
from mmrl.errors import UserError
from mmrl.marks import marked

Part = Literal["grounding", "logic"]


def chain_structure(
  text: Sequence[Sequence[str]],
) -> Float[np.ndarray, "P G"]:
  """Rewards one thought and one answer block with an option, with 1.

  Each tag occurs once, and nothing but white space is around; others have 0.
  """
  found = [[parsing.parse_chain(one).formed for one in group] for group in text]
  return np.array(found, np.float32).reshape(len(text), -1)


def _values(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  score: Callable[[float | None, float | None], float],
  tau: float,
) -> Float[np.ndarray, "P G"]:
  """Scores grounding and logic of every chain."""
  rows = []
  for group, one in zip(text, example, strict=True):
    task, facts = one.kind, one.extra
    if task not in writing.TEMPLATES or "choices" not in facts:
      found = f"kind {task!r:.80}"
      if task in writing.TEMPLATES:
        found = "none"
      raise UserError(
        f"{one.name}: expected a question with choices, of a kind of"
        f" {', '.join(writing.TEMPLATES)}, found {found}; take questions of"
        " Kitchens or HdEpic"
      )
    row = []
    for chain in map(parsing.parse_chain, group):
      grounded = comparing.grounding(task, chain, facts, tau)
      logical = comparing.logic(task, chain, facts, facts["choices"])
      row.append(score(grounded, logical))
    rows.append(row)
  return np.array(rows, np.float32).reshape(len(text), -1)


def _check(
  *, grounding: float = 0.5, logic: float = 0.5, tau: float = 2.0
) -> None:
  for name, value in (("grounding", grounding), ("logic", logic)):
    if not 0 <= value <= 1:
      raise UserError(f"{name}: expected a weight in [0, 1], found {value}")
  if not 0 < tau < math.inf:
    raise UserError(f"tau: expected seconds above 0, found {tau}")


@marked(
  check=_check,
  needs_extra=("choices",),
  needs_kinds=tuple(writing.TEMPLATES),
  hint=(
    "it reads lines such as Event: 0:43 open or Count: 3 inside of <think> and"
    " </think>: teach the policy to write them first"
    " (experiments/egoreasoner.py)"
  ),
)
def chain_steps(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  *,
  grounding: float = 0.5,
  logic: float = 0.5,
  tau: float = 2.0,
) -> Float[np.ndarray, "P G"]:
  """Rewards chains that name what is there, when it is, and are consistent.

      grounding * (agreement of names and times) + logic * (consistency)

  Where the facts of a question don't tell one of the two, the other has the
  weight of both; where they tell neither it is 0.

  Args:
    text: P lists of G answers.
    example: the questions (`mmrl.data.Example`): a task of
      `chains.writing.TEMPLATES` as `kind`, and in `extra` "choices" and what is
      known of `chains.writing.FACTS`.
    grounding, logic: weights, in [0, 1].
    tau: seconds in which the agreement of a time falls to 1 / e.

  Raises:
    UserError: naming a question of another kind or without choices; or an
      option outside its range.
  """
  _check(grounding=grounding, logic=logic, tau=tau)

  def score(grounded: float | None, logical: float | None) -> float:
    return comparing.steps(grounded, logical, (grounding, logic))

  return _values(text, example, score, tau)


def _check_part(*, part: Part, tau: float = 2.0) -> None:
  del part  # One of its values, as its type says.
  _check(tau=tau)


@marked(
  check=_check_part,
  needs_extra=("choices",),
  needs_kinds=tuple(writing.TEMPLATES),
)
def chain_part(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  *,
  part: Part,
  tau: float = 2.0,
) -> Float[np.ndarray, "P G"]:
  """Measures one of the two parts of `chain_steps`, to be logged (weight 0).

  Args:
    text, example, tau: see `chain_steps`.
    part: which part.

  Returns:
    In [0, 1]; NaN, for weight 0, where the facts don't tell it.

  Raises:
    UserError: see `chain_steps`.
  """

  def score(grounded: float | None, logical: float | None) -> float:
    found = grounded if part == "grounding" else logical
    return math.nan if found is None else found

  return _values(text, example, score, tau)
