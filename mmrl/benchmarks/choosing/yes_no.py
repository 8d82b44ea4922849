"""Questions that are answered yes or no, such as POPE's.

Reference: POPE, arXiv 2305.10355; the parsers after Causal-HalBench, arXiv
2511.10268.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any, Literal

import numpy as np

from mmrl import data as data_lib
from mmrl.benchmarks.chosen import Chosen, check_count
from mmrl.benchmarks.contract import Answer, Values, by_kind
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rewards.answer import extract, label

Parser = Literal["first", "contains"]
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
# What is counted of each question.
_COUNTS = ("asked", "right", "said", "there", "both")


def verdict(text: str, parser: Parser = "first") -> str | None:
  """Reads an answer: "yes", "no", or None where it can't be told.

  It is read from the answer block; from what follows the thought where there is
  no block.

  Args:
    text: what the model wrote.
    parser: "first" is the first whole word of the two, in any case. "contains"
      is yes where the letters "yes" are anywhere, else no, as the code of
      Causal-HalBench has it: "No, but its eyes are open" is a yes, and an empty
      text a no.
  """
  found = extract(text)
  said = text.rpartition("</think>")[2] if found is None else found
  if parser == "contains":
    return "yes" if "yes" in said.lower() else "no"
  word = _VERDICT.search(said)
  return word[1].lower() if word else None


def numbers(values: Values) -> dict[str, np.ndarray]:
  """Computes shares from counts, of all questions and of each kind.

      accuracy = right / asked          yes_rate = said yes / asked
      precision = said yes, rightly / said yes
      recall = said yes, rightly / yes is right
      f1 = 2 said yes, rightly / (said yes + yes is right)

  An answer that is neither counts as wrong, and not as a yes. Precision, recall
  and F1 are 0 of nothing.
  """
  total = {name: np.nansum(x, -1) for name, x in values.items()}
  found: dict[str, np.ndarray] = {}
  for name, asked in total.items():
    start, slash, kind = name.partition("/")
    if start != "asked":
      continue
    right, said, there, both = (
      total[f"{one}{slash}{kind}"] for one in _COUNTS[1:]
    )
    shares = {
      "accuracy": _share(right, asked, np.nan),
      "precision": _share(both, said),
      "recall": _share(both, there),
      "f1": _share(2 * both, said + there),
      "yes_rate": _share(said, asked, np.nan),
    }
    found |= {f"{one}{slash}{kind}": x for one, x in shares.items()}
  return found


def _share(part: Any, whole: Any, nothing: float = 0.0) -> Any:
  return np.where(whole > 0, part / np.maximum(whole, 1), nothing)


class YesNo(Chosen):
  """Questions that are items of their own, answered yes or no."""

  summarise = staticmethod(numbers)

  def __init__(self, source: Any, indices: Sequence[int], parser: Parser):
    """Chooses questions of a source.

    Args:
      source: of `mmrl.data`; its right answers are yes and no.
      indices: of the questions that are asked.
      parser: see `verdict`.
    """
    super().__init__(source, indices)
    self._parser: Parser = parser

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Counts right answers, and those that say yes; see `numbers`."""
    said = [verdict(answer.text, self._parser) for answer in answers]
    return self._counts(said, examples)

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Grades the same answer to all: the more frequent one, yes if both are."""
    del train
    yes = [right(example.answer) == "yes" for example in examples]
    constant = "yes" if 2 * sum(yes) >= len(yes) else "no"
    return self._counts([constant] * len(examples), examples)

  def _counts(
    self, said: Sequence[str | None], examples: Sequence[Example]
  ) -> Values:
    wanted = [right(example.answer) for example in examples]
    yes = np.array([one == "yes" for one in said], float)
    there = np.array([one == "yes" for one in wanted], float)
    same = [one == other for one, other in zip(said, wanted, strict=True)]
    counts = (np.ones(len(said)), np.array(same, float), yes, there)
    found = dict(zip(_COUNTS, (*counts, yes * there), strict=True))
    return by_kind(found, [example.kind for example in examples])


def right(answer: str | None) -> str | None:
  """Returns a right answer as "yes" or "no"; None where it is neither."""
  word = label(answer or "").lower().rstrip(".")
  return word if word in ("yes", "no") else None


def source(data: Mapping[str, Any], field: str) -> Any:
  """Makes a source of questions that are answered yes or no.

  Args:
    data: spec of `mmrl.data.sources`.
    field: of the benchmark in the config, for errors.

  Raises:
    UserError: naming the field, or a question whose right answer is neither.
  """
  made = data_lib.sources.make(data, f"{field}.data")
  for number, (_, answer) in enumerate(made.pairs(), 1):
    if right(answer) is None:
      raise UserError(
        f"{field}.data: expected yes or no as the right answer of each"
        f" question, found {answer!r:.80} in question {number}; take it out, or"
        ' use {"name": "questions"}'
      )
  if not len(made):
    raise UserError(f"{field}.data: expected at least one question, found none")
  return made


def yes_no(
  *,
  data: Mapping[str, Any],
  parser: Parser = "first",
  questions: int = 0,
  field: str,
) -> YesNo:
  """Builds a benchmark of questions that are answered yes or no.

  Args:
    data: spec of `mmrl.data.sources`; kinds such as POPE's "random", "popular"
      and "adversarial" have numbers of their own.
    parser: "first", or "contains", see `verdict`.
    questions: how many, spread evenly over the source; 0 for all.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config that is wrong, or a question whose
      right answer is neither.
  """
  check_count(questions, "questions", f"{field}.questions")
  made = source(data, field)
  indices = data_lib.spread(len(made), questions or len(made))
  return YesNo(made, indices, parser)
