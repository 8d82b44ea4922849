"""Tests of the rewards of texts by their words."""

import sys
import types

import numpy as np
import pytest

from experiments import sayo
from mmrl import build, rewards
from mmrl.errors import UserError
from mmrl.rewards import rouge, word_error_rate, words

# Their own stems: NLTK asks for synonyms of stems.
AUTOS = ("car", "auto")


@pytest.mark.parametrize(
  ("given", "right", "count"),
  [
    ("a b c", "a b c", 0),
    ("a c", "a b c", 1),
    ("a b x c", "a b c", 1),
    ("a x c", "a b c", 1),
    ("b a", "a b", 2),
    ("", "a b", 2),
    ("a b", "", 2),
    ("kitten", "sitting", 1),
    ("x a b c d", "a b c d y", 2),
  ],
)
def test_errors(given, right, count):
  assert words.errors(given.split(), right.split()) == count
  assert words.errors(right.split(), given.split()) == count


@pytest.mark.parametrize(
  ("given", "value"),
  [
    ("a b c d", 1),
    ("a  b\nc d", 1),
    ("a b c", 0.75),
    ("A b c d", 0.75),
    ("x y z w v u t", 0),  # more errors than words
  ],
)
def test_word_error_rate(given, value):
  found = word_error_rate([[f"<answer>{given}</answer>"]], ["a b c d"])
  assert found == value and found.dtype == np.float32


def test_nothing_is_never_matched():
  texts = [["", "<answer></answer>", "<answer>a</answer>"]]
  for right in ("", "  "):
    np.testing.assert_array_equal(word_error_rate(texts, [right]), [[0, 0, 0]])


@pytest.mark.parametrize(
  ("given", "right", "value"),
  [
    ("a red circle", "a red circle", 1),
    ("A red circle.", "a red circle", 1),
    ("a red circles", "a red circle", 1),  # stems
    ("blue", "a red circle", 0),
    # By hand: unigrams 2 of 3 and 2 of 2, F 0.8; bigrams 1 of 2 and 1 of 1,
    # F 2/3; the longest common subsequence 2, F 0.8.
    ("a red", "a red circle", (0.8 + 2 / 3 + 0.8) / 3),
  ],
)
def test_rouge(given, right, value):
  pytest.importorskip("rouge_score")
  found = rouge([[f"<answer>{given}</answer>", given]], [right])
  np.testing.assert_allclose(found, [[value, 0]], rtol=1e-6)


def test_a_missing_package_is_refused_with_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "rouge_score", None)
  words._scorer.cache_clear()
  with pytest.raises(
    UserError, match=r"pip install -e '.\[rouge\]' in your clone"
  ):
    rouge.check()


def test_meteor():
  """One of three words in place: precision 1, recall 1/3, one chunk.

  F = 10 P R / (R + 9 P) = 0.357143, penalty 0.5 (1 chunk / 1 word)^3.
  """
  pytest.importorskip("nltk")

  def found(given, right):
    texts = [[f"<answer>{given}</answer>"]]
    return float(words.meteor(texts, [right], synonyms=False)[0, 0])

  assert found("A red Circle", "a red circle") == 1
  # Of letters only, and contained in the right answer.
  assert found("RED", "a red circle") == 1
  assert found("ed", "a red circle") == 1
  assert found("2", "2 red circles") == pytest.approx(0.357143 / 2, abs=1e-6)
  assert found("blue", "a red circle") == 0
  # Stems are alike: two of two, one chunk, 1 - 0.5 / 2^3.
  assert found("red circles", "red circle") == pytest.approx(0.9375)


def test_meteor_says_what_it_lacks(monkeypatch):
  words._meteor.cache_clear()
  monkeypatch.setitem(sys.modules, "nltk", None)
  monkeypatch.setitem(sys.modules, "nltk.corpus", None)
  with pytest.raises(
    UserError, match="x: expected the package nltk, found none"
  ):
    build.resolve(rewards, {"name": "meteor"}, "x")


@pytest.fixture
def nltk():
  """NLTK, and no measure that an earlier test has made."""
  found = pytest.importorskip("nltk")
  words._meteor.cache_clear()
  yield found
  words._meteor.cache_clear()


def test_meteor_says_that_wordnet_is_missing(nltk, monkeypatch):
  monkeypatch.setattr(nltk.data, "path", [])
  with pytest.raises(
    UserError,
    match="x: expected NLTK's WordNet for synonyms, found none; run python -m"
    " nltk.downloader wordnet, or without network .* NLTK_DATA=FOLDER, .*"
    " synonyms=False$",
  ):
    build.resolve(rewards, {"name": "meteor"}, "x")
  build.resolve(rewards, {"name": "meteor", "synonyms": False}, "x")


def test_meteor_of_synonyms(nltk, monkeypatch):
  """Two words of one meaning match: precision 1, recall 1, one chunk of two."""
  from nltk import corpus

  class WordNet:
    def ensure_loaded(self):
      pass

    def synsets(self, word):
      lemmas = [types.SimpleNamespace(name=lambda one=o: one) for o in AUTOS]
      one = types.SimpleNamespace(lemmas=lambda: lemmas)
      return [one] if word in AUTOS else []

  monkeypatch.setattr(corpus, "wordnet", WordNet())
  texts = [["<answer>red car</answer>", "<answer>red cat</answer>"]]
  with_synonyms = words.meteor(texts, ["red auto"])[0]
  without = words.meteor(texts, ["red auto"], synonyms=False)[0]
  assert with_synonyms[0] == pytest.approx(1 - 0.5 / 2**3)
  # One of two, of either: P = R = F = 1/2, penalty 1/2.
  assert with_synonyms[1] == without[0] == without[1] == pytest.approx(0.25)


def test_the_arm_of_sayo_says_what_it_lacks(nltk, monkeypatch):
  monkeypatch.setattr(nltk.data, "path", [])
  config = sayo.get_config("runlocal,meteor")
  spec = config.rewards.accuracy.to_dict()
  assert spec.pop("weight") == 1.0
  with pytest.raises(UserError, match="expected NLTK's WordNet"):
    build.resolve(rewards, spec, "config.rewards.accuracy")
  build.resolve(rewards, spec | {"synonyms": False}, "config.rewards.accuracy")
