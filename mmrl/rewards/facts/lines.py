"""Perception-R1's other rewards: form by lines, accuracy and repetition.

Reference: arXiv 2506.07218, as in its published code; several sizes of n-grams
are LASER's, arXiv 2607.01707, as in its.
"""

from collections.abc import Sequence
import re
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards import mathematics
from mmrl.rewards.answer import label

_FORM = re.compile(
  r"<think>\n.*?\n</think>\n<answer>\n.*?\\boxed\{.+?\}.*?\n</answer>",
  re.DOTALL,
)


# Characters that are read of an answer.
_LONGEST = 2000


def is_formed(text: str) -> bool:
  """Tells whether a whole output has the form; nothing is stripped first."""
  return _FORM.fullmatch(text) is not None


def given_answer(text: str, *, strict_upstream: bool = False) -> str:
  """Returns what is compared with the right answer.

  That is the first closed answer block, or the whole text without one.

  Args:
    text: what the model wrote.
    strict_upstream: as in the published code, whose block has no line breaks:
      so of a text of the form it is the whole, thought included.
  """
  flags = re.NOFLAG if strict_upstream else re.DOTALL
  found = re.search("<answer>(.*?)</answer>", text, flags)
  return (found[1] if found else text).strip()


@marked(
  hint=(
    "it wants <think>, the thought, </think>, <answer>, a \\boxed{} and"
    " </answer>, each on a line of its own and nothing around: let the prompt"
    " ask for that, or teach it first"
  )
)
def lined_format(text: Sequence[Sequence[str]]) -> Float[np.ndarray, "P G"]:
  """Rewards outputs with tags on lines of their own with 1, others with 0.

  A space in front, a line break at the end, or an empty line between the blocks
  costs the reward; thought and answer may be empty but for a `\\boxed{}` with
  something in it.
  """
  found = [[is_formed(one) for one in group] for group in text]
  return np.array(found, np.float32)


def _check_accuracy(*, strict_upstream: bool = False) -> None:
  del strict_upstream
  mathematics.math_answer.check()  # type: ignore[attr-defined]


@marked(check=_check_accuracy)
def first_math_answer(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  *,
  strict_upstream: bool = False,
) -> Float[np.ndarray, "P G"]:
  """Rewards a first answer block that is equal to the right one with 1.

  Compared as by `math_answer`, which reads the last block after the thought and
  takes no text without one. Here the whole text is read where no block is
  closed: so an answer that is never closed can be right, which pays off where
  the form isn't learned. Of what is read the last 2,000 characters count, where
  the box is: more of it only takes time.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.
    strict_upstream: see `given_answer`.

  Raises:
    UserError: if math-verify isn't installed.
  """
  _check_accuracy()

  def right(one: str, wanted: str) -> bool:
    given = given_answer(one, strict_upstream=strict_upstream)
    if "" in (given, wanted):
      return False
    try:
      return mathematics.same(given[-_LONGEST:], wanted, longest=_LONGEST)
    except Exception:  # What can't be read isn't right, as published.
      return False

  found = [
    [right(one, label(wanted)) for one in group]
    for group, wanted in zip(text, answer, strict=True)
  ]
  return np.array(found, np.float32).reshape(len(text), -1)


def repetition(text: str, n: int = 20) -> float:
  """Computes the share of a text's n-grams of words that occurred before.

  Words are lower case and separated by white space; 0 of less than n words.
  """
  words = text.lower().split()
  total = len(words) - n + 1
  if total < 1:
    return 0.0
  return 1 - len({tuple(words[i : i + n]) for i in range(total)}) / total


def _sizes(n: Any) -> tuple[int, ...]:
  """Returns the sizes of n-grams.

  Raises:
    UserError: if there is none, or one that isn't a number of words.
  """
  sizes = (n,) if isinstance(n, int) else n
  if (
    not isinstance(sizes, list | tuple)
    or not sizes
    or any(type(one) is not int or one < 1 for one in sizes)
  ):
    raise UserError(
      "n: expected a number of words from 1 on, or several such, found"
      f" {n!r:.80}"
    )
  return tuple(sizes)


def _check_repetition(*, n: Any = 20) -> None:
  _sizes(n)


@marked(check=_check_repetition)
def repeated_ngrams(
  text: Sequence[Sequence[str]], *, n: int | Sequence[int] = 20
) -> Float[np.ndarray, "P G"]:
  """Penalises repetition: minus the share of n-grams that occurred before.

  Its weight in the config is the largest penalty: 2 in Perception-R1; 5 in
  LASER (arXiv 2607.01707), whose n-grams have 8, 15 and 40 words.

  Args:
    text: P lists of G answers.
    n: words of an n-gram, at least 1; of several sizes the largest share
      counts.

  Returns:
    In (-1, 0].
  """
  sizes = _sizes(n)
  found = [
    [-max(repetition(one, size) for size in sizes) for one in group]
    for group in text
  ]
  return np.array(found, np.float32).reshape(len(text), -1)
