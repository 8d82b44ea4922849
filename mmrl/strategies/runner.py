"""Drives a strategy on many examples side by side.

What the strategy asks of a model is gathered until every question waits for
one, and goes to it in as few calls as it allows.
"""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
import dataclasses
import functools
import time
from typing import Any

from mmrl import build
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.strategies.ask import (
  Answer,
  Ask,
  AskFailed,
  Failure,
  Reply,
  Request,
  Responder,
  Steps,
  Strategy,
  Unanswered,
)
from mmrl.strategies.queues import Clock, Count, Pending, Queues

# Requests of a question, from which on it has failed: its strategy doesn't end.
_MOST = 1000


@dataclasses.dataclass(frozen=True)
class Result:
  """Outcome of a question.

  Attributes:
    name: of the question.
    answer: None if it failed.
    trace: everything that was asked, in order, and what came of it.
    failure: None if it was answered.
    attempts: how often each request of the trace was sent.
  """

  name: str
  answer: Answer | None
  trace: tuple[tuple[Ask, Reply | Failure], ...]
  failure: Failure | None
  attempts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
  """Outcomes of all questions.

  Attributes:
    results: one of each example, in order.
    counts: what each model was asked.
  """

  results: tuple[Result, ...]
  counts: Mapping[str, Count]


def run(
  strategy: Strategy | build.Bound,
  examples: Iterable[Example],
  models: Mapping[str, Responder],
  *,
  attempts: int = 3,
  wait: float = 1.0,
  side_by_side: int = 1024,
  clock: Clock = time,
) -> Run:
  """Answers every example.

  Results don't depend on how requests are gathered to calls, if those of the
  models don't. One model is called at a time.

  Args:
    strategy: a generator function of an example, or what `build.bind` makes
      of a spec, with "example" provided.
    examples: the questions; each is read when there is room for it.
    models: by role.
    attempts: most times that a request is asked.
    wait: seconds before it is asked again, doubled each time.
    side_by_side: most questions under way.
    clock: to wait by.

  Raises:
    UserError: if the strategy asks a model that isn't there, or a number is
      out of range.
    TypeError: if the strategy is no generator function, or it or a model
      gives something else than it should.
  """
  queues = Queues(models, attempts=attempts, wait=wait, clock=clock)
  found = dict(_drive(strategy, examples, queues, side_by_side))
  return Run(tuple(found[i] for i in range(len(found))), queues.counts)


def each(
  strategy: Strategy | build.Bound,
  examples: Iterable[Example],
  models: Mapping[str, Responder],
  *,
  attempts: int = 3,
  wait: float = 1.0,
  side_by_side: int = 1024,
  clock: Clock = time,
) -> Iterator[tuple[int, Result]]:
  """Yields the number and the outcome of every example, as soon as it is there.

  See `run` for arguments and errors.
  """
  queues = Queues(models, attempts=attempts, wait=wait, clock=clock)
  return _drive(strategy, examples, queues, side_by_side)


def _drive(
  strategy: Strategy | build.Bound,
  examples: Iterable[Example],
  queues: Queues,
  side_by_side: int,
) -> Iterator[tuple[int, Result]]:
  if side_by_side < 1:
    raise UserError(
      f"expected side_by_side of at least 1, found {side_by_side}"
    )
  if isinstance(strategy, build.Bound):
    strategy = functools.partial(strategy.function, **strategy.options)
  waiting: dict[str, tuple[int, _Question]] = {}

  def take(number: int, question: _Question) -> Iterator[tuple[int, Result]]:
    """Queues what a question asks, or lets go of it."""
    if question.result:
      waiting.pop(question.name, None)
      yield number, question.result
    else:
      waiting[question.name] = number, question
      for pending in question.asked:
        queues.put(pending)

  def call() -> Iterator[tuple[int, Result]]:
    done = dict.fromkeys(pending.question for pending in queues.call())
    for number, question in map(waiting.__getitem__, done):
      if all(pending.outcome for pending in question.asked):
        question.answered()
        yield from take(number, question)

  for number, (name, example) in enumerate(_named(examples)):
    yield from take(number, _Question(name, strategy(example)))
    while len(waiting) >= side_by_side:
      yield from call()
  while waiting:
    yield from call()


def _named(examples: Iterable[Example]):
  """Yields each example and its name, numbered where there are several."""
  copies: collections.Counter[str] = collections.Counter()
  used = set()
  for example in examples:
    name = example.name
    while name in used:
      copies[example.name] += 1
      name = f"{example.name} ({copies[example.name] + 1})"
    used.add(name)
    yield name, example


class _Question:
  """A question under way.

  Attributes:
    name: unique in the run.
    asked: what its last yield asks.
    result: None as long as it waits for that.
  """

  def __init__(self, name: str, steps: Any):
    """Takes the first step of a strategy."""
    if not isinstance(steps, Generator):
      raise TypeError(
        f"expected a strategy to be a generator function, found one that"
        f" returns {steps!r:.80}; let it yield what it asks"
      )
    self.name = name
    self.asked: list[Pending] = []
    self.result: Result | None = None
    self._steps: Steps = steps
    self._trace: list[tuple[Ask, Reply | Failure]] = []
    self._attempts: list[int] = []
    self._took = 0
    self._alone = False
    self._step(lambda: next(steps))

  def answered(self) -> None:
    """Takes the next step, with the outcomes of what was asked."""
    outcomes = [p.outcome for p in self.asked if p.outcome]
    asks = [pending.request.ask for pending in self.asked]
    self._trace += zip(asks, outcomes, strict=True)
    self._attempts += [pending.attempts for pending in self.asked]
    replies = [x if isinstance(x, Reply) else None for x in outcomes]
    failures = [x for x in outcomes if isinstance(x, Failure)]
    if failures:
      error = AskFailed(failures[0], replies)
      self._step(lambda: self._steps.throw(error))
    else:
      sent = replies[0] if self._alone else replies
      self._step(lambda: self._steps.send(sent))

  def _step(self, resume: Callable[[], Any]) -> None:
    answer = failure = None
    try:
      asked = resume()
      while asked in ([], ()) and self._took < _MOST:
        self._took += 1
        asked = self._steps.send([])
    except StopIteration as end:
      answer = end.value
      if not isinstance(answer, Answer):
        raise TypeError(
          f"{self.name}: expected the strategy to return an Answer, found"
          f" {answer!r:.80}"
        ) from None
    except AskFailed as error:
      failure = error.failure
    except Unanswered as error:
      failure = Failure(self.name, None, str(error), 0)
    else:
      if self._ask(asked):
        return
      self._steps.close()
      failure = Failure(
        self.name,
        None,
        f"expected an answer after at most {_MOST} requests, found another one",
        0,
      )
    trace, attempts = tuple(self._trace), tuple(self._attempts)
    self.result = Result(self.name, answer, trace, failure, attempts)

  def _ask(self, asked: Any) -> bool:
    """Notes what is asked; tells whether that isn't too much."""
    self._alone = isinstance(asked, Ask)
    asks = [asked] if self._alone else asked
    right = isinstance(asks, list | tuple)
    if not right or not all(isinstance(ask, Ask) for ask in asks):
      raise TypeError(
        f"{self.name}: expected the strategy to yield an Ask or a list of"
        f" them, found {asked!r:.80}"
      )
    self._took += len(asks)
    if not asks or self._took > _MOST:
      return False
    # A request's number is its place in the trace.
    self.asked = [
      Pending(self.name, Request(f"{self.name}, ask {number}", ask))
      for number, ask in enumerate(asks, len(self._trace))
    ]
    return True
