"""Verifiable rewards of an answer's text.

Reference: Reinforced Attention Learning, arXiv 2602.04884, section 3, whose
reward is 0.9 accuracy + 0.1 format.
Reconstructed: the paper doesn't specify how strings are compared. Outer white
space is ignored, case counts, the first closed answer block is the answer,
and each tag may occur only once.
"""

from collections.abc import Sequence
import re
from typing import Literal

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError

Form = Literal["think", "answer"]

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FORMS = {
  "think": (
    re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL),
    ("<think>", "</think>", "<answer>", "</answer>"),
  ),
  "answer": (
    re.compile(r"<answer>.*</answer>", re.DOTALL),
    ("<answer>", "</answer>"),
  ),
}


def extract(text: str) -> str | None:
  """Returns a text's first closed answer block, stripped; None without one."""
  found = _ANSWER.search(text)
  return found.group(1).strip() if found else None


def is_right(text: str, answer: str) -> bool:
  """Tells whether a text's answer block is exactly the right answer.

  Args:
    text: what the model wrote; an empty or missing block is wrong.
    answer: the right answer, bare or in an answer block of its own.
  """
  gold = extract(answer)
  gold = answer.strip() if gold is None else gold
  given = extract(text)
  return bool(given) and given == gold


def is_formed(text: str, form: str) -> bool:
  """Tells whether a whole output has exactly the given form.

  Args:
    text: what the model wrote.
    form: "think" for `<think>...</think><answer>...</answer>` with white
      space allowed between, "answer" for just `<answer>...</answer>`
      (RAL-zero).

  Raises:
    UserError: if there is no such form.
  """
  if form not in _FORMS:
    raise UserError(f"form must be one of {sorted(_FORMS)}, got {form!r}")
  pattern, tags = _FORMS[form]
  once = all(text.count(tag) == 1 for tag in tags)
  return once and pattern.fullmatch(text.strip()) is not None


def exact_answer(
  text: Sequence[Sequence[str]], answer: Sequence[str]
) -> Float[np.ndarray, "P G"]:
  """Rewards answers that are exactly right with 1, others with 0.

  Args:
    text: P lists of G answers.
    answer: the right one of each question; see `is_right`.
  """
  pairs = zip(text, answer, strict=True)
  found = [[is_right(one, right) for one in group] for group, right in pairs]
  return np.array(found, np.float32)


def answer_format(
  text: Sequence[Sequence[str]], *, form: Form = "think"
) -> Float[np.ndarray, "P G"]:
  """Rewards answers of the given form with 1, others with 0.

  Args:
    text: P lists of G answers.
    form: see `is_formed`.

  Raises:
    UserError: if there is no such form.
  """
  found = [[is_formed(one, form) for one in group] for group in text]
  return np.array(found, np.float32)
