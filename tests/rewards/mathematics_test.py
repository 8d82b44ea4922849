"""Tests of the reward that math-verify computes."""

import logging
import sys

import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.rewards import math_answer, mathematics


@pytest.mark.parametrize(
  ("given", "right", "equal"),
  [
    ("x^2 + 2x + 1", "(x+1)^2", 1),
    ("x^2 + 2x", "(x+1)^2", 0),
    ("2\\sqrt{2}", "\\sqrt{8}", 1),
    ("\\{2, 1\\}", "\\{1, 2\\}", 1),
    ("\\boxed{\\frac{1}{2}}", "0.5", 1),
    ("50", "50%", 1),
    ("3 or 4", "3", 0),
    # Words aren't products of their letters.
    ("der", "red", 0),
    ("Red.", "red", 1),
    ("", "3", 0),
    ("3" + 600 * " + 0", "3", 0),
  ],
)
def test_same(given, right, equal):
  pytest.importorskip("math_verify")
  assert mathematics.same(given, right) == equal


def test_of_a_batch():
  pytest.importorskip("math_verify")
  texts = [["<answer>3.0</answer>", "<answer>4</answer>", "3"]] * 2
  found = math_answer(texts, ["3", "<answer>2^2</answer>"])
  np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0]])
  assert found.dtype == np.float32


def test_what_takes_too_long_is_wrong_and_not_printed(caplog, capfd):
  """Multiplied out it has 10,000 terms of up to 3,000 digits."""
  pytest.importorskip("math_verify")
  texts = [["<answer>(x+1)^{9999}</answer>", "<answer>1+x</answer>"]]
  with caplog.at_level(logging.DEBUG):
    found = math_answer(texts, ["x + 1"])
  np.testing.assert_array_equal(found, [[0, 1]])
  assert not caplog.records and capfd.readouterr() == ("", "")


def test_a_missing_package_is_refused_with_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "math_verify", None)
  with pytest.raises(
    UserError, match=r"pip install -e '.\[math\]' in your clone"
  ):
    math_answer.check()
  with pytest.raises(
    UserError, match=r"pip install -e '.\[math\]' in your clone"
  ):
    math_answer([["<answer>3</answer>"]], ["3"])


def test_answers_in_a_box():
  pytest.importorskip("math_verify")
  texts = [[r"<think>t</think>so \boxed{\frac{1}{2}}", "<answer>1/2</answer>"]]
  np.testing.assert_array_equal(
    math_answer(texts, ["0.5"], block="boxed"), [[1, 0]]
  )
  np.testing.assert_array_equal(math_answer(texts, ["0.5"]), [[0, 1]])
