"""Tests of the verifiable rewards."""

import numpy as np
import pytest

from mmrl.rewards import answer

THOUGHT = "<think>x</think>"
# Output; accuracy; format with a thought; format of a bare answer. Gold is B.
TABLE = [
  (f"{THOUGHT}\n<answer> B </answer>\n", 1, 1, 0),
  (f"{THOUGHT}<answer>C</answer>", 0, 1, 0),
  ("<answer>B</answer>", 1, 0, 1),
  (f"{THOUGHT}<answer>B</answer> done", 1, 0, 0),
  (f"{THOUGHT}<answer>B</answer><answer>C</answer>", 1, 0, 0),
  (f"{THOUGHT}<answer>B", 0, 0, 0),
  (f"{THOUGHT}<answer></answer>", 0, 1, 0),
  ("B", 0, 0, 0),
  ("", 0, 0, 0),
  # Beyond the table of the paper's notes.
  (f"{THOUGHT}<answer>b</answer>", 0, 1, 0),  # case counts
  (f"{THOUGHT}<answer>B B</answer>", 0, 1, 0),
  (f"{THOUGHT} so <answer>B</answer>", 1, 0, 0),
  (f"{THOUGHT}{THOUGHT}<answer>B</answer>", 1, 0, 0),
  ("<answer>B</answer><think>x</think>", 1, 0, 0),
  ("<think>one\ntwo\n\nthree</think>\n\n<answer>\nB\n</answer>", 1, 1, 0),
  ("<answer>\nB\n</answer>\n", 1, 0, 1),
  ("<think></think><answer>B</answer>", 1, 1, 0),
]


@pytest.mark.parametrize("label", ["B", " B\n", "<answer>B</answer>"])
@pytest.mark.parametrize(("text", "accuracy", "think", "bare"), TABLE)
def test_table(text, accuracy, think, bare, label):
  assert answer.is_right(text, label) == accuracy
  assert answer.is_formed(text, form="think") == think
  assert answer.is_formed(text, form="answer") == bare


@pytest.mark.parametrize(
  ("text", "content"),
  [
    ("<answer>one\ntwo</answer>", "one\ntwo"),
    ("<answer></answer>", ""),
    ("<answer>B", None),
    ("B</answer>", None),
  ],
)
def test_extract(text, content):
  assert answer.extract(text) == content


def test_empty_label_is_never_matched():
  assert answer.is_right("<answer></answer>", "") == 0


def test_of_a_batch():
  texts = [[f"{THOUGHT}<answer>B</answer>", "<answer>C</answer>", "B"]] * 2
  found = answer.exact_answer(texts, ["B", "C"])
  np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0]])
  # The default form has a thought.
  formed = answer.answer_format(texts)
  np.testing.assert_array_equal(formed, 2 * [[1, 0, 0]])
  assert found.dtype == formed.dtype == np.float32


def test_unknown_form_is_refused():
  with pytest.raises(ValueError, match=r"\['answer', 'think'\], got 'essay'"):
    answer.is_formed("B", form="essay")
