"""Rewards of answers that are texts, by how many of their words are right.

Reference: the OCR and free-form rewards of Video-R1, arXiv 2503.21776, as in
its published code.
"""

from collections.abc import Sequence
import functools
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl.errors import not_installed
from mmrl.rewards.answer import score
from mmrl.rewards.marks import marked


def errors(given: Sequence[str], right: Sequence[str]) -> int:
  """Counts the words to insert, remove or replace to make two texts equal."""
  row = list(range(len(right) + 1))
  for i, word in enumerate(given, 1):
    diagonal, row[0] = row[0], i
    for j, other in enumerate(right, 1):
      replaced = diagonal + (word != other)
      diagonal = row[j]
      row[j] = min(row[j] + 1, row[j - 1] + 1, replaced)
  return row[-1]


def word_error_rate(
  text: Sequence[Sequence[str]], answer: Sequence[str]
) -> Float[np.ndarray, "P G"]:
  """Rewards texts by their word error rate.

      R = max(0, 1 - errors / number of right words)

  Words are parted by white space; case and punctuation count.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.
  """

  def rate(given: str, right: str) -> float:
    words = right.split()
    return max(0.0, 1 - errors(given.split(), words) / len(words))

  return score(text, answer, rate)


@functools.cache
def _scorer() -> Any:
  """Makes the scorer of rouge-score."""
  try:
    from rouge_score import rouge_scorer
  except ImportError as error:
    raise not_installed("the package rouge-score", "rouge") from error
  names = ["rouge1", "rouge2", "rougeL"]
  return rouge_scorer.RougeScorer(names, use_stemmer=True)


@marked(check=_scorer)
def rouge(
  text: Sequence[Sequence[str]], answer: Sequence[str]
) -> Float[np.ndarray, "P G"]:
  """Rewards texts by the mean F of ROUGE-1, ROUGE-2 and ROUGE-L, of stems.

  `pip install -e '.[rouge]'` brings what computes it. Case and punctuation
  don't count. A single word has no pair of words, so that it gets at most 2/3;
  texts in scripts other than Latin have no words there and get 0.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.

  Raises:
    UserError: if rouge-score isn't installed.
  """
  scorer = _scorer()

  def mean(given: str, right: str) -> float:
    found = scorer.score(right, given).values()
    return sum(one.fmeasure for one in found) / len(found)

  return score(text, answer, mean)
