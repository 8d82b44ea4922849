"""Tests of the reward of a choice."""

import random

import numpy as np
import pytest

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rewards import choice, choices

LETTERS = {
  "B": [
    *("B", "b", "(B)", "[B]", "{B}", "B.", "B)", "B:", "**B**", "$B$"),
    *("\\boxed{B}", "Answer: B", "answer B", "The answer is (B).", "Option B"),
    *("The correct answer is: B. red", "B) red", "B. red", "B: red", "(B) red"),
    *("B) I'd say red", "B. a U.S. flag", "(B): red"),
  ],
  None: [
    *("A or B", "A, B", "A and B", "(A) (B)", "(A) and (B)", "A. or B."),
    *("B) red or C) blue", "B. red, C: blue", "Answer: B or C", "AB", "A/B"),
    *("a cat", "I think B", "U.S.", "red", "", "1", "(1)", "is it B"),
  ],
}


@pytest.mark.parametrize(
  ("text", "letter"),
  [(text, letter) for letter, texts in LETTERS.items() for text in texts],
)
def test_letter(text, letter):
  assert choices.letter(text) == letter


def test_of_a_batch():
  texts = [["<answer>B) red</answer>", "<answer>C</answer>", "B"]] * 2
  found = choice(texts, ["(B) blue", "c"])
  np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0]])
  assert found.dtype == np.float32


def test_what_is_no_choice_is_never_right():
  assert choice([["<answer>red</answer>"]], ["B"]) == 0
  assert choice([["<answer>red</answer>"]], [""]) == 0


def test_a_right_answer_without_a_letter_is_refused():
  with pytest.raises(UserError, match="letter of a choice .* found 'red'; wri"):
    choice([["<answer>B</answer>"]], ["red"])


def first(text, right="<answer>B.</answer>", strict=True):
  one = Example("file:3", "?", [], right)
  return float(
    choices.first_option([[text]], [right], [one], strict=strict)[0, 0]
  )


@pytest.mark.parametrize(
  ("text", "loose", "strict"),
  [
    ("<think>x</think><answer>B. open tap</answer>", 1, 1),
    ("<think>x</think><answer>\n B\n</answer>", 1, 1),
    ("<answer>Bottle</answer>", 1, 0),
    ("<answer>(B)</answer>", 0, 0),
    ("<answer>b</answer>", 0, 0),
    ("<answer></answer>", 0, 0),
    ("<answer>B", 0, 0),
    ("B. open tap", 0, 0),
    ("", 0, 0),
    # The first pair of tags counts.
    ("<think>maybe <answer>A</answer></think><answer>B</answer>", 0, 0),
  ],
)
def test_first_option_golden(text, loose, strict):
  assert first(text, strict=False) == loose
  assert first(text, strict=True) == strict


@pytest.mark.parametrize(
  "right", ["F", "b", "(B)", "Bottle", "<answer></answer>"]
)
def test_other_options_are_refused_by_the_questions_name(right):
  with pytest.raises(
    UserError, match="^file:3: expected a letter A to E as right"
  ):
    first("<answer>B</answer>", right)


def test_any_text_has_a_first_option():
  pieces = ["<answer>", "</answer>", "<think>", "B", ".", "\n", "é", "\0", "<"]
  draw = random.Random(0)
  for _ in range(1000):
    text = "".join(draw.choices(pieces, k=draw.randrange(12)))
    assert first(text, strict=True) <= first(text, strict=False) <= 1
