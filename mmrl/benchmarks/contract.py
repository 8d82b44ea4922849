"""What a benchmark is: questions, a grade for each item, a summary of them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
import numpy as np

from mmrl.data import Example

# Values of every item by name, NaN where one doesn't apply to an item.
Values = Mapping[str, Float[np.ndarray, "*draws N"]]


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer to one question.

  Attributes:
    text: as the model wrote it.
    length: number of its tokens, the end included.
    ended: whether it ended before it was cut off.
  """

  text: str
  length: int
  ended: bool


@runtime_checkable
class Benchmark(Protocol):
  """A sequence of questions, each with its prompt, and how they are graded.

  An item is what is counted and resampled: a question, or several questions
  that belong together, such as those about one picture or the two of a pair.

  One whose grades ask models has `asks`, a dict of the names that rewards call
  them by, such as `ask_judge`: what asks each is put in before it grades.

  The name of a value may have parts: `accuracy/colour` is `accuracy` on a part
  of the items, NaN on all others. The first name is what is shown first.
  """

  def __len__(self) -> int:
    """Returns the number of questions."""

  def __getitem__(self, index: int) -> Example:
    """Returns a question; reads its picture only now."""

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Grades the answers to all questions, in order: {name: [N items]}."""

  def summarise(self, values: Values) -> Mapping[str, np.ndarray]:
    """Reduces the last axis, items, to numbers: {name: [*draws]}.

    It is called with the values of all items, and with those of resampled
    items, of which intervals are made. So it may be any function of the values,
    such as a ratio of sums; it may return other names than it is given. A
    number is NaN where no item applies.
    """

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Grades answers that need no model, as `grade` does.

    Args:
      train: the run's source of questions to train on; None where there is no
        training, as with a strategy.
      examples: all questions.

    Returns:
      What `summarise` takes; it may lack some of the names, or all.
    """


def by_kind(values: Values, kinds: Sequence[str]) -> Values:
  """Adds each value for the items of each kind, where there are several kinds.

  Args:
    values: of N items.
    kinds: of the items.
  """
  each = np.array(kinds)
  several = sorted(set(kinds)) if len(set(kinds)) > 1 else []
  return dict(values) | {
    f"{name}/{kind}": np.where(each == kind, found, np.nan)
    for name, found in values.items()
    for kind in several
  }


def means(values: Values) -> dict[str, np.ndarray]:
  """Averages each value over the items that it applies to."""
  return {name: _mean(x) for name, x in values.items()}


def _mean(x: np.ndarray) -> np.ndarray:
  applies = ~np.isnan(x)
  count = applies.sum(-1)
  total = np.where(applies, x, 0.0).sum(-1)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
