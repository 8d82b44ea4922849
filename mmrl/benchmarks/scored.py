"""Questions of a source, each answer scored by rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import build, marks, names, rewards
from mmrl import data as data_lib
from mmrl.benchmarks import blind
from mmrl.benchmarks.chosen import Chosen, check_count
from mmrl.benchmarks.contract import Answer, Values, by_kind, means
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rewards import needs
from mmrl.rollouts.answers import (
  READS_RIGHT,
  reads_texts,
  score,
  text_context,
)


class Questions(Chosen):
  """Questions that are items of their own, and what scores their answers.

  Where there are several kinds of questions, each score is also reported for
  each kind.

  Attributes:
    asks: see `Benchmark`.
  """

  summarise = staticmethod(means)

  def __init__(
    self,
    source: Any,
    indices: Sequence[int],
    scores: Mapping[str, build.Bound],
    field: str,
  ):
    """Chooses questions of a source.

    Args:
      source: of `mmrl.data`.
      indices: of the questions that are asked.
      scores: rewards that read texts, by the name of their score.
      field: of the config, for errors.
    """
    super().__init__(source, indices)
    self._scores, self._field = scores, field
    needs = {need for bound in scores.values() for need in bound.needs}
    self.asks: dict[str, Any] = dict.fromkeys(filter(_is_model, needs))

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Scores every answer, and again by the kind of its question.

    Of drawn questions there is besides "chance", the probability that a guess
    among the possible answers is right.

    Raises:
      UserError: naming the score and the question, if a score raises or isn't
        a number; it may be NaN for an answer that it doesn't apply to.
    """
    values = self._grade(self._scores, answers, examples)
    asked = [one.extra["asked"] for one in examples if one.extra.get("asked")]
    if not asked or len(asked) < len(examples):
      return values
    chance = {"chance": np.array([one.chance for one in asked])}
    return {**values, **by_kind(chance, [one.kind for one in examples])}

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Scores answers that are guessed from the questions' texts.

    By those scores that compare a text with what is right: a guess has neither
    a form nor a length of its own, and no model is asked about it.
    """
    own = {"length", "ended", *self.asks}
    scores = {
      name: bound
      for name, bound in self._scores.items()
      if READS_RIGHT & set(bound.needs) and not own & set(bound.needs)
    }
    if not scores or not (train is None or hasattr(train, "pairs")):
      return {}
    guesses = _guesses(train, examples)
    if not guesses:
      return {}
    # In either block that a score may look in.
    answers = [
      Answer(f"<answer>{guess}</answer>\\boxed{{{guess}}}", 0, True)
      for guess in guesses
    ]
    return self._grade(scores, answers, examples)

  def _grade(
    self,
    scores: Mapping[str, build.Bound],
    answers: Sequence[Answer],
    examples: Sequence[Example],
  ) -> Values:
    if not answers:
      return {name: np.zeros(0) for name in scores}
    context = text_context(
      examples,
      [[answer.text] for answer in answers],
      np.array([[answer.length] for answer in answers], np.int32),
      np.array([[answer.ended] for answer in answers], bool),
    )
    context |= self.asks
    values = {}
    for name, bound in scores.items():
      found = score(bound, context, nan=True)
      found = marks.where_applies(bound.function, found, examples)
      values[name] = found[:, 0].astype(np.float64)
    return by_kind(values, [example.kind for example in examples])


def _guesses(train: Any, examples: Sequence[Example]) -> list[str]:
  """Answers from the texts of questions; of choices where all have such.

  Where the questions to train on have none, choices are made from what is right
  most often among the questions themselves: the best constant answer.
  """
  found = [one.extra.get("asked") for one in examples]
  asked = [one for one in found if one is not None and one.choices]
  if asked and len(asked) == len(found):
    known = train.asked() if hasattr(train, "asked") else asked
    return blind.chosen(known, asked)
  if train is None:
    return blind.constants(examples)
  pairs = [(text, right) for text, right in train.pairs() if right is not None]
  return blind.guesses(pairs, examples) if pairs else []


def questions(
  *,
  data: Mapping[str, Any],
  scores: Mapping[str, Mapping[str, Any]],
  questions: int = 0,
  field: str,
) -> Questions:
  """Builds a benchmark of a source's questions.

  Args:
    data: spec of `mmrl.data.sources`.
    scores: specs of those `mmrl.rewards` that read texts, by name of the score.
    questions: how many, spread evenly over the source; 0 for all.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  check_count(questions, "questions", f"{field}.questions")
  if not scores:
    raise UserError(
      f"{field}.scores: expected at least one reward, found none; add one such"
      ' as {"accuracy": {"name": "exact_answer"}}'
    )
  bound = {
    name: _scorer(spec, f"{field}.scores.{name}")
    for name, spec in scores.items()
  }
  source = data_lib.sources.make(data, f"{field}.data")
  if not len(source):
    raise UserError(f"{field}.data: expected at least one question, found none")
  needs.require_all(bound.values(), source)
  indices = data_lib.spread(len(source), questions or len(source))
  return Questions(source, indices, bound, field)


def _is_model(name: str) -> bool:
  """Tells whether a name is that of a model that is asked."""
  return name.startswith("ask_")


def _scorer(spec: Mapping[str, Any], where: str) -> build.Bound:
  """Binds a reward that reads texts; which models there are is seen later."""
  function = build.lookup(rewards, spec, where)
  if not reads_texts(function):
    raise UserError(
      f"{where}: expected a reward that reads text, answer or example, found"
      f" {spec['name']}, which reads arrays on the devices"
    )
  provided = [*names.given(names.TEXTS), "ended"]
  provided += filter(_is_model, build.required(function))
  return build.bind(rewards, spec, where, provided=provided)
