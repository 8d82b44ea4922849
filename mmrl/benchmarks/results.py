"""Results of an evaluation, by the name of the benchmark, and their file."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from mmrl import json_files, storage
from mmrl.benchmarks.intervals import Estimate
from mmrl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shown:
  """One answered question, for the report.

  Attributes:
    index: of the question in the benchmark.
    text: what the model wrote.
    scores: values of the answer; empty where items are several questions.
    heat: attention on each visual token of the first picture or video, frames
      by rows by columns, mean over the answer's tokens.
    region: share of visual attention on the marked region; None where none is
      marked.
  """

  index: int
  text: str
  scores: Mapping[str, float]
  heat: Sequence[Sequence[Sequence[float]]]
  region: float | None


@dataclasses.dataclass(frozen=True)
class Result:
  """Numbers of a model on a benchmark, and some of its answers.

  Attributes:
    items: how many are graded.
    numbers: the summary of them; where regions are marked, `attention/region`
      is the share of visual attention on them, `attention/region_uniform` what
      it would be if attention were uniform; with pictures `attention/border`
      and `attention/entropy`, see `greedy.Answered`.
    baseline: those of the numbers that need no model, without one.
    shown: a few answers with their attention.
  """

  items: int
  numbers: Mapping[str, Estimate]
  baseline: Mapping[str, Estimate]
  shown: Sequence[Shown]


Results = Mapping[str, Result]


def save(results: Results, path: storage.Name) -> None:
  """Writes results as JSON; numbers that aren't finite are null."""
  raw = {name: dataclasses.asdict(one) for name, one in results.items()}
  storage.write_text(path, json_files.text(raw) + "\n")


def load(path: storage.Name) -> dict[str, Result]:
  """Reads results that `save` wrote.

  Raises:
    UserError: if they can't be read.
  """

  def numbers(raw):
    return {name: Estimate(**_nans(one)) for name, one in raw.items()}

  def shown(raw):
    return Shown(**_nans(raw) | {"region": raw["region"]})

  try:
    raw = json.loads(storage.read_text(path))
    return {
      name: Result(
        items=one["items"],
        numbers=numbers(one["numbers"]),
        baseline=numbers(one["baseline"]),
        shown=[shown(x) for x in one["shown"]],
      )
      for name, one in raw.items()
    }
  except (
    *(OSError, ValueError, TypeError, LookupError),
    AttributeError,
  ) as error:
    raise UserError(
      f"expected results of an evaluation at {path}, found: {error!s:.200};"
      " delete the file to have them evaluated again"
    ) from error


def _nans(value: Any) -> Any:
  """Returns what was read from JSON with NaN for null."""
  if isinstance(value, dict):
    return {key: _nans(one) for key, one in value.items()}
  if isinstance(value, list):
    return [_nans(one) for one in value]
  return math.nan if value is None else value


def flat(results: Results) -> dict[str, float]:
  """Names every number by its benchmark, as in `test/accuracy`."""
  return {
    f"{benchmark}/{name}": number.value
    for benchmark, result in results.items()
    for name, number in result.numbers.items()
  }


def whole(names: Mapping[str, object]) -> list[str]:
  """Returns the names of values that aren't of a part of the items."""
  return [name for name in names if "/" not in name]


def line(name: str, result: Result) -> str:
  """Describes a result in one line."""
  numbers = ", ".join(
    f"{key} {number.value:.3f} ({number.low:.3f} to {number.high:.3f})"
    for key, number in result.numbers.items()
    if key in whole(result.numbers)
  )
  return f"{name}: {numbers} on {result.items} items"
