"""One question, as every source gives it."""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Example:
  """One question with a verifiable answer.

  Attributes:
    name: what errors and reports call it.
    question: as asked, for people to read.
    messages: the conversation that is put to the model; an image part may
      carry "region", a box x0, y0, x1, y1 in pixels of its picture.
    answer: the exact answer.
    kind: group of questions that scores are also reported for.
    answers: whole texts to learn from, where the data give some.
  """

  name: str
  question: str
  messages: Sequence[dict]
  answer: str
  kind: str = "all"
  answers: Sequence[str] = ()

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
