"""A reward of answers in mathematics, compared by the package math-verify.

`pip install -e '.[math]'` brings it. Beyond what `mmrl.rewards.numbers` takes,
it compares expressions, sets, intervals and equations, written in LaTeX or
plainly: (x + 1)^2 is x^2 + 2x + 1, and x = 3 is 3. To it, 50% is 0.5 as well as
50, and a unit doesn't matter. Answers of words are compared as in
`mmrl.rewards.lenient`, as math-verify reads each letter as a factor.
"""

from collections.abc import Sequence
import functools
import logging
import threading
from typing import Any
import warnings

from jaxtyping import Float
import numpy as np

from mmrl.errors import not_installed
from mmrl.marks import marked
from mmrl.rewards import lenient
from mmrl.rewards.answer import Block, score

# What takes longer isn't right: (x + 1)^9999 would be multiplied out. An alarm
# ends it, in the main thread, where a run grades; in another one nothing does.
_SECONDS = 2
_LONGEST = 500


def _library() -> Any:
  """Imports math-verify."""
  try:
    import math_verify
  except ImportError as error:
    raise not_installed("the package math-verify", "math") from error
  # It would print each text that takes too long, and that it has no alarm.
  logging.getLogger("math_verify").setLevel(logging.CRITICAL)
  return math_verify


def _check(*, block: Block = "answer") -> None:
  del block  # Any of its values will do.
  _library()


def _seconds() -> int | None:
  main = threading.current_thread() is threading.main_thread()
  return _SECONDS if main else None


@functools.lru_cache(4096)
def _parse(text: str) -> list:
  """Returns what math-verify reads in a text; empty if nothing."""
  marks = ("$", "\\boxed", "\\(", "\\[")
  text = text if any(mark in text for mark in marks) else f"${text}$"
  return _library().parse(text, parsing_timeout=_seconds())


def same(given: str, right: str, *, longest: int = _LONGEST) -> bool:
  """Tells whether two expressions are equal.

  Args:
    given: one that has more than `longest` characters is wrong.
    right: of any length.
    longest: in characters.
  """
  if lenient.same(given, right):
    return True
  if len(given) > longest or "".join(right.split()).isalpha():
    return False
  # Its warnings, where they are errors, would be taken as answers that differ.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return _library().verify(
      _parse(right), _parse(given), timeout_seconds=_seconds()
    )


@marked(check=_check)
def math_answer(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  *,
  block: Block = "answer",
) -> Float[np.ndarray, "P G"]:
  """Rewards expressions that are equal to the right one with 1, others with 0.

  Args:
    text: P lists of G answers; one of more than 500 characters is wrong.
    answer: the right one of each question.
    block: where an answer stands: in `<answer>...</answer>`, or "boxed", in
      `\\boxed{...}`.

  Raises:
    UserError: if math-verify isn't installed.
  """
  _library()
  return score(text, answer, same, block)
