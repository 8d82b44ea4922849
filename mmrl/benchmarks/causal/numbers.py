"""Numbers of Causal-HalBench from answers that are right or wrong.

With acc(role, picture) the share of right answers over all questions of a role:

    cac = acc(contextual, original) - acc(contextual, changed)
    aac = acc(absent, changed) - acc(absent, original)
    chr = 1 - acc(counterfactual, changed)
    cpr_ROLE = pairs with both answers right / pairs,   contextual and absent

cac and aac are above 0 where answers follow what usually occurs together; chr
is the share of inserted objects that aren't seen. Each is 0 of no question.

Reference: arXiv 2511.10268 and its metric.py, which calls aac "nac".
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
import numpy as np

from mmrl.benchmarks.contract import Values

Pairing = Literal["same", "first"]
ROLES = ("contextual", "absent", "counterfactual")
# Role and whether the picture is changed, of which there are questions.
CELLS = tuple(
  (role, changed)
  for role in ROLES
  for changed in (False, True)
  if changed or role != "counterfactual"
)


class Asked(NamedTuple):
  """The object and the pictures that a question asks about.

  Attributes:
    original: the picture before anything was replaced, whose questions are
      resampled together.
    picture: the one that is shown.
    role: of the object, one of `ROLES`: it is there and stays, it is in neither
      picture, or it was put in.
    text: the question.
  """

  original: str
  picture: str
  role: str
  text: str

  @property
  def cell(self) -> tuple[str, bool]:
    """Role, and whether the picture is a changed one."""
    return self.role, self.picture != self.original


def counts(
  right: Float[np.ndarray, "M"],
  asked: Sequence[Asked],
  pairing: Pairing = "same",
) -> Values:
  """Counts what each original picture's questions add to the numbers.

  A pair is a changed picture and its original. For cpr it has one question of a
  role, the first about the changed picture, and that of the original picture:
  the next one with the same text. With pairing "first" it is the original's
  first of the role, as in the code, which asks about another pair's object
  where one original has several changed pictures. A pair counts if both were
  answered.

  Args:
    right: 1 and 0, and NaN where a question wasn't answered.
    asked: what each question is about.
    pairing: "same" or "first".

  Returns:
    {name: [N originals]}.
  """
  originals = {name: i for i, name in enumerate(_ordered(asked))}
  found = {name: np.zeros(len(originals)) for name in _NAMES}

  def add(kind: str, original: str, both: float) -> None:
    found[f"asked_{kind}"][originals[original]] += 1
    found[f"right_{kind}"][originals[original]] += both

  for one, is_right in zip(asked, right, strict=True):
    if not np.isnan(is_right):
      add(_name(*one.cell), one.original, is_right)
  for role, before, after in _pairs(asked, pairing):
    both = right[before] * right[after]
    if not np.isnan(both):
      add(f"pair_{role}", asked[before].original, both)
  return found


def _ordered(asked: Sequence[Asked]) -> list[str]:
  return list(dict.fromkeys(one.original for one in asked))


def _name(role: str, changed: bool) -> str:
  return f"{role}_{'changed' if changed else 'original'}"


def _pairs(
  asked: Sequence[Asked], pairing: Pairing
) -> list[tuple[str, int, int]]:
  """Lists role, question of the original, and of the changed picture."""
  before: dict[tuple[str, str], list[int]] = {}
  after: dict[tuple[str, str, str], int] = {}
  for i, one in enumerate(asked):
    if not one.cell[1]:
      before.setdefault((one.original, one.role), []).append(i)
    elif one.role != "counterfactual":
      after.setdefault((one.original, one.picture, one.role), i)
  found: list[tuple[str, int, int]] = []
  used: set[int] = set()
  for (original, _, role), changed in after.items():
    left = before.get((original, role), [])
    if pairing == "same":
      same = [i for i in left if asked[i].text == asked[changed].text]
      # Each pair has a question of its own where there are as many.
      left = [i for i in same if i not in used] or same
    if left:
      used.add(left[0])
      found.append((role, left[0], changed))
  return found


_KINDS = (*(_name(*cell) for cell in CELLS), "pair_contextual", "pair_absent")
_NAMES = tuple(
  f"{what}_{kind}" for kind in _KINDS for what in ("asked", "right")
)


def rates(values: Values) -> dict[str, np.ndarray]:
  """Computes the numbers from counts of original pictures; see the module."""
  total: Mapping[str, Any] = {k: x.sum(-1) for k, x in values.items()}

  def share(kind: str, nothing: float = 0.0) -> Any:
    asked = total[f"asked_{kind}"]
    return np.where(
      asked > 0, total[f"right_{kind}"] / np.maximum(asked, 1), nothing
    )

  found: dict[str, Any]
  found = {_name(*cell): share(_name(*cell)) for cell in CELLS[:-1]}
  found = {
    "cac": found["contextual_original"] - found["contextual_changed"],
    "aac": found["absent_changed"] - found["absent_original"],
    "chr": 1 - share("counterfactual_changed", nothing=1.0),
    "cpr_contextual": share("pair_contextual"),
    "cpr_absent": share("pair_absent"),
    **found,
  }
  return {name: np.asarray(x) for name, x in found.items()}
