"""Sources of questions, and padded batches of them."""

from mmrl.data.experts import Experts
from mmrl.data.pipeline import Samples, batches, in_order, spread
from mmrl.data.sources import EasyVQA, Example, JsonLines

__all__ = [
  "EasyVQA",
  "Example",
  "Experts",
  "JsonLines",
  "Samples",
  "batches",
  "in_order",
  "spread",
]
