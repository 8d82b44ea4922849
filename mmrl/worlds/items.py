"""What every world asks: items as a guesser sees them, and what it scores."""

import collections
from collections.abc import Callable, Iterable, Sequence
import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
  """A question as one sees it who can't see the picture.

  Attributes:
    kind: of question.
    stem: its text without choices, places and times that no other has.
    meaning: what the right answer says; of choices the text, not the letter.
    choices: what can be chosen; empty where answers are free.
    chance: probability that a guess among the possible answers is right.
  """

  kind: str
  stem: str
  meaning: str
  choices: tuple[str, ...]
  chance: float


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
  """Scores without looking, of one kind of question.

  Attributes:
    count: questions that were scored.
    chance: accuracy of a guess among the possible answers.
    blind: accuracy of the most frequent answer to the same text.
  """

  count: int
  chance: float
  blind: float


def baselines(asked: Sequence[Asked]) -> dict[str, Baseline]:
  """Computes what can be scored without looking, by kind of question.

  The blind guesser is `guesser`. Each half of the sample is answered from the
  other.

  Args:
    asked: a sample, at least two of each kind.
  """
  kinds = collections.defaultdict(list)
  for one in asked:
    kinds[one.kind].append(one)
  return {
    kind: Baseline(
      len(found),
      sum(one.chance for one in found) / len(found),
      (_right(found[::2], found[1::2]) + _right(found[1::2], found[::2]))
      / len(found),
    )
    for kind, found in sorted(kinds.items())
  }


def guesser(known: Iterable[Asked]) -> Callable[[Asked], str]:
  """Returns what answers questions of one kind without looking.

  It answers with what was right most often where the same text was asked, among
  the choices if there are any; to a text that it doesn't know, with the most
  frequent answer of all.

  Args:
    known: questions of the kind.
  """
  stems: dict[str, collections.Counter[str]]
  stems = collections.defaultdict(collections.Counter)
  overall: collections.Counter[str] = collections.Counter()
  for one in known:
    stems[one.stem][one.meaning] += 1
    overall[one.meaning] += 1

  def guess(one: Asked) -> str:
    counts = stems.get(one.stem, overall)
    ranked = [
      word
      for counter in (counts, overall)
      for word, _ in counter.most_common()
      if not one.choices or word in one.choices
    ]
    return ranked[0] if ranked else (one.choices or ("",))[0]

  return guess


def _right(known: Sequence[Asked], asked: Sequence[Asked]) -> int:
  """Counts right answers of the guesser who has seen `known`."""
  guess = guesser(known)
  return sum(guess(one) == one.meaning for one in asked)


def table(found: dict[str, Baseline]) -> str:
  """Formats baselines in Markdown."""
  lines = ["| kind | questions | chance | blind |", "|---|---|---|---|"]
  lines += [
    f"| {kind} | {one.count} | {one.chance:.1%} | {one.blind:.1%} |"
    for kind, one in found.items()
  ]
  return "\n".join(lines)
