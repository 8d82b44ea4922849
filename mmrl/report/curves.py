"""Curves of everything that a run logged, grouped by the prefix of its name."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

FRAME = (50.0, 8.0, 310.0, 152.0)  # Left, top, right, bottom of a plot.
_SHORT = 20  # Curves with fewer points are drawn unsmoothed, with dots.
_DRAWN = 400  # Most points of a curve: more than a plot has pixels.
# What every method logs, or the prefix of it: what is looked at first.
_MAIN = (
  "reward",
  "attention/region",
  "loss/total",
  "policy/entropy",
  "rollout/length",
  "gradient/norm",
)
_NOTES = {
  "first": "At the first update of a step; all else is of the last.",
  "mean": "Mean over the updates of a step.",
  "reward_alone": "Share of groups that only this reward tells apart.",
  "reward_applies": "Share of answers that it applies to.",
  "reward_length": "Correlation with the answer's length, inside groups.",
  "reward_within": "Share of its variance that is inside groups.",
  "time": "Seconds, but for the number of compilations and the share of a step"
  " in which the device is busy.",
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Curves that are drawn beside each other.

  Attributes:
    name: heading; empty for the main ones, which are open.
    note: a sentence about all of them, or none.
    curves: (step, value) points by title; non-finite points are only counted.
  """

  name: str
  note: str
  curves: Mapping[str, Sequence[tuple[int, float | int]]]


def group(
  rows: Sequence[Mapping[str, Any]], benchmarks: Sequence[str]
) -> list[Group]:
  """Groups every number of a log: main ones, then one group per prefix.

  Args:
    rows: of metrics.jsonl, each with its "step".
    benchmarks: prefixes of evaluations, which are main ones as a whole, but for
      parts of their items.

  Returns:
    The groups that aren't empty. What is main is in its prefix's group as well,
    unless all of that is.
  """
  names = sorted({name for row in rows for name in row} - {"step"})

  def points(chosen):
    return {
      name: [(row["step"], row[name]) for row in rows if name in row]
      for name in chosen
    }

  def main(name):
    prefix, _, rest = name.partition("/")
    evaluated = prefix in benchmarks and "/" not in rest
    return evaluated or name in _MAIN or prefix in _MAIN

  order = [*benchmarks, *_MAIN]
  prefixes = sorted({name.partition("/")[0] for name in names})
  first = sorted(filter(main, names), key=lambda name: _rank(name, order))
  groups = [Group("", "", points(first))]
  for prefix in prefixes:
    own = [name for name in names if name.partition("/")[0] == prefix]
    if not set(own) <= set(first):
      groups.append(Group(prefix, _NOTES.get(prefix, ""), points(own)))
  return [one for one in groups if one.curves]


def _rank(name: str, order: Sequence[str]) -> int:
  """Returns the place of a name, or of its prefix, in an order that has it."""
  return order.index(name if name in order else name.partition("/")[0])


def draw(
  name: str, points: Sequence[tuple[int, float | int]]
) -> dict[str, object]:
  """Computes a curve's points and ticks for the template, in `FRAME` units."""
  data = np.array(sorted(points, key=lambda p: p[0]), np.float64).reshape(-1, 2)
  kept = data[np.abs(data[:, 1]) < 1e30]  # No axis can show more; drops NaN.
  drawn = {"name": name, "count": len(kept), "lost": len(data) - len(kept)}
  if not len(kept):
    return drawn
  steps, values = kept.T
  mean = values if len(values) < _SHORT else _smooth(values)
  left, top, right, bottom = FRAME
  xs, x_ticks = _axis(steps, steps, 0.0, left, right)
  line, y_ticks = _axis(values, mean, 0.06, bottom, top)
  raw, _ = _axis(values, values, 0.06, bottom, top)
  count = min(len(kept), _DRAWN)
  shown = np.linspace(0, len(kept) - 1, count).round().astype(int)
  return drawn | {
    "raw": np.stack([xs, raw], axis=1)[shown],
    "line": np.stack([xs, line], axis=1)[shown],
    "dots": len(kept) < _SHORT,
    "last": _number(mean[-1], 3),
    "x_ticks": [(x, text) for x, text in x_ticks if "." not in text],
    "y_ticks": y_ticks,
    "hover": [(steps[i], values[i], mean[i], xs[i], line[i]) for i in shown],
  }


def _smooth(values: np.ndarray) -> np.ndarray:
  """Smooths values by local linear regression, without lag at the ends."""
  sigma = max(1.0, len(values) / 40)
  offset = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
  kernel = np.exp(-0.5 * (offset / sigma) ** 2)
  weights = [kernel * offset**power for power in range(3)]
  ones = np.ones_like(values)
  s0, s1, s2 = (np.convolve(ones, weight, "same") for weight in weights)
  t0, t1 = (np.convolve(values, weight, "same") for weight in weights[:2])
  # The clip keeps an extrapolated share from passing 100%.
  mean = (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2)
  return mean.clip(values.min(), values.max())


def _axis(
  span: np.ndarray, values: np.ndarray, pad: float, start: float, end: float
) -> tuple[np.ndarray, list[tuple[float, str]]]:
  """Places values, and round ticks, on an axis that spans other values."""
  low, high = float(span.min()), float(span.max())
  largest = max(abs(low), abs(high))
  extra = pad * (high - low)
  if high - low <= 1e-9 * largest + 1e-20:
    extra = 0.1 * largest if largest > 1e-20 else 1.0
  low, high = low - extra, high + extra
  rough = (high - low) / 6
  power = 10.0 ** math.floor(math.log10(rough))
  tick = next(m for m in (1, 2, 2.5, 5, 10, 20) if m * power >= rough) * power
  ticks = range(math.ceil(low / tick), math.floor(high / tick) + 1)
  scale = (end - start) / (high - low)
  return start + (values - low) * scale, [
    (start + (k * tick - low) * scale, _number(k * tick)) for k in ticks
  ]


def _number(value: float, digits: int = 6) -> str:
  whole = 10**digits <= abs(value) < 1e6
  text = f"{value:.0f}" if whole else f"{value:.{digits}g}"
  return text.replace("e-0", "e-").replace("e+0", "e")
