"""Chosen questions of a source, each of which is an item of its own."""

from collections.abc import Sequence
from typing import Any

from mmrl.data import Example
from mmrl.data.sources import paths_of
from mmrl.errors import UserError


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


def check_count(count: int, what: str, where: str) -> None:
  """Checks how many of a source's items a config asks for; 0 is all.

  Args:
    count: of the config.
    what: the items are, in the plural.
    where: its field.

  Raises:
    UserError: naming the field, if it is below 0.
  """
  if count < 0:
    raise UserError(
      f"{where}: expected a number of {what}, or 0 for all, found {count}"
    )
