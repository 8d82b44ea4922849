"""Answers from the text of a question alone, as good as such can be."""

import collections
from collections.abc import Iterable

from mmrl.data import Example


def guesses(
  pairs: Iterable[tuple[str, str]], examples: Iterable[Example]
) -> list[str]:
  """Answers each question without its picture.

  The answer is the most frequent one to the same text; for a text that isn't
  among the pairs, it is the most frequent of all.

  Args:
    pairs: (question, right answer) of the questions to train on, at least one.
    examples: questions to answer.
  """
  answers: dict[str, collections.Counter[str]]
  answers = collections.defaultdict(collections.Counter)
  overall: collections.Counter[str] = collections.Counter()
  for question, answer in pairs:
    answers[question][answer] += 1
    overall[answer] += 1
  # Not indexed, which would add a question that isn't there.
  found = (answers.get(example.question, overall) for example in examples)
  return [counts.most_common(1)[0][0] for counts in found]
