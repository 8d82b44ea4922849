"""A reward of multiple choice with a fixed form: the letter begins the block.

Reference: SEED-Bench-R1, arXiv 2503.24376, and its published code.
Differs from it: it first asks math-verify whether the whole text equals the
right answer, which has nothing to compare in a letter.
"""

from collections.abc import Sequence
import re
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.rewards.answer import label

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OPTION = re.compile(r"([A-E])(?:[.):].*)?", re.DOTALL)


def first_block(text: str) -> str | None:
  """Returns what the first answer block of a text holds; None without one."""
  found = _BLOCK.search(text)
  return found[1].strip() if found else None


def option(text: str) -> str | None:
  """Returns the letter A to E of a text's first answer block; None without one.

  It is capital and stands alone, or a `.`, `)` or `:` and anything follow.
  """
  found = _OPTION.fullmatch(first_block(text) or "")
  return found[1] if found else None


def first_option(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  example: Sequence[Any],
  *,
  strict: bool = True,
) -> Float[np.ndarray, "P G"]:
  """Rewards a first answer block that begins with the right letter with 1.

  Unlike `choice` it reads the first block, also in a thought, and takes no
  other form of a letter.

  Args:
    text: P lists of G answers.
    answer: the right letter of each question, A to E, alone or as in
      `option`, or in a block of its own.
    example: the questions (`mmrl.data.Example`).
    strict: False also takes a word that begins with the letter, such as Bottle
      for B, as the published code does.

  Raises:
    UserError: naming the question whose right answer isn't such a letter.
  """
  rows = []
  for group, right, one in zip(text, answer, example, strict=True):
    wanted = _OPTION.fullmatch(label(right))
    if wanted is None:
      raise UserError(
        f"{one.name}: expected a letter A to E as right answer, such as B or"
        f" B., found {right!r:.80}; write the letter, or use choice"
      )
    found = map(option if strict else _first, group)
    rows.append([float(letter == wanted[1]) for letter in found])
  return np.array(rows, np.float32).reshape(len(text), -1)


def _first(text: str) -> str:
  return (first_block(text) or "")[:1]
