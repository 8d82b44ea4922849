"""Results of an evaluation, by the name of the benchmark, and their file."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import numpy as np

from mmrl import json_files, storage
from mmrl.benchmarks.contract import Values
from mmrl.benchmarks.intervals import Estimate, mcnemar
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
    right: of each score that is 0 or 1, one character for each item, in order:
      "1", "0", or "-" where it doesn't apply.
  """

  items: int
  numbers: Mapping[str, Estimate]
  baseline: Mapping[str, Estimate]
  shown: Sequence[Shown]
  right: Mapping[str, str] = dataclasses.field(default_factory=dict)


Results = Mapping[str, Result]


def right(values: Values) -> dict[str, str]:
  """Writes `Result.right` of a benchmark's values, parts of items left out."""
  found = {}
  for name in whole(values):
    known = values[name][~np.isnan(values[name])]
    if len(known) and np.isin(known, (0, 1)).all():
      found[name] = "".join(
        "-" if np.isnan(x) else "01"[int(x)] for x in values[name]
      )
  return found


@dataclasses.dataclass(frozen=True)
class Paired:
  """Two models' answers to the same items.

  Attributes:
    first, second: number of items that only this one gets right.
    p: of McNemar's exact test that neither is right more often.
  """

  first: int
  second: int
  p: float


def paired(first: Result, second: Result) -> dict[str, Paired]:
  """Compares two results of the same items, by every score that both have."""
  found = {}
  for name, one in first.right.items():
    other = second.right.get(name, "")
    if len(one) == len(other):
      pairs = [*zip(one, other, strict=True)]
      only = pairs.count(("1", "0")), pairs.count(("0", "1"))
      found[name] = Paired(*only, mcnemar(*only))
  return found


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
        # Results of before there were such have none.
        right={k: str(x) for k, x in one.get("right", {}).items()},
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
