"""Random draws of one item: a pure function of seed, split and index."""

from collections.abc import Iterator, Sequence
from typing import TypeVar, no_type_check

import numpy as np

T = TypeVar("T")


# A check of types at run time takes ten times as long as a draw.
@no_type_check
class Draws:
  """Draws of one item, cheap one by one."""

  def __init__(self, *key: int):
    """Begins the draws of a key, such as (seed, split, index)."""
    self._next = _uniform(key).__next__

  def unit(self) -> float:
    """Draws a number in [0, 1)."""
    return self._next()

  def below(self, count: int) -> int:
    """Draws a whole number in [0, count)."""
    return int(self._next() * count)

  def between(self, low: int, high: int) -> int:
    """Draws a whole number in [low, high]."""
    return low + int(self._next() * (high - low + 1))

  def pick(self, values: Sequence[T]) -> T:
    """Draws one of `values`."""
    return values[int(self._next() * len(values))]

  def some(self, values: Sequence[T], count: int) -> list[T]:
    """Draws `count` different entries of `values`, in random order."""
    left = list(values)
    for i in range(count):
      j = i + int(self._next() * (len(left) - i))
      left[i], left[j] = left[j], left[i]
    return left[:count]

  def weighted(self, weights: Sequence[float]) -> int:
    """Draws an index with probability proportional to its weight."""
    left = self._next() * sum(weights)
    for i, weight in enumerate(weights):
      left -= weight
      if left < 0:
        return i
    # Rounding may leave a trace; the last index that may be drawn takes it.
    return max(i for i, weight in enumerate(weights) if weight > 0)


def _uniform(key: Sequence[int]) -> Iterator[float]:
  generator = np.random.default_rng(key)
  while True:
    # In blocks: a call to NumPy takes as long as thirty numbers of one.
    yield from generator.random(64).tolist()
