"""Chosen questions of a source, each of which is an item of its own."""

from collections.abc import Sequence
from typing import Any

from mmrl.data import Example
from mmrl.data.sources import paths_of


class Chosen:
  """Random access to chosen questions of a source.

  Attributes:
    paths: data files of the source.
  """

  def __init__(self, source: Any, indices: Sequence[int]):
    """Chooses questions.

    Args:
      source: of `mmrl.data`.
      indices: of the questions that are asked.
    """
    self._source, self._indices = source, indices
    self.paths = paths_of(source)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Example:
    return self._source[self._indices[index]]
