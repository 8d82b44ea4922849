"""Sample completions of a run: a few answers that it has learned from."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import ml_collections
import numpy as np

from mmrl.errors import UserError
from mmrl.prompts import parts
from mmrl.prompts.processor import Processor
from mmrl.report import drawing
from mmrl.rollouts import answers as answers_lib
from mmrl.rollouts.answers import Answers, Reward

# Their file in a working directory.
FILE = "samples.jsonl"
# Longest text of a printed one, and longer side of a picture in a tracker.
_PRINTED, _SIDE = 200, 512


@dataclasses.dataclass(frozen=True)
class Sample:
  """One answer to a question, with its rewards.

  Attributes:
    step: in which it was sampled.
    name: of the question.
    question: as asked.
    answer: what the model wrote.
    right: all answers that are right; none where the data have none.
    rewards: values by name.
    total: their weighted sum.
    shown: parts of its messages that are pictures or videos. They aren't
      written to `FILE`.
  """

  step: int
  name: str
  question: str
  answer: str
  right: Sequence[str]
  rewards: Mapping[str, float]
  total: float
  shown: Sequence[Mapping[str, Any]] = ()

  def row(self) -> dict[str, Any]:
    """Returns what is written to `FILE`."""
    return {k: v for k, v in vars(self).items() if k != "shown"}

  def picture(self) -> np.ndarray | None:
    """Draws what is shown, uint8 [height, width, 3]; None if that is nothing.

    A single picture has at most 512 pixels a side; several, and frames of
    videos, stand beside each other.
    """
    found = drawing.question(self.shown, self.name)
    if found is None:
      return None
    if len(self.shown) == 1 and self.shown[0]["type"] == "image":
      found.thumbnail((_SIDE, _SIDE))
    return np.asarray(found)

  def rewarded(self) -> str:
    """Formats the rewards in one line; "" for a run without any."""
    named = ", ".join(f"{k} {v:.3g}" for k, v in self.rewards.items())
    return f"{self.total:.3g} ({named})" if named else ""

  def lines(self) -> list[str]:
    """Formats it for a terminal, shortened."""
    head = f"sample of step {self.step}, {_short(self.name)}"
    shown = {k: _short(v) for k, v in self.texts().items()}
    return [head, *(f"  {title:8} {text}" for title, text in shown.items())]

  def texts(self) -> dict[str, str]:
    """Returns what there is to show, by title."""
    found = {
      "question": self.question,
      "answer": self.answer or "(no text)",
      "right": " or ".join(self.right),
      "reward": self.rewarded(),
    }
    return {title: text for title, text in found.items() if text}


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the fields of a config.

  Raises:
    UserError: naming the one that is wrong.
  """
  for name, least, rest in (
    ("every", 0, "number of steps, or 0 for none"),
    ("count", 1, "number of answers"),
  ):
    found = config.samples[name]
    if found < least:
      raise UserError(
        f"config.samples.{name}: expected a {rest}, found {found}; set"
        " config.samples.every to 0 for no samples"
      )


def due(config: ml_collections.ConfigDict, step: int) -> bool:
  """Tells whether a step has samples: the first, and every so many."""
  every = config.samples.every
  return every > 0 and (step == 1 or step % every == 0)


def choose(
  step: int,
  count: int,
  answers: Answers,
  rewards: Sequence[Reward],
  processor: Processor,
) -> list[Sample]:
  """Takes the policy's first answers to the first questions of a batch.

  Args:
    step: of the batch.
    count: how many; fewer where the batch has fewer questions.
    answers: graded.
    rewards: of the run.
    processor: decodes the answers.
  """
  texts = processor.decode(answers.tokens[:count, :1], answers.mask[:count, :1])
  totals = answers_lib.total(rewards, answers, step)
  return [
    Sample(
      step=step,
      name=_clean(example.name),
      question=_clean(example.question),
      answer=_clean(text),
      right=[_clean(right) for right in example.right],
      # One that is only logged may not apply.
      rewards={
        k: float(v[i, 0])
        for k, v in answers.parts.items()
        if math.isfinite(v[i, 0])
      },
      total=float(totals[i, 0]),
      shown=parts.shown(example.messages, example.name),
    )
    for i, (example, text) in enumerate(
      zip(answers.examples[:count], texts, strict=True)
    )
  ]


def parse(rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
  """Reads rows of `FILE`, but for those that have been changed by hand."""
  names = {field.name for field in dataclasses.fields(Sample)} - {"shown"}
  return [Sample(**row) for row in rows if row.keys() == names]


def _short(text: str) -> str:
  """Puts a text into one line of characters that a terminal can show."""
  line = " ".join(text.split())
  line = "".join(x if x.isprintable() else "?" for x in line)
  return line if len(line) <= _PRINTED else line[: _PRINTED - 1] + "…"


def _clean(text: str) -> str:
  """Replaces halves of surrogate pairs, which UTF-8 can't encode."""
  return text.encode("utf-8", "replace").decode("utf-8")
