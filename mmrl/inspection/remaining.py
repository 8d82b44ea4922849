"""Questions of a source that remain when some are left out."""

from collections.abc import Callable, Collection, Iterator
import functools
import itertools
from typing import Any

from mmrl.data.example import Example
from mmrl.data.sources import paths_of


class Remaining:
  """A source without some of its questions.

  `names` still has all of them, so that what others wrote to a question that
  is left out isn't taken for a mistake. `pairs` and `given` are there if the
  source has them.

  Attributes:
    paths: data files of the source.
  """

  def __init__(self, source: Any, left_out: Collection[int]):
    """Leaves questions out.

    Args:
      source: random-access examples.
      left_out: indices.
    """
    self._source = source
    absent = frozenset(left_out)
    self._kept = [i for i in range(len(source)) if i not in absent]
    self.paths = paths_of(source)
    for name in ("pairs", "given"):
      if hasattr(source, name):
        whole = getattr(source, name)
        setattr(self, name, functools.partial(_without, whole, absent))

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: int) -> Example:
    return self._source[self._kept[index]]

  def names(self) -> Iterator[str]:
    """Yields the name of every example, those left out included."""
    return self._source.names()


def _without(
  listed: Callable[[], Iterator[Any]], absent: Collection[int]
) -> Iterator[Any]:
  return itertools.compress(
    listed(), (i not in absent for i in itertools.count())
  )
