"""Tests of the rewards of numbers."""

import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.rewards import closeness, number, numbers


@pytest.mark.parametrize(
  ("text", "value", "unit"),
  [
    ("3", 3, ""),
    ("3.", 3, ""),
    (".5", 0.5, ""),
    ("+3", 3, ""),
    ("−3", -3, ""),
    ("1,000", 1000, ""),
    ("1,234,567.5", 1234567.5, ""),
    ("1e3", 1000, ""),
    ("1.5E-2", 0.015, ""),
    ("3 million", 3e6, ""),
    ("3k", 3000, ""),
    ("2 dozen", 24, ""),
    ("5 hundred", 500, ""),
    ("2 thousand", 2000, ""),
    ("2 Billion", 2e9, ""),
    ("1/2", 0.5, ""),
    ("3 / 1,000", 0.003, ""),
    ("-1/2", -0.5, ""),
    ("½", 0.5, ""),
    ("\\frac{1}{2}", 0.5, ""),
    ("\\dfrac{3}{4}", 0.75, ""),
    ("-\\frac{1}{2}", -0.5, ""),
    ("50%", 0.5, ""),
    ("50 percent", 0.5, ""),
    ("50\\%", 0.5, ""),
    ("$5", 5, ""),
    ("-$5", -5, ""),
    ("$-5", -5, ""),
    ("5€", 5, "€"),
    ("90^\\circ", 90, ""),
    ("90^{\\circ}", 90, ""),
    ("90°", 90, ""),
    ("12 cm", 12, "cm"),
    ("12\\text{ cm}", 12, "cm"),
    ("12 m^2", 12, "m^2"),
    ("5 m/s", 5, "m/s"),
    ("x = -3", -3, ""),
    ("\\boxed{3}", 3, ""),
  ],
)
def test_parse(text, value, unit):
  found, of = numbers.parse(text)
  assert found == pytest.approx(value, rel=1e-12) and of == unit


@pytest.mark.parametrize(
  "text",
  [
    *("", "red", "3 or 4", "3, 4", "1,5", "1,00", "1_000", "0x10", "1 1/2"),
    *("1/0", "1e999", "+-3", "--3", "nan", "inf", "3 4", "1/2/3", "3 red cats"),
  ],
)
def test_what_is_not_one_number(text):
  assert numbers.parse(text) is None
  assert not numbers.same(text, "3")
  if text:
    with pytest.raises(UserError, match="expected a number as right answer, f"):
      number([["<answer>3</answer>"]], [text])
    with pytest.raises(UserError, match="expected a number as right answer, f"):
      closeness([["<answer>3</answer>"]], [text])


@pytest.mark.parametrize(
  ("given", "right", "tolerance", "equal"),
  [
    ("0.30000000000000004", "0.3", 0.0, 1),
    ("0.3001", "0.3", 0.0, 0),
    ("101", "100", 0.01, 1),
    ("99", "100", 0.01, 1),
    ("101.1", "100", 0.01, 0),
    ("-101", "-100", 0.01, 1),
    ("100", "-100", 0.01, 0),
    ("0", "0", 0.0, 1),
    ("0.001", "0", 0.5, 0),
    ("12 cm", "12", 0.0, 1),
    ("12", "12 cm", 0.0, 1),
    ("12 mm", "12 cm", 0.0, 0),
    ("50", "50%", 0.0, 0),
  ],
)
def test_same(given, right, tolerance, equal):
  assert numbers.same(given, right, tolerance) == equal


def test_of_a_batch():
  texts = [["<answer>1,000</answer>", "<answer>1</answer>", "1"]] * 2
  found = number(texts, ["1000.0", "<answer>1/1</answer>"])
  np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0]])
  assert found.dtype == np.float32
  # An empty right answer is never matched, and isn't refused.
  assert number([["<answer>1</answer>"]], [""]) == 0
  assert number([["<answer>104</answer>"]], ["100"], tolerance=0.05) == 1


@pytest.mark.parametrize("tolerance", [-0.1, 1.0])
def test_a_tolerance_out_of_range_is_refused(tolerance):
  with pytest.raises(UserError, match=rf"\[0, 1\), found {tolerance}"):
    number.check(tolerance=tolerance)
  number.check(tolerance=0.5)
  number.check(tolerance=0.0)


@pytest.mark.parametrize(
  ("given", "right", "value"),
  [
    ("10", "10", 1),
    ("9", "10", 0.9),
    ("11", "10", 0.9),
    ("-5", "-10", 0.5),
    ("20", "10", 0),
    ("99", "10", 0),
    ("0", "0", 0),  # Video-R1's own value: 1e-9 / 1e-9
    ("red", "10", 0),
  ],
)
def test_closeness(given, right, value):
  found = closeness([[f"<answer>{given}</answer>"]], [right])
  np.testing.assert_allclose(found, [[value]], atol=1e-6)
