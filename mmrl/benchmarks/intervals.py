"""Bootstrap confidence intervals of any statistic over items."""

from collections.abc import Callable, Mapping
import dataclasses

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
