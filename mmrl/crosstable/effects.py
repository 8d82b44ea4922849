"""Cells of the table, and the decomposition of what differs, with intervals.

y_tw is a number of the texts of model t, read by the weights of model w. With
the texts that changed first, then the weights, and the other way round:

    y_BB - y_AA = (y_BA - y_AA) + (y_BB - y_BA)
                = (y_BB - y_AB) + (y_AB - y_AA)

The effect of texts is the mean of the first differences, that of weights the
mean of the second ones. Both are linear in a question's cells, so all numbers
of a metric are means over the same questions and add up.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from mmrl.benchmarks.contract import means
from mmrl.benchmarks.intervals import Estimate, estimate

# Texts, then weights.
CELLS = ("aa", "ab", "ba", "bb")
EFFECTS = (
  "change",
  "texts",
  "weights",
  "texts_under_a",
  "texts_under_b",
  "weights_on_a",
  "weights_on_b",
)


class Metric(NamedTuple):
  """A number of the table.

  Attributes:
    title: what it is, in words.
    questions: how many have it in all four cells.
    cells: by `CELLS`.
    effects: by `EFFECTS`.
  """

  title: str
  questions: int
  cells: Mapping[str, Estimate]
  effects: Mapping[str, Estimate]


def metric(
  title: str, values: Mapping[str, Float[np.ndarray, "N"]]
) -> Metric | None:
  """Computes a metric from its values of each question.

  Args:
    title: what it is.
    values: of each cell; NaN where a question has none. A question counts if it
      has one in all of them.

  Returns:
    None if no question counts.
  """
  table = np.stack([values[name] for name in CELLS]).astype(np.float64)
  aa, ab, ba, bb = table = table[:, ~np.isnan(table).any(0)]
  effects = {
    "change": bb - aa,
    "texts": ((ba - aa) + (bb - ab)) / 2,
    "weights": ((bb - ba) + (ab - aa)) / 2,
    "texts_under_a": ba - aa,
    "texts_under_b": bb - ab,
    "weights_on_a": ab - aa,
    "weights_on_b": bb - ba,
  }
  count = table.shape[1]
  if not count:
    return None
  found = estimate(means, dict(zip(CELLS, table, strict=True)) | effects)
  return Metric(
    title,
    count,
    {name: found[name] for name in CELLS},
    {name: found[name] for name in EFFECTS},
  )


def markdown(metrics: Sequence[Metric]) -> str:
  """Formats metrics as two tables: the cells, and the decomposition."""
  lines = [
    "| mean (95 % interval over questions) | questions | weights of A | weights"
    " of B |",
    "|---|---|---|---|",
  ]
  for one in metrics:
    for texts in "ab":
      row = [f"{one.title}: texts of {texts.upper()}", str(one.questions)]
      row += [_cell(one.cells[texts + weights]) for weights in "ab"]
      lines.append(f"| {' | '.join(row)} |")
  titles = [
    *("change from A to B", "of texts", "of weights"),
    *("texts, under A", "texts, under B", "weights, on A", "weights, on B"),
  ]
  lines += ["", f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
  for one in metrics:
    row = [one.title, *(_cell(one.effects[name]) for name in EFFECTS)]
    lines.append(f"| {' | '.join(row)} |")
  return "\n".join(lines) + "\n"


def _cell(number: Estimate) -> str:
  return f"{number.value:.4g} ({number.low:.4g} to {number.high:.4g})"
