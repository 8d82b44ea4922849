"""What the other strategies are compared with: one model, one or more replies.

References: chain of thought, arXiv 2205.11916; self-consistency, arXiv
2203.11171; the best of n by a judge, arXiv 2110.14168. Prompts in our own
words.
"""

import collections
from collections.abc import Generator, Mapping, Sequence
import re
import types
from typing import Any

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.answer import extract
from mmrl.strategies import wording
from mmrl.strategies.ask import (
  Answer,
  Ask,
  AskFailed,
  Reply,
  Steps,
  behind,
  shown,
  user,
  written,
)


def _asks_one(*, model: str = "policy", **_: Any) -> tuple[str, ...]:
  return (model,)


@marked(asks=_asks_one)
def direct(
  example: Example,
  *,
  model: str = "policy",
  options: Mapping[str, Any] = types.MappingProxyType({}),
) -> Steps:
  """Asks a model and takes its reply.

  Args:
    example: the question.
    model: role of the model.
    options: of decoding.
  """
  reply = yield Ask(model, example.messages, options)
  return Answer(reply.text, reply.notes)


@marked(asks=("policy",))
def chain_of_thought(example: Example) -> Steps:
  """Asks for a thought before the answer."""
  asked = behind(example.messages, wording.fill("chain_of_thought"))
  reply = yield Ask("policy", asked)
  return Answer(reply.text, reply.notes)


def _check_sampled(*, n: int = 8, temperature: float = 0.7, **_: Any) -> None:
  if n < 1 or not temperature > 0:
    raise UserError(
      f"expected n of at least 1 and a temperature above 0, found {n} and"
      f" {temperature}"
    )


@marked(asks=("policy",), check=_check_sampled)
def self_consistency(
  example: Example,
  *,
  n: int = 8,
  temperature: float = 0.7,
  thought: bool = True,
) -> Steps:
  """Samples n answers, and takes the first of those that most agree with.

  Answers agree if their answer blocks (`rewards.answer.extract`), or else their
  whole texts, are the same but for case and white space. Of equally frequent
  ones the one that was drawn first is taken.

  Args:
    example: the question.
    n: number of answers. One that failed has no vote.
    temperature: of sampling.
    thought: whether a thought is asked for first.
  """
  replies = yield from _sample(example, n, temperature, thought)
  labels = [_label(reply.text) for reply in replies]
  votes = collections.Counter(labels)
  (label, _), *_ = votes.most_common(1)
  return Answer(replies[labels.index(label)].text, {"votes": dict(votes)})


@marked(asks=("policy", "judge"), check=_check_sampled)
def best_of_n(
  example: Example,
  *,
  n: int = 8,
  temperature: float = 0.7,
  thought: bool = True,
) -> Steps:
  """Samples n answers, and takes the one that a judge gives the highest mark.

  A mark that can't be read is below all others; of equal ones the first counts.

  Args:
    example: the question.
    n: number of answers. One that failed isn't judged.
    temperature: of sampling.
    thought: whether a thought is asked for first.
  """
  replies = yield from _sample(example, n, temperature, thought)
  question, pictures = written(example.messages), shown(example.messages)
  judged: Sequence[Reply | None]
  try:
    judged = yield [
      Ask(
        "judge",
        user(
          wording.fill("judge", question=question, answer=reply.text), pictures
        ),
      )
      for reply in replies
    ]
  except AskFailed as error:
    if not any(error.replies):
      raise
    judged = error.replies
  marks = [parse_mark(reply.text) if reply else None for reply in judged]
  best = max(range(len(marks)), key=lambda i: (marks[i] or -1.0, -i))
  return Answer(replies[best].text, {"marks": marks})


def _sample(
  example: Example, n: int, temperature: float, thought: bool
) -> Generator[list[Ask], Any, Sequence[Reply]]:
  """Asks n times; returns the replies that came, at least one."""
  messages = example.messages
  if thought:
    messages = behind(messages, wording.fill("chain_of_thought"))
  ask = Ask("policy", messages, {"temperature": temperature})
  try:
    replies = yield [ask] * n
  except AskFailed as error:
    replies = [reply for reply in error.replies if reply]
    if not replies:
      raise
  return replies


def _label(text: str) -> str:
  """Returns what two answers that agree have in common."""
  found = extract(text) or extract(text, "boxed") or text
  return " ".join(found.casefold().split())


def parse_mark(text: str) -> float | None:
  """Reads a judge's mark: the last number from 0 to 10; None without one."""
  found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)", text, re.ASCII)
  marks = [float(one) for one in found if len(one) < 10]
  return next((mark for mark in reversed(marks) if mark <= 10), None)
