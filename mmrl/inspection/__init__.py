"""Questions looked at before a run: faults, sizes, and what remains."""

from mmrl.inspection.findings import (
  BROKEN,
  Finding,
  Limits,
  counts,
  describe,
  faults,
  inspect,
  judge,
  packed,
)
from mmrl.inspection.remaining import Remaining

__all__ = [
  "BROKEN",
  "Finding",
  "Limits",
  "Remaining",
  "counts",
  "describe",
  "faults",
  "inspect",
  "judge",
  "packed",
]
