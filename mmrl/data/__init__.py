"""Questions in, padded batches out."""

from mmrl.data.experts import Experts
from mmrl.data.pipeline import Samples, batches, in_order
from mmrl.data.sources import EasyVQA, Example, JsonLines

__all__ = [
  "EasyVQA",
  "Example",
  "Experts",
  "JsonLines",
  "Samples",
  "batches",
  "in_order",
]
