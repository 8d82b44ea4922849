"""Answers from the text of a question alone: a guesser's, and a model's."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from mmrl import build
from mmrl.data import Example
from mmrl.data.sources import paths_of
from mmrl.worlds import items

# Questions that a guesser of choices is made from, at most.
_KNOWN = 2000


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


def constants(examples: Sequence[Example]) -> list[str]:
  """Answers all questions of a kind alike: with what is right most often.

  It is the best constant answer, known only from what is right. There is none
  where a question has no right answer.
  """
  kinds: dict[str, collections.Counter[str]]
  kinds = collections.defaultdict(collections.Counter)
  for one in examples:
    if one.answer is None:
      return []
    kinds[one.kind][one.answer] += 1
  return [kinds[one.kind].most_common(1)[0][0] for one in examples]


def chosen(
  known: Iterable[items.Asked], asked: Sequence[items.Asked]
) -> list[str]:
  """Chooses without looking: letters of what is right most often, by kind.

  It tells choices by their texts, as letters are in random order; so of
  questions that all ask the same it is the best constant answer.

  Args:
    known: questions to train on, the first 2,000 of which are read.
    asked: questions to answer, with choices.
  """
  kinds: dict[str, list[items.Asked]] = collections.defaultdict(list)
  for one in itertools.islice(known, _KNOWN):
    kinds[one.kind].append(one)
  guessers = {kind: items.guesser(found) for kind, found in kinds.items()}
  letters = []
  for one in asked:
    guess = guessers[one.kind](one) if one.kind in guessers else one.choices[0]
    letters.append("ABCDE"[one.choices.index(guess)])
  return letters


class WithoutPictures:
  """A benchmark's questions, asked without their pictures and videos.

  What a model scores so it knows from the texts alone.

  Attributes:
    paths: data files of the benchmark.
    asks: see `contract.Benchmark`.
  """

  def __init__(self, of: Any):
    """Takes the benchmark."""
    self._of = of
    self.asks = getattr(of, "asks", {})
    self.paths = paths_of(of)
    self.grade, self.summarise = of.grade, of.summarise
    self.baseline = of.baseline

  def __len__(self) -> int:
    return len(self._of)

  def __getitem__(self, index: int) -> Example:
    example = self._of[index]
    messages = [
      one if isinstance(one["content"], str) else one | {"content": _texts(one)}
      for one in example.messages
    ]
    return dataclasses.replace(example, messages=messages)


def _texts(message: dict) -> list[dict]:
  return [part for part in message["content"] if part["type"] == "text"]


def without_pictures(*, of: Mapping[str, Any], field: str) -> WithoutPictures:
  """Builds a benchmark that asks another one's questions blind.

  Args:
    of: spec of the other benchmark.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  # The package exports this function.
  from mmrl import benchmarks

  where = f"{field}.of"
  return WithoutPictures(build.construct(benchmarks, of, where, field=where))
