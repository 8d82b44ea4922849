"""Sources of questions, and padded batches of them."""

from mmrl.data.example import Example
from mmrl.data.pipeline import Samples, batches, encode, in_order, spread
from mmrl.data.sources import (
  CausalHalBench,
  Counterfactuals,
  EasyVQA,
  Figures,
  Files,
  HdEpic,
  Kitchens,
  Scenes,
)
from mmrl.data.trajectories import Trajectories

__all__ = [
  "CausalHalBench",
  "Counterfactuals",
  "EasyVQA",
  "Example",
  "Figures",
  "Files",
  "HdEpic",
  "Kitchens",
  "Samples",
  "Scenes",
  "Trajectories",
  "batches",
  "encode",
  "in_order",
  "spread",
]
