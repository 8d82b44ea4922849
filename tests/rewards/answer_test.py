"""Tests of the verifiable rewards."""

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
  assert answer.exact_answer(text, label) == accuracy
  assert answer.answer_format(text) == think
  assert answer.answer_format(text, form="think") == think
  assert answer.answer_format(text, form="answer") == bare


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
  assert answer.exact_answer("<answer></answer>", "") == 0


def test_unknown_form_is_refused():
  with pytest.raises(ValueError, match=r"\['answer', 'think'\], got 'essay'"):
    answer.answer_format("B", form="essay")
