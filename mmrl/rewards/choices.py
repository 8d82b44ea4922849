"""Rewards of answers to multiple choice questions."""

from collections.abc import Sequence
import functools
import re
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl.chains import parsing
from mmrl.errors import UserError
from mmrl.rewards.answer import label, score
from mmrl.rewards.lenient import tidy

_LETTER = re.compile(
  r"(?:(?:the\s+)?(?:(?:correct|final|best)\s+)?(?:answer|option|choice)"
  r"(?:\s+is)?\s*[:=]?\s*)*"
  # (B) red | B) red, B: red | B. red | B
  r"(?:[(\[{]([a-z])[)\]}][.:]?(.*)|([a-z])[):](.*)|([a-z])\.(\s.*)?|([a-z]))",
  re.DOTALL | re.IGNORECASE,
)
# Another choice in what follows the first: (C), C), C: or C., or C at the end.
_ANOTHER = re.compile(
  r"[(\[{][a-z][)\]}]|(?<![\w.'])[a-z](?:[):]|\.(?=\s|$))"
  r"|\b(?:or|and)\s+[a-z]$",
  re.IGNORECASE,
)


@functools.lru_cache(4096)
def letter(text: str) -> str | None:
  """Returns the choice that a text makes; None if there isn't just one.

  B, b, (B), [B], B., `Answer: B`, `The answer is (B)`, `B) red`, `B. red`,
  `B: red`, `\\boxed{B}` and `**B**` are B. `A or B`, `(A) (B)` and words, such
  as `a cat`, are none.
  """
  found = _LETTER.fullmatch(tidy(text))
  if found is None:
    return None
  chosen, *rest = (group for group in found.groups() if group is not None)
  if rest and _ANOTHER.search(rest[0]):
    return None
  return chosen.upper()


def choice(
  text: Sequence[Sequence[str]], answer: Sequence[str]
) -> Float[np.ndarray, "P G"]:
  """Rewards the right choice's letter with 1, others with 0.

  Args:
    text: P lists of G answers; what follows the letter isn't compared. See
      `letter`.
    answer: the right one of each question, in any of these forms.

  Raises:
    UserError: if a right answer isn't a letter.
  """
  for right in map(label, answer):
    if right and letter(right) is None:
      raise UserError(
        "expected the letter of a choice as right answer, such as B or (B),"
        f" found {right!r:.80}; write the letter, or use lenient_answer"
      )
  return score(
    text, answer, lambda given, right: float(letter(given) == letter(right))
  )


def first_option(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  example: Sequence[Any],
  *,
  strict: bool = True,
) -> Float[np.ndarray, "P G"]:
  """Rewards a first answer block that begins with the right letter with 1.

  Unlike `choice` it reads the first block, also one in a thought, and takes no
  other form of a letter.

  Args:
    text: P lists of G answers.
    answer: the right letter of each question, A to E, alone or as in
      `chains.parsing.letter`, or in a block of its own.
    example: the questions (`mmrl.data.Example`).
    strict: False also takes a word that begins with the letter, such as Bottle
      for B, as the published code does.

  Raises:
    UserError: naming the question whose right answer isn't such a letter.

  Reference: SEED-Bench-R1, arXiv 2503.24376, and its published code.
  Differs from it: it first asks math-verify whether the whole text equals the
  right answer, which has nothing to compare in a letter.
  """
  rows = []
  for group, right, one in zip(text, answer, example, strict=True):
    wanted = parsing.letter(label(right))
    if wanted is None:
      raise UserError(
        f"{one.name}: expected a letter A to E as right answer, such as B or"
        f" B., found {right!r:.80}; write the letter, or use choice"
      )
    found = map(parsing.option if strict else _first, group)
    rows.append([float(letter == wanted) for letter in found])
  return np.array(rows, np.float32).reshape(len(text), -1)


def _first(text: str) -> str:
  return (parsing.first_block(text) or "")[:1]
