"""A reward of answers that differ from the right one in how they are written.

| ignored | right | given |
|---|---|---|
| case | red | Red |
| Unicode's forms of one character (NFKC), signs of minus | é, -1 | é, −1 |
| runs of white space | a b | a  b |
| punctuation at the end, quotation marks | red | red. "red" |
| `\\boxed{}`, `\\text{}`, `$...$`, `**...**` around it | 3 | \\boxed{3} |

Values aren't compared: 3 isn't 3.0 (see `mmrl.rewards.numbers`), and B isn't
(B) (see `mmrl.rewards.choices`).
"""

import ast
from collections.abc import Sequence
import functools
import re
import unicodedata

from jaxtyping import Float
import numpy as np

from mmrl.rewards.answer import score

_AROUND = [
  re.compile(pattern, re.DOTALL)
  for pattern in (
    r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{(.*)\}",
    r"\$\$?([^$]*)\$?\$",
    r"\\\((.*)\\\)",
    r"\\\[(.*)\\\]",
    r"\*\*([^*]*)\*\*",
    r"[\"'`“”‘’«](.*)[\"'`“”‘’»]",
  )
]
_MINUS = str.maketrans("−–⁄", "--/")


@functools.lru_cache(4096)
def tidy(text: str) -> str:
  """Returns a text in NFKC without what may stand around an answer."""
  text = unicodedata.normalize("NFKC", text).translate(_MINUS)
  text = " ".join(text.split())
  before = None
  while text != before:
    before = text
    # What is punctuation only stays as it is.
    text = text.strip().rstrip(".,;:!?") or text
    for pattern in _AROUND:
      found = pattern.fullmatch(text)
      if found and _balanced(found.group(1)) and found.group(1).strip():
        text = found.group(1).strip()
  return text


def _balanced(text: str) -> bool:
  """Tells whether no brace closes that isn't opened before."""
  depth = 0
  for character in text:
    depth += (character == "{") - (character == "}")
    if depth < 0:
      return False
  return depth == 0


@functools.lru_cache(4096)
def alternatives(right: str) -> tuple[str, ...]:
  """Returns the right answers: of a list such as ['red', 'crimson'] each."""
  if right.startswith("[") and right.endswith("]"):
    try:
      found = ast.literal_eval(right)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      return (right,)
    if found and all(isinstance(one, str) for one in found):
      return tuple(found)
  return (right,)


def same(given: str, right: str) -> bool:
  """Tells whether an answer is one of the right ones, however written."""
  wanted = {tidy(one).casefold() for one in alternatives(right)}
  return tidy(given).casefold() in wanted


def lenient_answer(
  text: Sequence[Sequence[str]], answer: Sequence[str]
) -> Float[np.ndarray, "P G"]:
  """Rewards right answers with 1, however they are written, others with 0.

  Args:
    text: P lists of G answers.
    answer: the right one of each question, or a list of right ones written as
      in Python; see the table above.
  """
  return score(text, answer, same)
