"""Halves of easy-VQA by picture: to choose by one and test on the other."""

from mmrl.data import sources


class Half(sources.EasyVQA):
  """Questions about every other picture of easy-VQA."""

  def __init__(self, *, split: str, odd: bool):
    """Opens one half of a split: of pictures 1, 3 and so on, or 0, 2."""
    super().__init__(split=split)
    self._places = [
      i for i, (*_, picture) in enumerate(self.rows) if picture % 2 == odd
    ]
    self.rows = [self.rows[i] for i in self._places]

  def _name(self, index: int) -> str:
    return super()._name(self._places[index])
