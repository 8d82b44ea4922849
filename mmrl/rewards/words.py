"""Rewards of answers that are texts, by how many of their words are right.

Reference of all but `meteor`: the OCR and free-form rewards of Video-R1, arXiv
2503.21776, as in its published code.
"""

from collections.abc import Sequence
import functools
import types
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError, not_installed
from mmrl.marks import marked
from mmrl.rewards.answer import score


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


@functools.cache
def _meteor(synonyms: bool) -> Any:
  """Makes NLTK's measure of (right words, given words).

  Without synonyms WordNet isn't asked, which NLTK doesn't ship.
  """
  try:
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import single_meteor_score
  except ImportError as error:
    raise not_installed("the package nltk", "meteor") from error
  if not synonyms:
    nothing = types.SimpleNamespace(synsets=lambda word: [])
    return functools.partial(single_meteor_score, wordnet=nothing)
  try:
    wordnet.ensure_loaded()
  except LookupError as error:
    raise UserError(
      "expected NLTK's WordNet for synonyms, found none; run python -m"
      " nltk.downloader wordnet, or without network copy what that brings"
      " elsewhere to FOLDER/corpora/wordnet.zip and set NLTK_DATA=FOLDER, or"
      " set synonyms=False"
    ) from error
  return functools.partial(single_meteor_score, wordnet=wordnet)


def _check_meteor(*, synonyms: bool = True) -> None:
  _meteor(synonyms)


@marked(check=_check_meteor)
def meteor(
  text: Sequence[Sequence[str]], answer: Sequence[str], *, synonyms: bool = True
) -> Float[np.ndarray, "P G"]:
  """Rewards texts by METEOR: words, stems and synonyms, and their order.

  It is 1 for the right answer itself, and for one word of letters that the
  right answer contains. Case doesn't count; words are parted by white space.
  With several right answers, a full and a short one, the best counts.
  `pip install -e '.[meteor]'` brings what computes it.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.
    synonyms: whether words of one meaning match, by NLTK's WordNet, which
      `python -m nltk.downloader wordnet` brings.

  Raises:
    UserError: if nltk or its WordNet isn't installed.

  Reference: the accuracy of SAYO, arXiv 2602.08241, as in its published code.
  Differs from it: a text without a closed block has 0 instead of being read
  whole; punctuation isn't parted from words, for which NLTK wants more data;
  equal texts have 1 where there is a short answer as well, and a word may be
  contained in the short one.
  """
  measure = _meteor(synonyms)

  def one(given: str, right: str) -> float:
    given, right = given.casefold(), right.casefold()
    if given == right or (given.isalpha() and given in right):
      return 1.0
    return measure(right.split(), given.split())

  return score(text, answer, one)
