"""Rewards of answers to multiple choice questions."""

from collections.abc import Mapping, Sequence
import functools
import itertools
import re
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl import errors
from mmrl.chains import parsing
from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.answer import extract, label, score
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


def _needs_letter(question: str, right: str) -> None:
  if label(right) and letter(label(right)) is None:
    raise UserError(
      "expected the letter of a choice as right answer, such as B or (B),"
      f" found {label(right)!r:.80}; write the letter, or use lenient_answer"
    )


@marked(needs_answer=_needs_letter)
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
  for right in answer:
    _needs_letter("", right)
  return score(
    text, answer, lambda given, right: float(letter(given) == letter(right))
  )


def _needs_option(question: str, right: str) -> None:
  if parsing.letter(label(right)) is None:
    raise UserError(
      "expected a letter A to E as right answer, such as B or B., found"
      f" {right!r:.80}; write the letter, or use choice"
    )


@marked(needs_answer=_needs_option)
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
    with errors.of_field(one.name):
      _needs_option(one.question, right)
    wanted = parsing.letter(label(right))
    found = map(parsing.option if strict else _first, group)
    rows.append([float(letter == wanted) for letter in found])
  return np.array(rows, np.float32).reshape(len(text), -1)


def _first(text: str) -> str:
  return (parsing.first_block(text) or "")[:1]


_CHOICE = re.compile(r"([A-Z])\. (.*)")
# What follows a letter, and no article.
_NO_NOUN = frozenset(("is", "or", "and", "because", "as", "since"))
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


@functools.lru_cache(4096)
def choices_of(question: str) -> Mapping[str, str]:
  """Returns the choices that a question lists, {letter: text}.

  They are lines such as `B. red`, in order, the last that begin with A.
  """
  found: dict[str, str] = {}
  for line in question.splitlines():
    one = _CHOICE.fullmatch(line.strip())
    if one and one[1] == "A":
      found = {"A": one[2]}
    elif one and found and ord(one[1]) == ord([*found][-1]) + 1:
      found[one[1]] = one[2]
  return found


def infer(text: str, choices: Mapping[str, str]) -> str | None:
  """Infers which choice a free text makes; None if that can't be told.

  The letter, as `letter` reads it; else the only letter of a choice among its
  words, where an "A" before another word is an article; else the only choice
  whose text is in it, unless it is more than twice as long as all of them.

  Args:
    text: what was answered.
    choices: {letter: text}.

  Reference: VLMEvalKit's can_infer. Differs from it: forms of `letter` come
  first, a letter may be among the last five words, and its replies that refuse
  aren't a choice of their own.
  """
  found = letter(text)
  if found in choices:
    return found
  words = text.translate(_PUNCTUATION).split()
  articles = {
    i
    for i, (word, after) in enumerate(itertools.pairwise(words))
    if word == "A" and after.islower() and after not in _NO_NOUN
  }
  said = {word for i, word in enumerate(words) if i not in articles}
  letters = said & {*choices}
  if len(letters) == 1:
    return letters.pop()
  low = text.lower()
  if letters or len(low) > 2 * sum(map(len, choices.values())):
    return None
  inside = [name for name, value in choices.items() if value.lower() in low]
  return inside[0] if len(inside) == 1 else None


def _needs_listed(question: str, right: str) -> None:
  choices = choices_of(question)
  if letter(label(right)) not in choices:
    raise UserError(
      "expected a letter of its choices, lines such as 'B. red', as right"
      f" answer, found {right!r:.80} of {', '.join(choices) or 'none'}"
    )


@marked(needs_answer=_needs_listed)
def inferred_choice(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  example: Sequence[Any],
) -> Float[np.ndarray, "P G"]:
  """Rewards the right choice, said in whatever form, with 1, others with 0.

  It reads the answer block, and the whole text after the thought where there is
  none: as benchmarks of VLMEvalKit are scored without a judge.

  Args:
    text: P lists of G answers.
    answer: the letter of each right one.
    example: the questions (`mmrl.data.Example`), which list their choices, see
      `choices_of`.

  Raises:
    UserError: naming the question that lists no choices, or not the right one.
  """
  rows = []
  for group, right, one in zip(text, answer, example, strict=True):
    with errors.of_field(one.name):
      _needs_listed(one.question, right)
    wanted, choices = letter(label(right)), choices_of(one.question)
    found = (infer(_said(given), choices) for given in group)
    rows.append([float(letter == wanted) for letter in found])
  return np.array(rows, np.float32).reshape(len(text), -1)


def _said(text: str) -> str:
  """Returns the answer block, or what is after the thought."""
  found = extract(text)
  return text.rpartition("</think>")[2].strip() if found is None else found
