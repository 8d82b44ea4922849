"""Tests of the reward that ignores how an answer is written."""

import numpy as np
import pytest

from mmrl.rewards import lenient, lenient_answer


@pytest.mark.parametrize(
  ("text", "tidied"),
  [
    ("red", "red"),
    (" Red \n one. ", "Red one"),
    ("\\boxed{\\text{red}}.", "red"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("\\boxed{1} or \\boxed{2}", "\\boxed{1} or \\boxed{2}"),
    ("$3$", "3"),
    ("$$3$$", "3"),
    ("$1 or $2", "$1 or $2"),
    ("\\(x\\)", "x"),
    ("**B**", "B"),
    ("“red”", "red"),
    ("ｒｅｄ", "red"),
    ("−1–2", "-1-2"),
    ("?!", "?!"),
    (".5", ".5"),
    ("", ""),
  ],
)
def test_tidy(text, tidied):
  assert lenient.tidy(text) == tidied
  assert lenient.tidy(tidied) == tidied


@pytest.mark.parametrize(
  ("given", "right", "equal"),
  [
    ("RED", "red", 1),
    ("STRASSE", "straße", 1),
    ("red", "['red', 'crimson']", 1),
    ("Crimson.", '["red", "crimson"]', 1),
    ("blue", "['red', 'crimson']", 0),
    ("[1, 2]", "[1, 2]", 1),
    ("[x", "[x]", 0),
    ("[x]", "[x]", 1),
    ("[]", "[]", 1),
    ("redd", "red", 0),
    ("red blue", "redblue", 0),
    ("3.0", "3", 0),
  ],
)
def test_same(given, right, equal):
  assert lenient.same(given, right) == equal


def test_of_a_batch():
  texts = [["<answer>Red.</answer>", "red"], ["<answer>red</answer>"] * 2]
  found = lenient_answer(texts, ["red", "<answer>blue</answer>"])
  np.testing.assert_array_equal(found, [[1, 0], [0, 0]])
  assert found.dtype == np.float32
