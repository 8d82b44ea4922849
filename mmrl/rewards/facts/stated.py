"""Rewards of the visual facts that an answer states: Perception-R1.

A question's facts are in its `extra`, as `facts`: sentences that are true of
its picture and that its answer depends on (`Scenes`, the key `facts` of a row).

Reference: arXiv 2506.07218 (not 2504.07954, which has the same name), and its
published code.
Differs from it: where a request fails, the reward is 0, and the run goes on.
"""

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.facts import judges, verdicts
from mmrl.rewards.facts.verdicts import Denominator, Verdicts

Without = Literal["refuse", "zero"]
_HINT = (
  "no answer states a fact of its question: let the prompt ask to say what is"
  " seen"
)


def _has_facts(example: Any) -> bool:
  return bool(example.extra.get("facts"))


def _needs(*, without: Without = "refuse", **_: Any) -> tuple[str, ...]:
  return ("facts",) if without == "refuse" else ()


def _judged(
  judge: judges.Judge,
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  without: Without,
) -> list[list[tuple[int, Verdicts | None]]]:
  """Asks about all answers in one call; returns (number of facts, verdicts).

  Answers to questions without facts aren't asked about.
  """
  facts = [tuple(one.extra.get("facts", ())) for one in example]
  for one, found in zip(example, facts, strict=True):
    if not found and without == "refuse":
      raise UserError(
        f"{one.name}: expected 'facts' of every question, found none; add them"
        ' to the data, or set without="zero"'
      )
  places = [
    (p, g)
    for p, group in enumerate(text)
    for g in range(len(group))
    if facts[p]
  ]
  given = judge([(facts[p], text[p][g]) for p, g in places])
  by_place = dict(zip(places, given, strict=True))
  return [
    [(len(facts[p]), by_place.get((p, g))) for g in range(len(group))]
    for p, group in enumerate(text)
  ]


def _rates(
  judge: judges.Judge,
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  without: Without,
  denominator: Denominator,
) -> Float[np.ndarray, "P G"]:
  found = [
    [verdicts.hit_rate(given, count, denominator) for count, given in group]
    for group in _judged(judge, text, example, without)
  ]
  return np.array(found, np.float32).reshape(len(text), -1)


def _check_flip(*, flip: float = 0.0, seed: int = 0, **_: Any) -> None:
  judges.Noisy(judges.substring, flip, seed)


@marked(check=_check_flip, needs_extra=_needs, hint=_HINT, applies=_has_facts)
def stated_facts(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  *,
  flip: float = 0.0,
  seed: int = 0,
  without: Without = "refuse",
) -> Float[np.ndarray, "P G"]:
  """Rewards the share of facts that stand in an answer word by word.

  No model is asked; see `judges.substring`.

  Args:
    text: P lists of G answers.
    example: the questions (`mmrl.data.Example`).
    flip: probability that the verdict on a fact is turned over, in [0, 1].
    seed: of these flips.
    without: what to do about questions without facts: "refuse" the data, or
      "zero" for all their answers, which count in no metric.

  Returns:
    In [0, 1].
  """
  judge = judges.Noisy(judges.substring, flip, seed)
  return _rates(judge, text, example, without, "all")


def _check_length(*, length: int = 512, **_: Any) -> None:
  if type(length) is not int or length < 1:
    raise UserError(f"length: expected at least 1, found {length!r:.80}")


@marked(check=_check_length, needs_extra=_needs, hint=_HINT, applies=_has_facts)
def judged_facts(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  ask_judge: judges.Ask,
  *,
  length: int = 512,
  denominator: Denominator = "returned",
  without: Without = "refuse",
) -> Float[np.ndarray, "P G"]:
  """Rewards the share of facts that an answer states, as model `judge` says.

  All answers are asked about in one call; see `config.models` for a model that
  is asked. It isn't told the question, nor shown the picture: it compares
  texts. A weak judge is gamed: the paper's of 7B ended below the untrained
  model.

  Args:
    text: P lists of G answers.
    example: the questions (`mmrl.data.Example`).
    ask_judge: asks the model.
    length: most tokens of its reply.
    denominator: see `verdicts.hit_rate`.
    without: what to do about questions without facts: "refuse" the data, or
      "zero" for all their answers, which count in no metric, as published.

  Returns:
    In [0, 1]; 0 where the judge didn't answer.
  """
  judge = judges.Model(ask_judge, length)
  return _rates(judge, text, example, without, denominator)


@marked(check=_check_length)
def judged_share(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  ask_judge: judges.Ask,
  *,
  length: int = 512,
) -> Float[np.ndarray, "P G"]:
  """Computes on which share of the facts the judge gave a verdict, weight 0.

  What `judged_facts` has asked in the same step isn't asked again.

  Returns:
    In [0, 1], 0 where it didn't answer; NaN of a question without facts.
  """
  judge = judges.Model(ask_judge, length)
  found = [
    [min(len(given or ()) / n, 1.0) if n else np.nan for n, given in group]
    for group in _judged(judge, text, example, "zero")
  ]
  return np.array(found, np.float32).reshape(len(text), -1)
