"""Which object of a picture is replaced, by what, and what is asked then.

Reference: Causal-HalBench, arXiv 2511.10268, section 3 and its pipeline.
Differs from its code: candidates aren't objects of the picture, equal counts go
by class number, a reply names the longest candidate in it, and one that names
none drops the sample. Reconstructed: which absent objects are asked for.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
import numpy as np


def cooccurrence(
  labels: Bool[np.ndarray, "N C"],
) -> Int[np.ndarray, "C C"]:
  """Counts pictures in which two classes are together; 0 on the diagonal."""
  there = np.asarray(labels).astype(np.int64)
  found = there.T @ there
  np.fill_diagonal(found, 0)
  return found


def contextual_probabilities(
  counts: Int[np.ndarray, "C C"], target: int, present: Bool[np.ndarray, "C"]
) -> Float[np.ndarray, "C"]:
  """Computes with which probability a class is the one that stays.

      p(c) = counts[target, c] / sum over the other classes of the picture

  Uniform where nothing is counted; all 0 where the target is alone.

  Args:
    counts: see `cooccurrence`.
    target: class of the object that is replaced.
    present: classes of the picture.
  """
  others = np.asarray(present, bool).copy()
  others[target] = False
  weights = np.where(others, counts[target], 0).astype(float)
  if not weights.sum():
    weights = others.astype(float)
  return weights / max(weights.sum(), 1.0)


def candidates(
  counts: Int[np.ndarray, "C C"],
  context: int,
  present: Bool[np.ndarray, "C"],
  generator: np.random.Generator,
  k: int = 8,
) -> Int[np.ndarray, "k"] | None:
  """Lists classes that are seldom with the one that stays.

  `k` random ones of those that never are with it; where there are fewer, all
  of them and then those of the least counts.

  Args:
    counts: see `cooccurrence`.
    context: class of the object that stays.
    present: classes of the picture, which are no candidates.
    generator: draws them.
    k: how many.

  Returns:
    None where there are fewer than `k`.
  """
  free = ~np.asarray(present, bool)
  free[context] = False
  row = counts[context]
  never = np.flatnonzero(free & (row == 0))
  if len(never) >= k:
    return generator.permutation(never)[:k]
  rest = np.flatnonzero(free & (row > 0))
  rest = rest[np.argsort(row[rest], kind="stable")]
  found = np.concatenate([never, rest])[:k]
  return found if len(found) == k else None


def absent(
  counts: Int[np.ndarray, "C C"],
  target: int,
  excluded: Bool[np.ndarray, "C"],
  generator: np.random.Generator,
) -> tuple[int, int] | None:
  """Chooses two classes that neither picture has: the likeliest, and any.

  Args:
    counts: see `cooccurrence`.
    target: class of the object that is replaced, whose company is likely.
    excluded: classes of the picture, and the one that is put in.
    generator: draws the second.

  Returns:
    None where there are fewer than two.
  """
  free = np.flatnonzero(~np.asarray(excluded, bool))
  if len(free) < 2:
    return None
  likely = free[np.argmax(counts[target, free])]
  return int(likely), int(generator.choice(free[free != likely]))


def named(reply: str, names: Sequence[str]) -> str | None:
  """Returns the longest candidate whose name is in a reply, in any case.

  The first of equally long ones; None where it names none.
  """
  said = reply.lower()
  found = [name for name in names if name.lower() in said]
  return max(found, key=len) if found else None
