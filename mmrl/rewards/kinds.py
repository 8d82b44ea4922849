"""A reward that compares answers as the kind of their question wants it.

The kinds are Video-R1's (arXiv 2503.21776). Differs from its published code,
which takes the kind of a batch's first question for all of them, the first
answer block, choices only where the texts are equal, and numbers that are equal
when rounded to two decimals and both with or without a point.
"""

from collections.abc import Mapping, Sequence
import importlib
from typing import Any

from jaxtyping import Float
import numpy as np

from mmrl import build
from mmrl.errors import UserError
from mmrl.marks import marked

# The problem types of Video-R1, arXiv 2503.21776, and two more.
KINDS = {
  "multiple choice": "choice",
  "numerical": "number",
  "regression": "closeness",
  "OCR": "word_error_rate",
  "free-form": "rouge",
  "math": "math_answer",
  "box": "box_iou",
}
_GIVEN = ("text", "answer", "example")


def _bind(kind: str, spec: Any) -> build.Bound:
  """Binds the reward of a kind, from its name or its spec."""
  spec = {"name": spec} if isinstance(spec, str) else spec
  where = f"kinds[{kind!r}]"
  if not isinstance(spec, Mapping) or spec.get("name") == "accuracy":
    raise UserError(
      f"{where}: expected the name or the spec of another reward, found"
      f" {spec!r:.80}"
    )
  package = importlib.import_module("mmrl.rewards")
  return build.bind(package, spec, where, provided=_GIVEN)


def _check(*, kinds: Mapping[str, Any] | None = None) -> None:
  for kind, spec in (kinds or {}).items():
    _bind(kind, spec)


@marked(check=_check)
def accuracy(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  example: Sequence[Any],
  *,
  kinds: Mapping[str, Any] | None = None,
) -> Float[np.ndarray, "P G"]:
  """Rewards answers by the reward of their question's kind.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.
    example: the questions (`mmrl.data.Example`), with their `kind`.
    kinds: kind -> the name of a reward that reads texts, or its spec, such as
      {"numerical": {"name": "number", "tolerance": 0.01}}; without it those of
      Video-R1, "math" for `math_answer` and "box" for `box_iou`.

  Raises:
    UserError: if a kind isn't in the table.
  """
  table = KINDS if kinds is None else kinds
  rows: dict[str, list[int]] = {}
  for index, one in enumerate(example):
    if one.kind not in table:
      raise UserError(
        f"{one.name}: expected a kind of question that is one of"
        f" {', '.join(map(repr, table))}, found {one.kind!r:.80}; repair the"
        " data, or add it to the option kinds"
      )
    rows.setdefault(one.kind, []).append(index)
  group = len(text[0]) if len(text) else 0
  found = np.zeros((len(text), group), np.float32)
  given: dict[str, Sequence] = {
    "text": text,
    "answer": answer,
    "example": example,
  }
  for kind, indices in rows.items():
    chosen = {name: [x[i] for i in indices] for name, x in given.items()}
    found[indices] = _bind(kind, table[kind])(chosen)
  return found
