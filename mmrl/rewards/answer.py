"""Verifiable rewards of one answer text. Pure functions of strings.

Reference: Reinforced Attention Learning, arXiv 2602.04884, section 3, whose
reward is 0.9 accuracy + 0.1 format.
Reconstructed: the paper doesn't say how strings are compared. Outer white
space is ignored, case counts, the first closed answer block is the answer,
and each tag may stand once only.
"""

import re

from mmrl.errors import UserError

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
  """Content of the first closed answer block, stripped; None without one."""
  found = _ANSWER.search(text)
  return found.group(1).strip() if found else None


def exact_answer(text: str, answer: str) -> float:
  """1 if the answer block holds exactly the right answer, else 0.

  Args:
    text: what the model wrote.
    answer: the right answer, bare or in an answer block of its own.

  Returns:
    0.0 or 1.0; an empty or missing block is wrong.
  """
  gold = extract(answer)
  gold = answer.strip() if gold is None else gold
  given = extract(text)
  return float(bool(given) and given == gold)


def answer_format(text: str, *, form: str = "think") -> float:
  """1 if the whole output has exactly the asked form, else 0.

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
  return float(once and pattern.fullmatch(text.strip()) is not None)
