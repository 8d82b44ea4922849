"""MME: two questions about each picture, answered yes or no, by subset.

Reference: arXiv 2306.13394.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import data as data_lib
from mmrl.benchmarks.choosing import yes_no
from mmrl.benchmarks.chosen import Chosen, check_count
from mmrl.benchmarks.contract import Answer, Values
from mmrl.data import Example
from mmrl.errors import UserError


def numbers(values: Values) -> dict[str, np.ndarray]:
  """Computes MME's numbers; an item is a picture.

      accuracy = right answers / questions
      accuracy_plus = pictures with two right answers / pictures
      score = 100 (accuracy + accuracy_plus)

  of each subset, and `score`, their sum: 200 for each at most. A subset of no
  pictures has 0. The code of VIC (arXiv 2411.12591) divides the second by the
  number of questions, which is half of it.
  """
  found: dict[str, np.ndarray] = {}
  scores = []
  for name, right in values.items():
    subset = name.removeprefix("right/")
    pictures = np.maximum((~np.isnan(right)).sum(-1), 1)
    accuracy = np.nansum(right, -1) / (2 * pictures)
    plus = (right == 2).sum(-1) / pictures
    scores.append(100 * (accuracy + plus))
    found |= {
      f"score/{subset}": scores[-1],
      f"accuracy/{subset}": accuracy,
      f"accuracy_plus/{subset}": plus,
    }
  total = {"score": np.sum(scores, 0)} | found
  return {name: np.asarray(x) for name, x in total.items()}


class Mme(Chosen):
  """Pairs of questions about one picture each."""

  summarise = staticmethod(numbers)

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Counts right answers about each picture, by subset; see `numbers`.

    Raises:
      UserError: naming two questions that aren't about one picture.
    """
    return _counts([yes_no.verdict(one.text) for one in answers], examples)

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Grades yes to all, which is right about one of two."""
    del train
    return _counts(["yes"] * len(examples), examples)


def _counts(said: Sequence[str | None], examples: Sequence[Example]) -> Values:
  for one, other in zip(examples[::2], examples[1::2], strict=True):
    if one.kind != other.kind or not _same(one, other):
      raise UserError(
        f"expected {one.name} and {other.name} to be about one picture of one"
        " subset, found two; put MME's two questions of each picture one after"
        " the other"
      )
  right = np.array(
    [
      one == yes_no.right(example.answer)
      for one, example in zip(said, examples, strict=True)
    ],
    float,
  )
  both = right.reshape(-1, 2).sum(-1)
  subsets = np.array([example.kind for example in examples[::2]])
  return {
    f"right/{subset}": np.where(subsets == subset, both, np.nan)
    for subset in sorted(set(subsets))
  }


def _same(one: Example, other: Example) -> bool:
  """Tells whether two questions show the same picture, or file."""
  if one.picture is None or other.picture is None:
    return False
  return np.array_equal(one.picture["image"], other.picture["image"])


def mme(*, data: Mapping[str, Any], pictures: int = 0, field: str) -> Mme:
  """Builds MME from its questions, two about each picture.

  Args:
    data: spec of `mmrl.data.sources`, such as VLMEvalKit's MME.tsv; the kind of
      a question is its subset, its right answer yes or no.
    pictures: how many, spread evenly over the source; 0 for all.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config that is wrong, or a question whose
      right answer is neither.
  """
  check_count(pictures, "pictures", f"{field}.pictures")
  source = yes_no.source(data, field)
  if len(source) % 2:
    raise UserError(
      f"{field}.data: expected two questions about each picture, found"
      f" {len(source)} questions"
    )
  total = len(source) // 2
  chosen = data_lib.spread(total, pictures or total)
  return Mme(source, [q for i in chosen for q in (2 * i, 2 * i + 1)])
