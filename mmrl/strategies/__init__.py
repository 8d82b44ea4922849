"""Decoding strategies with more than one model, or more than one draw."""

from mmrl.strategies.direction import (
  delta_logp,
  direction_gate,
  direction_stats,
  extrapolated_logits,
  replacement_gate,
)
from mmrl.strategies.extrapolation import (
  Extrapolated,
  extrapolate,
  selective_step,
)

__all__ = [
  "Extrapolated",
  "delta_logp",
  "direction_gate",
  "direction_stats",
  "extrapolate",
  "extrapolated_logits",
  "replacement_gate",
  "selective_step",
]
