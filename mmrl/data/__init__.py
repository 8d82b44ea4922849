"""Questions in, padded batches out."""

from mmrl.data.pipeline import Samples, batches, in_order
from mmrl.data.sources import EasyVQA, Example, JsonLines

__all__ = [
  "EasyVQA",
  "Example",
  "JsonLines",
  "Samples",
  "batches",
  "in_order",
]
