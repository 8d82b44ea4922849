"""Messages between strategies, their runner and models.

A strategy is a generator function of an example. It yields an `Ask`, or a list
of them to be answered side by side, is sent one `Reply`, or a list, and returns
an `Answer`. A model is anything that answers requests: a `Responder`.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
import dataclasses
from typing import Any, Protocol, runtime_checkable

from mmrl.data import Example


@dataclasses.dataclass(frozen=True)
class Ask:
  """A question that a strategy puts to a model.

  Attributes:
    model: role of the model, such as "policy" or "judge".
    messages: the conversation; see `Processor.__call__`.
    options: of decoding, for this request only; a model refuses those that it
      doesn't know.
  """

  model: str
  messages: Sequence[dict]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not _is_conversation(self.messages):
      raise TypeError(
        "expected messages as a list of {'role', 'content'}, found"
        f" {self.messages!s:.80}; user(text) makes one"
      )


def _is_conversation(messages: Any) -> bool:
  if isinstance(messages, str) or not isinstance(messages, Sequence):
    return False
  return bool(messages) and all(
    isinstance(message, Mapping) and {"role", "content"} <= set(message)
    for message in messages
  )


@dataclasses.dataclass(frozen=True)
class Reply:
  """Reply of a model to an `Ask`.

  Attributes:
    text: the reply.
    prompt_tokens: tokens that the model read, those of pictures included.
    completion_tokens: tokens that it wrote.
    ended: False if the reply was cut off at its longest length.
    notes: what else the model returns.
  """

  text: str
  prompt_tokens: int = 0
  completion_tokens: int = 0
  ended: bool = True
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Answer:
  """Answer that a strategy returns.

  Attributes:
    text: the answer.
    notes: intermediate results that the trace doesn't show.
  """

  text: str
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a request, or a question, has no answer.

  Attributes:
    question: its name.
    model: that was asked; None if the strategy gave up.
    error: the last error.
    attempts: how often the model was asked.
  """

  question: str
  model: str | None
  error: str
  attempts: int

  def __str__(self) -> str:
    if self.model is None:
      return f"{self.question}: {self.error}"
    times = "once" if self.attempts == 1 else f"{self.attempts} times"
    return f"{self.question}: asked model {self.model!r} {times}: {self.error}"


class Unanswered(Exception):
  """A question has no answer: a strategy raises it to give up on its own."""


class AskFailed(Unanswered):
  """An `Ask` of a strategy's last yield has failed; raised at that yield.

  A strategy may catch it and go on.

  Attributes:
    failure: of the first that failed.
    replies: to everything that was asked side by side, in order; None where
      there is none.
  """

  def __init__(self, failure: Failure, replies: Sequence[Reply | None]):
    super().__init__(str(failure))
    self.failure = failure
    self.replies = tuple(replies)


@dataclasses.dataclass(frozen=True)
class Request:
  """An `Ask` on its way to a model.

  Attributes:
    name: unique in a run and the same in every run of the same questions, so
      that a model can draw the request's random numbers from it.
    ask: what was asked.
  """

  name: str
  ask: Ask


@runtime_checkable
class Responder(Protocol):
  """A model that answers requests.

  It returns, in order, a `Reply` to each, or the exception that only this
  request ran into. The runner asks again for what failed, unless that is a
  `UserError`, which would come again.

  Attributes:
    in_flight: most requests of a call.
  """

  in_flight: int

  def __call__(
    self, requests: Sequence[Request]
  ) -> Sequence[Reply | Exception]: ...


Steps = Generator[Ask | Sequence[Ask], Any, Answer]
Strategy = Callable[[Example], Steps]


def user(text: str, shown: Sequence[dict] = ()) -> list[dict]:
  """Makes a conversation of one turn: pictures and videos, then the text."""
  return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def shown(messages: Sequence[dict]) -> list[dict]:
  """Returns the pictures and videos of a conversation, as message parts."""
  return [part for part in _parts(messages) if part["type"] != "text"]


def written(messages: Sequence[dict]) -> str:
  """Returns the texts of a conversation, a line each."""
  parts = _parts(messages)
  return "\n".join(part["text"] for part in parts if part["type"] == "text")


def behind(messages: Sequence[dict], text: str) -> list[dict]:
  """Returns a conversation with a text behind what its last message says."""
  *first, last = messages
  content = last["content"]
  if isinstance(content, str):
    content = [{"type": "text", "text": content}]
  parts = [*content, {"type": "text", "text": f"\n\n{text}"}]
  return [*first, {**last, "content": parts}]


def _parts(messages: Sequence[dict]) -> Iterator[dict]:
  for message in messages:
    content = message["content"]
    whole = isinstance(content, str)
    yield from [{"type": "text", "text": content}] if whole else content
