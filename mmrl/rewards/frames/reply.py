"""REACT's replies about a frame: labels of what is wrong, and a score.

  <think>..</think><answer>{"labels": ["extra limb"], "score": 2.75}</answer>

A question's right labels are in its `extra`, as `labels`: those of a frame
without distortion are the one label `CLEAN`.

Reference: arXiv 2601.04033.
Reconstructed: neither the paper's text nor code could be read; formulas are
those of others' accounts. The JSON object, what can't be read, and the label of
clean frames are chosen here.
"""

from collections.abc import Sequence
import json
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.answer import extract, is_formed

CLEAN = "no distortion"
LOWEST, HIGHEST = 1.0, 5.0


class Judged(NamedTuple):
  """Judgement of a frame, as a reply gives it.

  Attributes:
    labels: in lower case; any text may be one.
    score: 1 (bad) to 5 (good).
  """

  labels: frozenset[str]
  score: float


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a key occurs twice")
  return found


def _refuse(constant: str) -> float:
  raise ValueError(constant)


def parse(text: str) -> Judged | None:
  """Reads a whole reply; None if it has another form.

  It is one thought and one answer block with white space around, each tag once;
  in the block stands a JSON object with `labels`, a list of texts, and `score`,
  a number of 1 to 5, and nothing else. Free or clamped scores would let a
  policy buy the preference reward with absurd ones.
  """
  if not is_formed(text):
    return None
  try:
    found = json.loads(
      extract(text) or "", object_pairs_hook=_once, parse_constant=_refuse
    )
  except (ValueError, RecursionError):
    return None
  if not isinstance(found, dict) or found.keys() != {"labels", "score"}:
    return None
  labels, score = found["labels"], found["score"]
  if not isinstance(labels, list) or not all(
    isinstance(x, str) for x in labels
  ):
    return None
  if type(score) not in (int, float) or not LOWEST <= score <= HIGHEST:
    return None
  return Judged(frozenset(x.strip().lower() for x in labels), float(score))


def is_distorted(judged: Judged) -> bool:
  """Tells whether a reply names any distortion."""
  return bool(judged.labels - {CLEAN})


@marked(
  hint=(
    'it wants <think>..</think><answer>{"labels": [..], "score": ..}</answer>'
    " with a score of 1 to 5: teach the policy to write it first"
    " (experiments/react.py)"
  )
)
def frame_format(text: Sequence[Sequence[str]]) -> Float[np.ndarray, "P G"]:
  """Rewards replies that `parse` can read with 1, others with 0."""
  found = [[parse(one) is not None for one in group] for group in text]
  return np.array(found, np.float32)


def attribution(
  given: frozenset[str], right: frozenset[str], hit: float, miss: float
) -> float:
  """Computes hit * #(right labels) - miss * #(wrong and missed ones)."""
  return hit * len(given & right) - miss * len(given ^ right)


def right_labels(example: Any) -> frozenset[str]:
  """Returns the right labels of a question about a frame.

  Raises:
    UserError: if it has none.
  """
  found = example.extra.get("labels")
  if found is None:
    raise UserError(
      f"{example.name}: expected the frame's 'labels', found none; add them to"
      " the data"
    )
  return frozenset(x.strip().lower() for x in found) or frozenset({CLEAN})


def _check(*, hit: float = 0.6, miss: float = 0.2) -> None:
  for name, value in {"hit": hit, "miss": miss}.items():
    if not 0 <= value < float("inf"):
      raise UserError(f"{name}: expected at least 0, found {value!r:.80}")


@marked(check=_check, needs_extra=("labels",))
def label_attribution(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  *,
  hit: float = 0.6,
  miss: float = 0.2,
) -> Float[np.ndarray, "P G"]:
  """Rewards right labels of a frame, and penalises wrong and missed ones.

      R_attr = hit * n_right - miss * (n_wrong + n_missed)

  Args:
    text: P lists of G answers; one that can't be read misses every label.
    example: the questions, with their `labels`.
    hit, miss: at least 0.
  """
  rows = []
  for group, one in zip(text, example, strict=True):
    right = right_labels(one)
    read = [parse(reply) for reply in group]
    none = frozenset[str]()
    rows.append(
      [attribution(x.labels if x else none, right, hit, miss) for x in read]
    )
  return np.array(rows, np.float32).reshape(len(text), -1)
