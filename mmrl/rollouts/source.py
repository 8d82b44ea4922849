"""Protocol of where the answers of a run come from."""

from collections.abc import Callable, Generator, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray
import numpy as np

from mmrl import data
from mmrl.machines.sharding import Layout
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor
from mmrl.rollouts.answers import Answers
from mmrl.types import Batch, Prompt, PyTree


@dataclasses.dataclass(frozen=True)
class Setup:
  """Settings of a run that a source of answers needs.

  Attributes:
    prompts, answers, length: P; G without rows that a wrapper adds; R.
    model: the policy's architecture.
    layers: decoder layers whose attention is a policy.
    layout: sharding of the run's arrays.
    rewards: whether each reward reads texts, by its name.
    buckets: numbers of sizes that prompts and patches are padded to; 0 where
      they come from the data.
    inner: (spec, config field) -> the source that a wrapper wraps.
  """

  prompts: int
  answers: int
  length: int
  model: ModelConfig
  layers: tuple[int, ...]
  layout: Layout
  rewards: Mapping[str, bool]
  buckets: tuple[int, int]
  inner: Callable[[Mapping[str, Any], str], "Source"]

  def shape(self, *sizes: int, dtype: Any) -> Any:
    """Returns the shape of an array that leads with P, as it is sharded."""
    dtype = jnp.dtype(dtype)
    where = self.layout.leading(sizes)
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)


def extra_key(prompts: int, draw: int) -> int:
  """Returns the number to fold into a step's key for a further draw.

  It is at least P: splitting a key folds in 0 to P - 1, for single prompts.

  Args:
    prompts: P.
    draw: from 1 on.
  """
  return prompts + draw


@dataclasses.dataclass(frozen=True)
class Request:
  """Request of a step for answers to a batch of questions.

  Attributes:
    state: of the run; has the policy's `params`.
    samples: the questions.
    key: random key of the step.
    more: returns further questions.
    grade: grades answers by the rewards that read texts.
  """

  state: Any
  samples: data.Samples
  key: PRNGKeyArray
  more: Callable[[], data.Samples]
  grade: Callable[[Answers], Answers]


@dataclasses.dataclass(frozen=True)
class Call:
  """A call of a compiled program on shapes.

  Attributes:
    name: of the program.
    function: the program.
    arguments: shapes.
    held: shapes of what else stays on the devices meanwhile.
    read: whether a later call reads its result.
  """

  name: str
  function: Callable
  arguments: tuple[PyTree, ...]
  held: PyTree = None
  read: bool = True

  def traced(self) -> PyTree:
    """Returns the shapes of its result."""
    return jax.eval_shape(self.function, *self.arguments)


Calls = Generator[Call, PyTree, Batch]


def trace(calls: Calls, layout: Layout) -> Batch:
  """Traces the programs of calls; returns the shapes of their batch.

  Results are on the mesh of a layout, as those of a run: JAX then finds again
  what is traced here when the run calls the same programs.
  """

  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.everywhere)

  return answer(calls, lambda call: jax.tree.map(place, call.traced()))


def answer(calls: Calls, result: Callable[[Call], PyTree]) -> Batch:
  """Sends each call the shapes of its result; returns those of the batch."""
  try:
    call = next(calls)
    while True:
      call = calls.send(result(call))
  except StopIteration as end:
    return end.value


class Source:
  """A place that answers come from; wrappers hold another one.

  Attributes:
    group: answers per prompt, rows that a wrapper adds included.
    temperature: of the policy that answers are scored with.
    draws: draws per step with a random key of their own, after the first.
    fields: names of the fields that its batches have.
    reads: names of the fields that `choose` reads.
    measures: functions of named data that return numbers to log.
    learns: whether it takes the texts to learn that the data give.
    one_size: whether all batches must have the same sizes.
    together: prompts of each question of the data; see `mmrl.data.pipeline`.
  """

  group: int
  temperature: float = 1.0
  draws: int = 0
  fields: tuple[str, ...] = ("ended",)
  reads: tuple[str, ...] = ()
  measures: tuple[Callable, ...] = ()
  learns: bool = False
  one_size: bool = False
  together: int = 1

  def open(self, questions: Any, processor: Processor) -> None:
    """Opens files, and checks them against the run's questions.

    Raises:
      UserError: naming the field of the config, or the line of a file.
    """
    del questions, processor

  def calls(
    self, state: PyTree, prompt: Prompt, key: Array, held: PyTree = None
  ) -> Calls:
    """Yields the calls of its programs in a step, on shapes.

    Args:
      state, prompt, key: shapes.
      held: shapes of what stays on the devices meanwhile.

    Yields:
      Calls; each is sent the shapes of its result.

    Returns:
      Shapes of a batch.
    """
    raise NotImplementedError

  def collect(self, request: Request) -> tuple[Answers, dict[str, float]]:
    """Returns answers to a batch of questions, and numbers to log."""
    raise NotImplementedError

  def choose(
    self, answers: Answers, fields: Mapping[str, np.ndarray]
  ) -> tuple[Bool[np.ndarray, "P G"] | None, dict[str, float]]:
    """Chooses the answers that the batch learns from, after grading.

    Args:
      answers: with all rewards.
      fields: those in `reads`, of this process's prompts.

    Returns:
      (which are kept, or None for all; numbers to log).
    """
    del answers, fields
    return None, {}


class Wrapper(Source):
  """A source that holds another one, and does as that does."""

  def __init__(self, inner: Source):
    self._inner = inner
    for name in Source.__annotations__:
      setattr(self, name, getattr(inner, name))

  def open(self, questions, processor):
    self._inner.open(questions, processor)

  def calls(self, state, prompt, key, held=None):
    return (yield from self._inner.calls(state, prompt, key, held))

  def collect(self, request: Request):
    return self._inner.collect(request)

  def choose(self, answers, fields):
    return self._inner.choose(answers, fields)
