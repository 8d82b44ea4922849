"""One question, as every source gives it."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from mmrl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
  """One question, and what the data say to it.

  Attributes:
    name: what errors and reports call it.
    question: as asked, for people to read.
    messages: the conversation that is put to the model; an image part may
      carry "region", a box x0, y0, x1, y1 in pixels of its picture.
    answer: the right answer; None where the data have texts to learn only.
    kind: group of questions that scores are also reported for.
    answers: whole texts to learn from, where the data give some.
    also: other answers that are right as well.
    other: the conversation about other pictures, which lack what the answer is
      about; empty where the data have none.
    partner: the question that it is asked together with, where answers to both
      are compared.
    epoch: pass over the data in which it is asked, from 1 on.
    shown: width and height in pixels at which the model sees each picture;
      empty until the question is encoded.
    extra: what a source knows besides, by name, for rewards that read it; the
      source's docstring says what.
  """

  name: str
  question: str
  messages: Sequence[dict]
  answer: str | None
  kind: str = "all"
  answers: Sequence[str] = ()
  also: Sequence[str] = ()
  other: Sequence[dict] = ()
  partner: "Example | None" = None
  epoch: int = 1
  shown: Sequence[tuple[int, int]] = ()
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def right(self) -> tuple[str, ...]:
    """All answers that are right; empty where the data have none."""
    return () if self.answer is None else (self.answer, *self.also)

  def twin(self) -> "Example":
    """Returns its partner; without one the question about its other pictures.

    That has its first text. Where it has none it is asked about its own, with
    no text to learn from.
    """
    if self.partner is not None:
      return dataclasses.replace(self.partner, epoch=self.epoch)
    return dataclasses.replace(
      self,
      name=f"{self.name} (other pictures)",
      messages=self.other or self.messages,
      answers=self.answers[:1] if self.other else (),
    )

  @property
  def pictures(self) -> int:
    """Number of pictures and videos in the messages."""
    return sum(
      part["type"] != "text"
      for message in self.messages
      if not isinstance(message["content"], str)
      for part in message["content"]
    )

  @property
  def picture(self) -> dict | None:
    """First image part of the messages; None if there is none."""
    for message in self.messages:
      if not isinstance(message["content"], str):
        for part in message["content"]:
          if part["type"] == "image":
            return part
    return None


def ask(question: str, prompt: str, shown: Sequence[dict]) -> list[dict]:
  """Builds one user turn: pictures, videos, then the question in its prompt."""
  text = {"type": "text", "text": prompt.replace("{question}", question)}
  return [{"role": "user", "content": [*shown, text]}]


def check_prompt(prompt: str) -> None:
  """Checks that the text of the user's turn holds the question.

  Raises:
    UserError: if it doesn't, so that no question would be asked.
  """
  if "{question}" not in prompt:
    raise UserError(
      "prompt: expected a text with {question} in it, found"
      f" {prompt[:80]!r}; put {{question}} where the question stands"
    )
