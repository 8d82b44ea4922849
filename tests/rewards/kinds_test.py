"""Tests of the reward that a question's kind chooses, and a table of pairs."""

import numpy as np
import pytest

from mmrl import build, rewards
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rewards import accuracy

NAMES = ("exact_answer", "lenient_answer", "choice", "number", "math_answer")
# Right answer, given one; then those of NAMES that take them as equal.
PAIRS = [
  ("B", "(B)", "choice"),
  ("B", "B.", "lenient choice math"),
  ("B", "B. a cat", "choice"),
  ("B", "b", "lenient choice math"),
  ("(B)", "B", "choice math"),
  ("B", "Answer: B", "choice"),
  ("3", "3.0", "number math"),
  ("0.5", "1/2", "number math"),
  ("1/2", "\\frac{1}{2}", "number math"),
  ("50%", "0.5", "number math"),
  ("50%", "50 %", "number math"),
  ("12 cm", "12cm", "number math"),
  ("12", "12 cm", "number math"),
  ("1,000", "1000", "number math"),
  ("$5", "5", "number math"),
  ("3", "\\boxed{3}", "lenient number math"),
  ("\\boxed{3}", "3", "lenient number math"),
  ("3", "$3$", "lenient number math"),
  ("90", "90^\\circ", "number math"),
  ("x=3", "3", "number math"),
  ("-1", "−1", "lenient number math"),
  ("red", "Red", "lenient math"),
  ("red", "red.", "lenient math"),
  ("red", '"red"', "lenient math"),
  ("True", "true", "lenient math"),
  ("True", "yes", ""),
  ("é", "e\u0301", "lenient math"),
  ("a  b", "a b", "lenient math"),
  ("red", "<b>red</b>", ""),
  ("['red', 'crimson']", "red", "lenient math"),
  ("3.0", "3", "number math"),
  ("<answer> 3 </answer>", "3", "exact lenient number math"),
  ("<think>t</think><answer>3</answer>", "3", "exact lenient number math"),
  ("", "", ""),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("right", "given", "equal"), PAIRS)
def test_pairs(right, given, equal, name):
  if name == "math_answer":
    pytest.importorskip("math_verify")
  reward = getattr(rewards, name)
  text = f"<think>x</think><answer>{given}</answer>"
  try:
    found = reward([[text]], [right])
  except UserError as error:
    # No choice, or no number: refused, as nothing could be right.
    assert "as right answer" in str(error)
    found = 0
  assert found == (name.removesuffix("_answer") in equal.split())


def make_examples(*kinds):
  return [
    Example(f"file:{i}", "?", [], "", kind) for i, kind in enumerate(kinds)
  ]


def test_each_question_has_the_reward_of_its_kind():
  kinds = ["OCR", "numerical", "multiple choice", "OCR", "regression", "box"]
  right = ["a b", "1,000", "B", "c", "10", "[0, 0, 2, 2]"]
  given = ["a x", "1000", "(B)", "c", "9", "[0, 0, 2, 1]"]
  texts = [[f"<answer>{one}</answer>", "no"] for one in given]
  found = accuracy(texts, right, make_examples(*kinds))
  expected = [0.5, 1, 1, 1, 0.9, 0.5]
  np.testing.assert_allclose(found, [[x, 0] for x in expected], rtol=1e-6)
  assert found.dtype == np.float32


def test_a_table_of_ones_own():
  table = {
    "count": {"name": "number", "tolerance": 0.1},
    "word": "lenient_answer",
  }
  accuracy.check(kinds=table)
  texts = [["<answer>95</answer>"], ["<answer>RED</answer>"]]
  examples = make_examples("count", "word")
  found = accuracy(texts, ["100", "red"], examples, kinds=table)
  np.testing.assert_array_equal(found, [[1], [1]])


def test_an_unknown_kind_is_refused_by_name():
  with pytest.raises(
    UserError, match="^file:1: expected a kind .* 'OCR'.*, found 'all'; repair"
  ):
    accuracy([["a"], ["b"]], ["a", "b"], make_examples("OCR", "all"))


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("nonesuch", r"kinds\['x'\]: mmrl.rewards has no 'nonesuch'; valid names"),
    ({"name": "number", "far": 1}, "number has no option far; valid options"),
    ({"name": "number", "tolerance": 2.0}, r"tolerance in \[0, 1\), found 2"),
    ("accuracy", "expected the name or the spec of another reward, found"),
    ({}, "expected the name or the spec of another reward, found {}|has no N"),
    (3, "expected the name or the spec of another reward, found 3"),
    ("soft_overlong", "soft_overlong needs longest, buffer"),
  ],
)
def test_a_table_is_checked_while_a_run_is_built(spec, message):
  with pytest.raises(UserError, match=rf"^config.rewards.x: .*{message}"):
    build.bind(
      rewards,
      {"name": "accuracy", "kinds": {"x": spec}},
      "config.rewards.x",
      provided=["text", "answer", "example"],
    )


def test_the_default_table_names_rewards():
  from mmrl.rewards import kinds

  assert set(kinds.KINDS.values()) <= set(rewards.__all__)
