"""The best step of a run, by a number of a benchmark: `config.checkpoint.best`.

The number is one that metrics.jsonl has of the evaluations while a run trains,
such as "test/accuracy". Of equal ones the earliest is best; NaN never is.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import math
from typing import Any

from mmrl.benchmarks.contract import Benchmark
from mmrl.errors import UserError, nearest
from mmrl.machines import processes

_FIELD = "config.checkpoint.best"


@dataclasses.dataclass(frozen=True)
class Best:
  """The best step so far.

  Attributes:
    step: after which its parameters were.
    value: of the number that is compared.
  """

  step: int
  value: float


def due(config: Any, step: int) -> bool:
  """Tells whether a run is evaluated after a step.

  One that keeps its best step is after the last, too, whose model it writes.
  """
  every = config.evaluation.every
  last = bool(config.checkpoint.best) and step == config.train.steps
  return bool(every) and (step % every == 0 or last)


def after(
  settings: Any, best: Best | None, step: int, values: Mapping[str, float]
) -> Best | None:
  """Returns the best step, given the one so far and the numbers of a new one.

  All processes call it, and find the same.

  Args:
    settings: `config.checkpoint`.
    best: so far; None if there is none yet.
    step: that was evaluated.
    values: its numbers, by name.
  """
  found = values.get(settings.best, math.nan)
  value = processes.mean({"value": found})["value"]
  sign = 1 if settings.best_mode == "max" else -1
  if math.isnan(value) or (best and sign * value <= sign * best.value):
    return best
  return Best(step, value)


def check(config: Any, benchmarks: Mapping[str, Benchmark]) -> None:
  """Checks the fields of a config that say which step is best.

  Names of a part, as in test/accuracy/colour, are known once there are results:
  see `check_results`.

  Raises:
    UserError: naming the field that is wrong.
  """
  name, mode = config.checkpoint.best, config.checkpoint.best_mode
  if mode not in ("max", "min") or (mode == "min" and not name):
    raise UserError(
      f"{_FIELD}_mode: expected 'max', or 'min' where {_FIELD} names a number"
      f" of which less is better, found {mode!r}"
    )
  if not name:
    return
  if not config.evaluation.every:
    raise UserError(
      f"{_FIELD}: expected evaluations while training, of which one is best,"
      f" found config.evaluation.every = 0; set it, such as to"
      f" {config.checkpoint.every}"
    )
  known = {key: _numbers(one) for key, one in benchmarks.items()}
  benchmark, _, number = name.partition("/")
  numbers = known.get(benchmark)
  whole = number.partition("/")[0]
  if number and (
    numbers == [] or (numbers and whole in (*numbers, "attention"))
  ):
    return
  raise _unknown(
    name, [f"{b}/{n}" for b, found in known.items() for n in found]
  )


def check_results(config: Any, values: Mapping[str, float]) -> None:
  """Checks before the first step that an evaluation gives the number.

  Args:
    config: of the run.
    values: of the evaluation before training.

  Raises:
    UserError: if it doesn't.
  """
  name = config.checkpoint.best
  # One without parts may be NaN now and a number later.
  if name.count("/") > 1 and name not in values:
    raise _unknown(name, values)


def _numbers(benchmark: Benchmark) -> list[str]:
  """Lists the numbers of a benchmark without parts; [] if it can't tell."""
  with contextlib.suppress(Exception):  # one's own may need an answer
    return [*benchmark.summarise(benchmark.grade([], []))]
  return []


def _unknown(name: str, known: Any) -> UserError:
  hint = nearest(name, known)
  listed = ", ".join(known) or "none known before a run"
  return UserError(
    f"{_FIELD}: expected a number that an evaluation gives ({listed:.400}),"
    f" found {name!r}{hint}"
  )
