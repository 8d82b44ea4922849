"""Answers without the picture."""

import pytest

from mmrl import data
from mmrl.benchmarks import blind


def examples(pairs):
  return [data.Example("", question, [], answer) for question, answer in pairs]


def test_guesses_by_hand():
  """a: mostly yes; b: mostly no; unseen c: the most frequent of all, yes."""
  train = [*[("a", "yes")] * 3, ("a", "no"), *[("b", "no")] * 2, ("b", "yes")]
  asked = examples([("a", "no"), ("b", ""), ("c", ""), ("c", "")])
  assert blind.guesses(train, asked) == ["yes", "no", "yes", "yes"]


def test_easy_vqa():
  train, test = (data.EasyVQA(split=split) for split in ("train", "test"))
  asked = examples(test.pairs())
  guesses = blind.guesses(train.pairs(), asked)
  right = [x == y.answer for x, y in zip(guesses, asked, strict=True)]
  assert sum(right) / len(right) == pytest.approx(0.670, abs=5e-4)
