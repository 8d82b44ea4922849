"""Rewards of answers that are numbers.

| number | also written |
|---|---|
| 1000 | 1,000; 1e3; 1 thousand; 1k |
| 3 | 3.0; +3; $3$; \\boxed{3}; x = 3; 3 cm, unless the right one is in mm |
| 0.5 | 1/2; \\frac{1}{2}; ½; 50%; 50 % |
| 5 | $5; 5€ |
| 90 | 90°; 90^\\circ |

So 50% is 0.5, not 50. A comma is one of thousands: 1,5 is no number.
"""

from collections.abc import Sequence
import functools
import math
import re

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.answer import label, score
from mmrl.rewards.lenient import tidy

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_UNIT = r"[a-zA-Z°µμΩ€£¥]+(?:\^?[23])?"
_NUMBER = re.compile(
  r"(?:[a-zA-Z]\w*\s*=\s*)?(?P<sign>[+-]?)\s*[$€£¥]?\s*(?P<second>[+-]?)"
  rf"(?P<number>(?:{_DIGITS})(?:[eE][+-]?\d+)?)"
  rf"(?:\s*/\s*(?P<below>{_DIGITS}))?\s*(?P<unit>%|{_UNIT}(?:/{_UNIT})?)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?")
_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}|\\[,;! ]")
_TIMES = {
  "%": 1e-2,
  "percent": 1e-2,
  "dozen": 12.0,
  "hundred": 1e2,
  "k": 1e3,
  "thousand": 1e3,
  "million": 1e6,
  "billion": 1e9,
}
# What decimal fractions in float64 differ by, such as 0.1 + 0.2 and 0.3.
_ROUNDING = 1e-9


@functools.lru_cache(4096)
def parse(text: str) -> tuple[float, str] | None:
  """Returns a text's number and unit; None if it isn't one number."""
  text = _FRACTION.sub(r"\1/\2", tidy(text.replace("\\%", "%")))
  text = _TEXT.sub(r"\1", _DEGREE.sub("°", text)).strip()
  found = _NUMBER.fullmatch(text)
  if found is None or (found["sign"] and found["second"]):
    return None
  number = float(found["number"].replace(",", ""))
  if found["below"]:
    below = float(found["below"].replace(",", ""))
    number = number / below if below else math.inf
  unit = found["unit"] or ""
  number *= _TIMES.get(unit.lower(), 1.0)
  if "-" in (found["sign"], found["second"]):
    number = -number
  if not math.isfinite(number):
    return None
  return number, "" if unit.lower() in _TIMES or unit == "°" else unit


def _needs_number(question: str, answer: str) -> None:
  """Refuses a right answer that isn't a number."""
  right = label(answer)
  if right and parse(right) is None:
    raise UserError(
      f"expected a number as right answer, found {right!r:.80}; repair the"
      " data, or use lenient_answer"
    )


def same(given: str, right: str, tolerance: float = 0.0) -> bool:
  """Tells whether two numbers are equal, and so are units, if both have one.

  Args:
    given: an answer.
    right: the right one.
    tolerance: how far it may be off, relative to the right number.
  """
  found, wanted = parse(given), parse(right)
  if found is None or wanted is None:
    return False
  if found[1] and wanted[1] and found[1] != wanted[1]:
    return False
  off = abs(found[0] - wanted[0])
  return off <= max(tolerance, _ROUNDING) * abs(wanted[0])


def _check_tolerance(*, tolerance: float = 0.0) -> None:
  if not 0 <= tolerance < 1:
    raise UserError(f"expected a tolerance in [0, 1), found {tolerance}")


@marked(check=_check_tolerance, needs_answer=_needs_number)
def number(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  *,
  tolerance: float = 0.0,
) -> Float[np.ndarray, "P G"]:
  """Rewards the right number with 1, others with 0; see the table above.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.
    tolerance: how far an answer may be off, relative to the right one.

  Raises:
    UserError: if a right answer isn't a number.
  """
  for right in answer:
    _needs_number("", right)
  return score(
    text,
    answer,
    lambda given, right: float(same(given, right, tolerance)),
  )


@marked(needs_answer=_needs_number)
def closeness(
  text: Sequence[Sequence[str]], answer: Sequence[str]
) -> Float[np.ndarray, "P G"]:
  """Rewards numbers by how near they are to the right ones.

      R = 1 - min(1, |given - right| / |right|)

  What isn't a number has 0. Units aren't compared.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.

  Raises:
    UserError: if a right answer isn't a number.

  Reference: the regression reward of Video-R1, arXiv 2503.21776, as in its
  published code, which adds 1e-9 to both differences, and to numbers of more
  forms.
  """

  def near(given: str, right: str) -> float:
    found, wanted = parse(given), parse(right)
    if found is None or wanted is None:
      return 0.0
    off = abs(found[0] - wanted[0]) + _ROUNDING
    return max(0.0, 1 - off / (abs(wanted[0]) + _ROUNDING))

  for right in answer:
    _needs_number("", right)
  return score(text, answer, near)
