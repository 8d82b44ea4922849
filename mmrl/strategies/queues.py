"""Requests that wait for models, and the calls that answer them.

Many requests go to a model in one call. One that fails is asked again after a
while, until its attempts are used up.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Protocol, runtime_checkable

from mmrl.errors import UserError
from mmrl.strategies.ask import Failure, Reply, Request, Responder


@runtime_checkable
class Clock(Protocol):
  """A clock that can be waited for, such as the module `time`."""

  def monotonic(self) -> float: ...

  def sleep(self, seconds: float, /) -> None: ...


@dataclasses.dataclass
class Count:
  """Counts of the requests to a model and of its replies.

  Attributes:
    calls: how often it was called.
    requests: requests of all calls, repeated ones included.
    retries: those that were repetitions.
    failures: requests that failed for good.
    cut: replies that were cut off at their longest length.
    prompt_tokens: tokens that it read for its replies.
    completion_tokens: tokens that it wrote.
  """

  calls: int = 0
  requests: int = 0
  retries: int = 0
  failures: int = 0
  cut: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0


@dataclasses.dataclass(eq=False)
class Pending:
  """A request until it has an outcome.

  Attributes:
    question: name of the question that it belongs to.
    request: what is asked.
    attempts: how often it was.
    due: when it may be asked again.
    outcome: None as long as it waits.
  """

  question: str
  request: Request
  attempts: int = 0
  due: float = -math.inf
  outcome: Reply | Failure | None = None


class Queues:
  """A queue of requests for each model.

  Attributes:
    counts: of each model.
  """

  def __init__(
    self,
    models: Mapping[str, Responder],
    *,
    attempts: int,
    wait: float,
    clock: Clock,
  ):
    """Opens the queues; see `runner.run` for the arguments."""
    numbers = {f"in_flight of {n!r}": m.in_flight for n, m in models.items()}
    for name, value in {"attempts": attempts, **numbers}.items():
      if value < 1:
        raise UserError(f"expected {name} of at least 1, found {value}")
    if wait < 0:
      raise UserError(f"expected wait of at least 0 seconds, found {wait}")
    self.counts = {name: Count() for name in models}
    self._models, self._clock = dict(models), clock
    self._attempts, self._wait = attempts, wait
    self._waiting: dict[str, list[Pending]] = {name: [] for name in models}

  def put(self, pending: Pending) -> None:
    """Queues a request.

    Raises:
      UserError: if there is no such model.
    """
    name = pending.request.ask.model
    if name not in self._models:
      raise UserError(
        f"{pending.question}: expected a question to one of"
        f" {', '.join(self._models) or 'no models'}, found one to model"
        f" {name!r}; add it to the run's models"
      )
    self._waiting[name].append(pending)

  def call(self) -> list[Pending]:
    """Calls the model that most requests wait for; sleeps if none is due.

    Returns:
      The requests that have an outcome now.
    """
    now = self._clock.monotonic()
    due = {
      name: [pending for pending in waiting if pending.due <= now]
      for name, waiting in self._waiting.items()
    }
    name = max(due, key=lambda name: len(due[name]))
    if not due[name]:
      times = [p.due for waiting in self._waiting.values() for p in waiting]
      self._clock.sleep(min(times) - now)
      return []
    batch = due[name][: self._models[name].in_flight]
    sent = set(batch)
    self._waiting[name] = [p for p in self._waiting[name] if p not in sent]
    found = self._ask(name, [pending.request for pending in batch])
    for pending, one in zip(batch, found, strict=True):
      self._note(name, pending, one)
    return [pending for pending in batch if pending.outcome]

  def _ask(
    self, name: str, requests: Sequence[Request]
  ) -> Sequence[Reply | Exception]:
    """Calls a model; if it raises, each of the requests has failed."""
    self.counts[name].calls += 1
    self.counts[name].requests += len(requests)
    found: Sequence[Reply | Exception]
    try:
      found = self._models[name](requests)
    except Exception as error:
      found = [error] * len(requests)
    right = isinstance(found, Sequence) and len(found) == len(requests)
    if not right or not all(isinstance(x, Reply | Exception) for x in found):
      raise TypeError(
        f"expected model {name!r} to return {len(requests)} replies or"
        f" exceptions, found {found!s:.80}"
      )
    return found

  def _note(
    self, name: str, pending: Pending, found: Reply | Exception
  ) -> None:
    """Notes what came of a request; what failed may have another attempt."""
    count = self.counts[name]
    count.retries += pending.attempts > 0
    pending.attempts += 1
    if isinstance(found, Reply):
      count.cut += not found.ended
      count.prompt_tokens += found.prompt_tokens
      count.completion_tokens += found.completion_tokens
      pending.outcome = found
    elif isinstance(found, UserError) or pending.attempts == self._attempts:
      count.failures += 1
      kind = "" if isinstance(found, UserError) else f"{type(found).__name__}: "
      pending.outcome = Failure(
        question=pending.question,
        model=name,
        error=f"{kind}{found}",
        attempts=pending.attempts,
      )
    else:
      again = self._wait * 2 ** (pending.attempts - 1)
      pending.due = self._clock.monotonic() + again
      self._waiting[name].append(pending)
