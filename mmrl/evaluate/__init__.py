"""Evaluation on held-out questions."""

from mmrl.evaluate.evaluate import (
  Evaluation,
  blind_baseline,
  evaluate,
  make_answer,
  spread,
)

__all__ = [
  "Evaluation",
  "blind_baseline",
  "evaluate",
  "make_answer",
  "spread",
]
