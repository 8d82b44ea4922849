"""A reward of answers to multiple choice questions."""

from collections.abc import Sequence
import functools
import re

from jaxtyping import Float
import numpy as np

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
