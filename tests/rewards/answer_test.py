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
  (f"{THOUGHT}<answer>B</answer><answer>C</answer>", 0, 0, 0),
  (f"{THOUGHT}<answer>C</answer><answer>B</answer>", 1, 0, 0),
  (f"{THOUGHT}<answer>B", 0, 0, 0),
  (f"{THOUGHT}<answer></answer>", 0, 1, 0),
  ("B", 0, 0, 0),
  ("", 0, 0, 0),
  # Beyond the table of the paper's notes.
  (f"{THOUGHT}<answer>b</answer>", 0, 1, 0),  # case counts
  (f"{THOUGHT}<answer>B B</answer>", 0, 1, 0),
  (f"{THOUGHT} so <answer>B</answer>", 1, 0, 0),
  (f"{THOUGHT}{THOUGHT}<answer>B</answer>", 1, 0, 0),
  ("<answer>B</answer><think>x</think>", 0, 0, 0),
  ("<think>I write <answer>..</answer></think><answer>B</answer>", 1, 0, 0),
  ("<think><answer>B</answer></think>", 0, 0, 0),
  ("<thinking>x</thinking><answer>B</answer>", 1, 0, 0),
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
    # The last closed block, of several and of nested ones.
    ("<answer>2</answer> wait <answer>3</answer>", "3"),
    ("<answer>2</answer> wait <answer>3", "2"),
    ("<answer>to write <answer>3</answer>", "3"),
    ("<answer>3</answer> so </answer>", "3"),
    # After the last thought, and not before or inside of it.
    ("<think><answer>2</answer></think><answer>3</answer>", "3"),
    ("<think>a</think><answer>2</answer><think>b</think>", None),
    ("<answer>2</answer></think>", None),
    ("<think><answer>2</answer>", "2"),
    # Another tag isn't the thought's.
    ("<answer>2</answer></thinking>", "2"),
    ("<answer>2</answer></thinking></think><answer>3</answer>", "3"),
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
  with pytest.raises(ValueError, match="'boxed'.*, got 'essay'"):
    answer.is_formed("B", form="essay")


@pytest.mark.parametrize(
  ("text", "tags", "tag", "formed"),
  [
    (f"{THOUGHT}<answer>B</answer>", "text", "think", 1),
    (f"{THOUGHT}<answer>B</answer>", "open", "think", 0),
    ("x</think><answer>B</answer>", "open", "think", 1),
    ("x</think>\n<answer>B</answer>\n", "open", "think", 1),
    ("x</think><answer>B</answer>", "text", "think", 0),
    ("x</think></think><answer>B</answer>", "open", "think", 0),
    ("<thinking>x</thinking><answer>B</answer>", "text", "thinking", 1),
    ("<thinking>x</thinking><answer>B</answer>", "text", "think", 0),
    ("<thinking>x</think><answer>B</answer>", "text", "think", 0),
    (f"{THOUGHT}<answer>B</answer>", "text", "thinking", 0),
    ("x</thinking><answer>B</answer>", "open", "thinking", 1),
  ],
)
def test_tags_of_the_thought(text, tags, tag, formed):
  found = answer.answer_format([[text]], think_tags=tags, tag=tag)
  np.testing.assert_array_equal(found, [[formed]])


@pytest.mark.parametrize(
  ("text", "found", "formed"),
  [
    (rf"{THOUGHT}so \boxed{{3}}.", "3", 1),
    (rf"{THOUGHT}\boxed{{1}} no, \boxed{{\frac{{1}}{{2}}}}", r"\frac{1}{2}", 1),
    (rf"{THOUGHT}\boxed{{1}} or \boxed{{2", "1", 1),
    (r"\boxed{ 3 }", "3", 0),
    (rf"{THOUGHT}\boxed{{}}", "", 1),
    (rf"{THOUGHT}\boxed{{", None, 0),
    (rf"{THOUGHT}3", None, 0),
    (r"<think>\boxed{3}</think>", None, 0),
    (rf"so {THOUGHT}\boxed{{3}}", "3", 0),
    (rf"{THOUGHT}<answer>2</answer>\boxed{{3}}", "3", 1),
  ],
)
def test_answers_in_a_box(text, found, formed):
  assert answer.extract(text, "boxed") == found
  assert answer.is_formed(text, "boxed") == formed


@pytest.mark.parametrize("option", [{"think_tags": "open"}, {"tag": "think"}])
def test_tags_of_no_thought_are_refused(option):
  with pytest.raises(ValueError, match="found them with form 'answer'"):
    answer.answer_format.check(form="answer", **option)
  answer.answer_format.check(form="answer")
  answer.answer_format.check(form="think", **option)


@pytest.mark.parametrize(
  ("options", "texts"),
  [
    ({}, ["wants <think>...</think><answer>", 'think_tags="open"']),
    ({"think_tags": "open"}, ["wants ...</think>", 'think_tags="text"']),
    ({"tag": "thinking"}, ["<thinking>...</thinking>", 'tag="think"']),
    ({"form": "answer"}, ["wants <answer>", 'form="think"']),
    ({"form": "boxed"}, ["wants <think>...</think>...\\boxed{...}: let"]),
  ],
)
def test_the_hint_names_causes_and_remedies(options, texts):
  hint = answer.answer_format.hint(**options)
  assert all(text in hint for text in texts) and "\n" not in hint


def test_score_compares_blocks_that_are_there():
  texts = [["<answer>1</answer>", "<answer></answer>", "1"], ["", "", ""]]
  calls = []

  def compare(given, right):
    calls.append((given, right))
    return 0.5

  found = answer.score(texts, ["<answer>2</answer>", ""], compare)
  np.testing.assert_array_equal(found, [[0.5, 0, 0], [0, 0, 0]])
  assert calls == [("1", "2")]
  with pytest.raises(ValueError, match="shorter"):
    answer.score(texts, ["2"], compare)


@pytest.mark.parametrize(
  ("text", "begin", "exact"),
  [
    ("<think>x</think><answer>B</answer>", 1, 1),
    ("<think>x</think>\n<answer>B</answer> bye", 1, 0),
    (" <think>x</think><answer>B</answer>", 0, 0),
    ("<think></think><answer></answer>", 1, 1),
  ],
)
def test_forms_that_count_no_tags_golden(text, begin, exact):
  """SEED-Bench-R1's match at the beginning, Video-R1's of the whole text."""
  assert answer.is_formed(text, "begin") == begin
  assert answer.is_formed(text, "exact") == exact
