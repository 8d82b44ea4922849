"""The benchmark of pictures in which one object was replaced."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

import numpy as np

from mmrl import data as data_lib
from mmrl import storage
from mmrl.benchmarks.causal import numbers
from mmrl.benchmarks.causal.numbers import Asked, Pairing
from mmrl.benchmarks.choosing.yes_no import Parser, right, verdict
from mmrl.benchmarks.chosen import Chosen, check_count
from mmrl.benchmarks.contract import Answer, Values
from mmrl.benchmarks.intervals import Estimate, estimate
from mmrl.data import Example, lines
from mmrl.data.causal_halbench import FIELDS, CausalHalBench, rows
from mmrl.errors import UserError


class CausalPairs(Chosen):
  """Questions about pictures before and after; an item is an original one."""

  summarise = staticmethod(numbers.rates)

  def __init__(
    self,
    source: Any,
    indices: Sequence[int],
    parser: Parser,
    pairing: Pairing,
  ):
    """Chooses questions of a source.

    Args:
      source: Counterfactuals or CausalHalBench, whose `extra` has "causal".
      indices: of the questions that are asked.
      parser: see `yes_no.verdict`.
      pairing: see `numbers.counts`.
    """
    super().__init__(source, indices)
    self._parser: Parser = parser
    self._pairing: Pairing = pairing

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Counts right answers of each original picture; see `numbers.counts`."""
    said = [verdict(answer.text, self._parser) for answer in answers]
    return self._counts(said, examples)

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Grades "yes" to all: no cac and no aac, whatever is in the pictures."""
    del train
    return self._counts(["yes"] * len(examples), examples)

  def _counts(
    self, said: Sequence[str | None], examples: Sequence[Example]
  ) -> Values:
    is_right = np.array(
      [one == right(e.answer) for one, e in zip(said, examples, strict=True)],
      float,
    )
    asked = [Asked(*example.extra["causal"]) for example in examples]
    return numbers.counts(is_right, asked, self._pairing)


def causal_pairs(
  *,
  data: Mapping[str, Any],
  parser: Parser = "first",
  pairing: Pairing = "same",
  originals: int = 0,
  field: str,
) -> CausalPairs:
  """Builds a benchmark of objects that are replaced, as Causal-HalBench.

  Args:
    data: spec of Counterfactuals, drawn scenes, or of CausalHalBench, the
      released files.
    parser: "first", or "contains" as in the code; see `yes_no.verdict`.
    pairing: "same", or "first" as in the code; see `numbers.counts`.
    originals: how many original pictures, spread evenly, each with all of its
      questions; 0 for all.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  check_count(originals, "pictures", f"{field}.originals")
  source = data_lib.sources.make(data, f"{field}.data")
  if not hasattr(source, "originals"):
    raise UserError(
      f"{field}.data: expected Counterfactuals or CausalHalBench, whose"
      f" questions are about pairs of pictures, found {data['name']}"
    )
  of = [*source.originals()]
  names = list(dict.fromkeys(of))
  places = data_lib.spread(len(names), originals or len(names))
  chosen = {names[i] for i in places}
  indices = [i for i, name in enumerate(of) if name in chosen]
  return CausalPairs(source, indices, parser, pairing)


def score_responses(
  questions: storage.Name,
  responses: storage.Name,
  *,
  parser: Parser = "contains",
  pairing: Pairing = "first",
) -> dict[str, Estimate]:
  """Scores answers that are in a file, as the released metric.py does.

  Args:
    questions: the released file of questions.
    responses: rows with image_name, type, tag and id, and what a model said as
      `answer`; questions without one don't count.
    parser: see `yes_no.verdict`.
    pairing: see `numbers.counts`.

  Returns:
    {number: estimate with an interval over original pictures}.

  Raises:
    UserError: naming file and row of what is wrong.
  """
  asked = rows(questions)
  known = {(row["image_name"], row["id"]): row for row in asked}
  said: dict[tuple[str, Any], str] = {}
  for name, row in _responses(responses):
    key = row["image_name"], row["id"]
    if key not in known or key in said:
      raise UserError(
        f"{name}: expected an answer to one question of {questions}, found"
        f" {'a second one' if key in said else 'no such question'}:"
        f" {row['image_name']!r:.80}, id {row['id']!r:.40}"
      )
    for field in ("type", "tag"):
      if row.get(field, known[key][field]) != known[key][field]:
        raise UserError(
          f"{name}: expected {field} {known[key][field]!r} of its question,"
          f" found {row[field]!r:.80}"
        )
    said[key] = row["answer"]
  is_right = [
    float(verdict(said[key], parser) == right(row["answer"]))
    if key in said
    else np.nan
    for key, row in known.items()
  ]
  about = [Asked(*CausalHalBench.about(row)) for row in known.values()]
  found = numbers.counts(np.array(is_right), about, pairing)
  return estimate(numbers.rates, found)


def _responses(path: storage.Name) -> list[tuple[str, dict[str, Any]]]:
  """Reads a file of responses, each with its name for errors."""
  try:
    found = json.loads(storage.read_text(path))
  except (OSError, ValueError) as error:
    raise UserError(
      f"expected responses as a JSON array at {path}, found: {error!s:.200}"
    ) from error
  if not isinstance(found, list):
    raise UserError(f"{path}: expected a JSON array, found {found!r:.80}")
  named = [(f"{path}[{i}]", row) for i, row in enumerate(found)]
  for name, row in named:
    if not isinstance(row, dict):
      raise UserError(f"{name}: expected an object, found {row!r:.80}")
    try:
      lines.check_keys(row, FIELDS, "a response")
    except UserError as error:
      raise UserError(f"{name}: {error}") from error
    for field in ("image_name", "id", "answer"):
      if not isinstance(row.get(field), str | int):
        raise UserError(
          f"{name}: expected {field!r}, found {row.get(field)!r:.80}"
        )
    row["answer"] = str(row["answer"])
  return named
