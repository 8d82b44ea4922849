"""Tests of the reward of a choice."""

import numpy as np
import pytest

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
