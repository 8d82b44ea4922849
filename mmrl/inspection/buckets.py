"""Sizes that prompts are padded to, chosen from those of the data."""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools

from jaxtyping import Int
import numpy as np

from mmrl.inspection.findings import Finding

# Sizes are multiples of the first of each; from the second on, of 128, which
# suits the blocks of accelerators.
_TOKENS, _PATCHES, _BLOCK = (8, 1024), (16, 2048), 128
# Share of padding that is accepted, and most sizes of each that are tried.
_PADDING, _MOST = 0.25, 8
# Questions up to which one size is chosen: compiling takes longer than it
# saves.
SMALL = 1000


@dataclasses.dataclass(frozen=True)
class Buckets:
  """Sizes that prompts are padded to.

  Attributes:
    lengths: of tokens, ascending.
    patches: of patches, ascending.
    padding: what padding adds to the work, as a share of it.
  """

  lengths: tuple[int, ...]
  patches: tuple[int, ...]
  padding: float = 0.0


def choose(
  found: Iterable[Finding],
  unit: int,
  *,
  lengths: Sequence[int] = (),
  patches: Sequence[int] = (),
  one: bool = False,
) -> Buckets:
  """Chooses the fewest pairs of sizes whose padding is a quarter at most.

  The work of a prompt is taken as its tokens and patches / unit. For each
  number of sizes those that pad least are found exactly; then the numbers
  whose product is least, and of these those that pad least. Batches take the
  largest size of their prompts, so they are padded more.

  Args:
    found: sizes of all questions, at least one.
    unit: patches of a visual token.
    lengths, patches: sizes that are given; none if they are to be chosen.
    one: whether there may be only one of each.
  """
  sizes = [question for question in found if question.tokens]
  one = one or len(sizes) <= SMALL
  wanted = (
    (lengths, [x.tokens for x in sizes], _TOKENS),
    (patches, [x.patches for x in sizes], _PATCHES),
  )
  tokens, cuts = (
    [(tuple(sorted(given)), 0)]
    if given
    else list(_candidates(rounded(needs, *steps), 1 if one else _MOST))
    for given, needs, steps in wanted
  )
  work = sum(
    int(rounded(needs, *steps).sum()) / scale
    for (given, needs, steps), scale in zip(wanted, (1, unit), strict=True)
    if not given
  )
  pairs = [
    Buckets(s, m, (more + extra / unit) / max(work, 1))
    for (s, more), (m, extra) in itertools.product(tokens, cuts)
  ]
  fitting = [pair for pair in pairs if pair.padding <= _PADDING] or [
    min(pairs, key=lambda pair: pair.padding)
  ]
  return min(
    fitting,
    key=lambda pair: (len(pair.lengths) * len(pair.patches), pair.padding),
  )


def rounded(
  sizes: Sequence[int], step: int, large: int
) -> Int[np.ndarray, "N"]:
  """Rounds sizes up to multiples; there is at least one."""
  needs = np.maximum(np.array(sizes, np.int64), 1)
  steps = np.where(needs > large, _BLOCK, step)
  return -(-needs // steps) * steps


def _candidates(
  sizes: Int[np.ndarray, "N"], most: int
) -> Iterable[tuple[tuple[int, ...], int]]:
  """Yields, for each number of sizes, those that pad least, and how much.

  With values v_1 < .. < v_D that occur c_i times, and F(k, j) the least that
  k sizes pad the first j values, the largest of which is v_j,

      F(k, j) = min_i F(k - 1, i) + sum_{i < l <= j} c_l (v_j - v_l)
  """
  values, counts = np.unique(sizes, return_counts=True)
  number = np.concatenate([[0], np.cumsum(counts)])
  total = np.concatenate([[0], np.cumsum(counts * values)])
  # Padding of the values from i on up to j, which are padded to v_j.
  padded = (number[1:] - number[:, None]) * values - (
    total[1:] - total[:, None]
  )
  start, end = np.indices(padded.shape)
  padded = np.where(start <= end, padded, np.iinfo(np.int64).max // 4)
  best, cuts = padded[0], []
  for k in range(1, min(most, len(values)) + 1):
    if k > 1:
      # The first i values, of which best[i - 1] is known, then one more size.
      sums = best[:, None] + padded[1:]
      cuts.append(sums.argmin(0))
      best = sums.min(0)
    chosen, at = [], len(values) - 1
    for cut in (None, *cuts)[:0:-1]:
      chosen.append(at)
      at = int(cut[at])
    chosen.append(at)
    yield tuple(int(values[i]) for i in sorted(chosen)), int(best[-1])
