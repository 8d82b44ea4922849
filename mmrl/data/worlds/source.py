"""What sources of drawn questions share."""

from collections.abc import Iterator, Sequence

from mmrl.data.example import check_prompt
from mmrl.worlds import palette

_MOST = 10**9


def answer(thought: str, answer: str) -> str:
  """Writes a whole answer to learn from; without a thought it stands alone."""
  before = f"<think>{thought}</think>" if thought else ""
  return f"{before}<answer>{answer}</answer>"


class World:
  """Base of the sources of drawn questions; an item is made when asked for."""

  def __init__(self, name: str, count: int, prompt: str):
    """Checks what all have.

    Args:
      name: begins the names of examples.
      count: number of questions.
      prompt: text of the user's turn, with "{question}" in it.
    """
    palette.check_number("count", count, 1, _MOST)
    check_prompt(prompt)
    self._root, self._count, self._prompt = name, count, prompt

  def __len__(self) -> int:
    return self._count

  def pairs(self) -> Iterator[tuple[str, str]]:
    """Yields (question, answer) of every example, without drawing anything."""
    return (self._told(index)[:2] for index in range(self._count))

  def names(self) -> Iterator[str]:
    """Yields the name of every example, without drawing anything."""
    return map(self._name, range(self._count))

  def given(self) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields name and texts to learn from of every example."""
    return ((self._name(i), self._told(i)[2]) for i in range(self._count))

  def _told(self, index: int) -> tuple[str, str, Sequence[str]]:
    """Returns question, answer, and texts to learn from."""
    raise NotImplementedError

  def _name(self, index: int) -> str:
    return f"{self._root}/{index}"

  def _at(self, index: int) -> int:
    """Returns an index from 0 on; from the end where it is negative.

    Raises:
      IndexError: if there is no such item, which ends a loop over a source.
    """
    if not -self._count <= index < self._count:
      raise IndexError(f"expected an item of {self._count}, found {index}")
    return index % self._count
