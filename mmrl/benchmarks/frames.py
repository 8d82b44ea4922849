"""REACT-Bench's numbers: what is wrong with frames, and which one is better.

Reference: arXiv 2601.04033; accuracies as in the code of its precursor
(arXiv 2501.13918, after arXiv 2305.14324).
Reconstructed: how the F1 of recognition is formed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl import build, errors
from mmrl import data as data_lib
from mmrl.benchmarks.chosen import Chosen, check_count
from mmrl.benchmarks.contract import Answer, Values
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rewards.frames import reply

_SIGNS = {"A": 1.0, "tie": 0.0, "B": -1.0}


def accuracy_without_ties(
  human: Float[np.ndarray, "*draws N"],
  difference: Float[np.ndarray, "*draws N"],
) -> Any:
  """Computes the share of decided pairs that scores put in the right order.

  Args:
    human: 1 where A is better, -1 where B is, 0 where neither.
    difference: score of A less that of B; 0 and NaN are wrong.

  Returns:
    One for each draw; 0 where no pair is decided.
  """
  right = (human != 0) & (human * difference > 0)
  decided = (human != 0).sum(-1)
  return right.sum(-1) / np.maximum(decided, 1)


def accuracy_with_ties(
  human: Float[np.ndarray, "*draws N"],
  difference: Float[np.ndarray, "*draws N"],
) -> Any:
  """Computes the best share of pairs that are right, ties among them.

  A pair is taken for a tie if its scores differ by a threshold at most. The
  threshold is the best of none, and of all differences.

  Args:
    human, difference: see `accuracy_without_ties`.

  Differs from the code: it never tries "no ties", and moves equal differences
  one at a time, which can only lower the share.
  """
  size = np.abs(difference)
  order = np.argsort(size, -1)  # NaN comes last: it is never right.
  size = np.take_along_axis(size, order, -1)
  human = np.take_along_axis(human, order, -1)
  signed = human * np.take_along_axis(difference, order, -1)
  decided = (human != 0) & (signed > 0)
  tied = (human == 0) & ~np.isnan(size)
  # Right if the first k pairs, those of least difference, are ties.
  change = np.cumsum(tied.astype(int) - decided, -1)
  more = size[..., 1:] > size[..., :-1]
  last = np.ones((*size.shape[:-1], 1), bool)
  ends = np.concatenate([more | np.isnan(size[..., 1:]), last], -1)
  best = np.where(ends & ~np.isnan(size), change, 0).max(-1, initial=0)
  return (decided.sum(-1) + best) / human.shape[-1]


def _f1(hits, given, there):
  return np.where(given + there > 0, 2 * hits / np.maximum(given + there, 1), 0)


def numbers(values: Values) -> dict[str, np.ndarray]:
  """Computes F1 of frames with and without distortions, and both accuracies.

  Frames whose answer can't be read are taken for neither; their pairs are
  wrong.
  """
  total = {
    name: x.sum(-1) for name, x in values.items() if name.endswith("_frames")
  }
  return {
    f"f1_{kind}": _f1(
      *(total[f"{what}_{kind}_frames"] for what in ("right", "given", "there"))
    )
    for kind in ("distorted", "normal")
  } | {
    "with_ties": accuracy_with_ties(values["human"], values["difference"]),
    "without_ties": accuracy_without_ties(
      values["human"], values["difference"]
    ),
  }


class Frames(Chosen):
  """Pairs of frames: a question, its partner, the next question, ..."""

  summarise = staticmethod(numbers)

  def __len__(self) -> int:
    return 2 * super().__len__()

  def __getitem__(self, index: int) -> Example:
    example = super().__getitem__(index // 2)
    if example.partner is None:
      raise UserError(
        f"{example.name}: expected a pair of frames, found none; write"
        " 'compared' in its row, or take Figures with pairs=True"
      )
    return example.partner if index % 2 else example

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Counts frames of either kind of each pair, and compares its scores."""
    judged = [reply.parse(answer.text) for answer in answers]
    given = [reply.is_distorted(one) if one else None for one in judged]
    scores = [one.score if one else np.nan for one in judged]
    return self._values(given, scores, examples)

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Grades the same answer to every frame: that something is wrong."""
    del train
    count = len(examples)
    return self._values([True] * count, [3.0] * count, examples)

  def _values(
    self,
    given: Sequence[bool | None],
    scores: Sequence[float],
    examples: Sequence[Example],
  ) -> Values:
    there = [reply.right_labels(e) != {reply.CLEAN} for e in examples]
    found: dict[str, np.ndarray] = {}
    for kind, wanted in (("distorted", True), ("normal", False)):
      said = np.array([one is wanted for one in given])
      is_kind = np.array([one is wanted for one in there])
      counts = {"right": said & is_kind, "given": said, "there": is_kind}
      for what, x in counts.items():
        found[f"{what}_{kind}_frames"] = x.reshape(-1, 2).sum(-1).astype(float)
    first, second = np.array(scores, float).reshape(-1, 2).T
    human = [_SIGNS[e.extra["preference"]] for e in examples[::2]]
    return {
      "human": np.array(human),
      "difference": first - second,
      **found,
    }


def frames(*, data: Mapping[str, Any], pairs: int = 0, field: str) -> Frames:
  """Builds a benchmark of pairs of frames.

  Args:
    data: spec of a source of pairs: Figures with pairs=True, or Files whose
      rows have `compared`.
    pairs: how many, spread evenly over the source; 0 for all.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  check_count(pairs, "pairs", f"{field}.pairs")
  source = build.construct(data_lib.sources, data, f"{field}.data")
  found = Frames(source, data_lib.spread(len(source), pairs or len(source)))
  with errors.of_field(f"{field}.data"):
    for example in (found[0], found[1]):
      reply.right_labels(example)
      if example.extra.get("preference") not in _SIGNS:
        raise UserError(
          f"{example.name}: expected a 'preference' of A, B or tie, found"
          f" {example.extra.get('preference')!r:.80}; add it to the data"
        )
  return found
