"""Bootstrap confidence intervals over items, and a test of two models."""

from collections.abc import Callable, Mapping
import dataclasses
import math

import numpy as np

from mmrl.benchmarks.contract import Values

_RESAMPLES = 1000
_QUANTILES = (0.025, 0.975)
# Resampled items are held for a few resamples at a time.
_HELD = 2**20


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number and its 95% bootstrap interval over items.

  Attributes:
    value: of all items.
    low: the 2.5% quantile over resamples of the items.
    high: the 97.5% quantile.
  """

  value: float
  low: float
  high: float


def estimate(
  summarise: Callable[[Values], Mapping[str, np.ndarray]], values: Values
) -> dict[str, Estimate]:
  """Summarises items, and resamples of them for the intervals.

  The resamples are the same at every call with as many items.

  Args:
    summarise: see `Benchmark.summarise`.
    values: of each item, {name: [N]}.

  Returns:
    {name: estimate} of every number that isn't NaN; none of no items.

  Raises:
    ValueError: if the values aren't of the same items.
  """
  shapes = {np.shape(x) for x in values.values()}
  if shapes <= {(0,)}:
    return {}
  items = max(shapes)[0] if {len(shape) for shape in shapes} == {1} else 0
  if len(shapes) > 1 or not items:
    raise ValueError(f"expected values [N] of the same items, found {shapes}")
  found = {k: float(x) for k, x in summarise(values).items()}
  known = [name for name, x in found.items() if not np.isnan(x)]
  draws: dict[str, list[np.ndarray]] = {name: [] for name in known}
  generator, rows = np.random.default_rng(0), max(1, _HELD // items)
  for start in range(0, _RESAMPLES, rows):
    count = min(rows, _RESAMPLES - start)
    chosen = generator.integers(items, size=(count, items))
    drawn = summarise({name: x[chosen] for name, x in values.items()})
    for name in known:
      draws[name].append(drawn[name])
  return {
    name: Estimate(found[name], *_interval(np.concatenate(draws[name])))
    for name in known
  }


def _interval(draws: np.ndarray) -> tuple[float, float]:
  """Computes the interval of those resamples that have a number."""
  low, high = np.quantile(draws[~np.isnan(draws)], _QUANTILES)
  return float(low), float(high)


def mcnemar(first: int, second: int) -> float:
  """Computes the p-value of McNemar's exact test, two-sided.

      p = min(1, 2 P(X <= min(b, c))),    X ~ Binomial(b + c, 1/2)

  Args:
    first: b, items that only the first model gets right.
    second: c, items that only the second does.

  Returns:
    In (0, 1]; 1 if there are none of either.

  Raises:
    ValueError: if a number is negative.

  Reference: McNemar 1947; Perception-R1, arXiv 2506.07218, section 3, which
  counts pictures that are read right before or after training only.
  """
  if min(first, second) < 0:
    raise ValueError(f"expected counts, found {first} and {second}")
  total = first + second
  tail = sum(math.comb(total, k) for k in range(min(first, second) + 1))
  return min(1.0, 2 * tail / 2**total)
