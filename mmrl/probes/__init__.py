"""Probes: forward passes without gradient that add named fields to a batch."""

from mmrl.probes.blind import image_blind
from mmrl.probes.entropy import visual_entropy
from mmrl.probes.nucleus import nucleus
from mmrl.probes.scores import behaviour, reference
from mmrl.probes.teacher import teacher

__all__ = [
  "behaviour",
  "image_blind",
  "nucleus",
  "reference",
  "teacher",
  "visual_entropy",
]
