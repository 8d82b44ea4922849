"""Judges that say which facts a text states; each takes a whole batch.

A judge is asked about pairs of (facts, text) and returns, in order, a verdict
in [0, 1] on each fact, or None where it has no answer.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
import zlib

from mmrl.errors import UserError
from mmrl.rewards.facts import verdicts
from mmrl.rewards.facts.verdicts import Verdicts

Asked = Sequence[tuple[Sequence[str], str]]
Judge = Callable[[Asked], Sequence[Verdicts | None]]
# Conversations, options of decoding -> a reply to each; None where it failed.
Ask = Callable[..., Sequence[str | None]]


def _plain(text: str) -> str:
  return " ".join(text.casefold().split())


@functools.lru_cache(4096)
def _pattern(fact: str) -> re.Pattern[str]:
  fact = re.escape(_plain(fact).rstrip(" ."))
  return re.compile(rf"(?<!\w){fact}(?!\w)")


def substring(asked: Asked) -> list[list[float]]:
  """Finds facts that stand word by word in a text.

  Case, white space and the full stop at the end don't count.
  """
  return [
    [float(bool(_pattern(fact).search(_plain(text)))) for fact in facts]
    for facts, text in asked
  ]


@dataclasses.dataclass(frozen=True)
class Table:
  """Looks verdicts up by the text; there is no answer to others."""

  table: Mapping[str, Verdicts | None]

  def __call__(self, asked: Asked) -> list[Verdicts | None]:
    return [self.table.get(text) for _, text in asked]


@dataclasses.dataclass(frozen=True)
class Noisy:
  """Turns verdicts of another judge over: the weak judge of the paper.

  Attributes:
    judge: the other one.
    flip: probability, in [0, 1], that a verdict v becomes 1 - v.
    seed: another seed errs elsewhere; the same fact in the same text has the
      same verdict.
  """

  judge: Judge
  flip: float
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.flip <= 1:
      raise UserError(f"flip: expected it in [0, 1], found {self.flip!r:.80}")

  def __call__(self, asked: Asked) -> list[Verdicts | None]:
    found: list[Verdicts | None] = []
    for (facts, text), given in zip(asked, self.judge(asked), strict=True):
      if given is None:
        found.append(None)
        continue
      flips = [self._flips(fact, text) for fact in facts]
      flips += [False] * (len(given) - len(flips))
      found.append(
        [1 - v if f else v for v, f in zip(given, flips, strict=False)]
      )
    return found

  def _flips(self, fact: str, text: str) -> bool:
    named = f"{self.seed}\n{fact}\n{text}".encode("utf-8", "surrogatepass")
    return zlib.crc32(named) < self.flip * 2**32


@dataclasses.dataclass(frozen=True)
class Model:
  """Asks a language model, and reads its replies by `verdicts.parse`.

  Attributes:
    ask: the model.
    length: most tokens of a reply.
  """

  ask: Ask
  length: int = 512

  def __call__(self, asked: Asked) -> list[list[float] | None]:
    conversations = [verdicts.conversation(*one) for one in asked]
    replies = self.ask(conversations, length=self.length, temperature=0.0)
    return [None if one is None else verdicts.parse(one) for one in replies]
