"""Probes: forward passes without gradient that add named fields to a batch."""

from mmrl.probes.blind import image_blind
from mmrl.probes.cosine import visual_cosines
from mmrl.probes.entropy import visual_entropy
from mmrl.probes.nucleus import nucleus
from mmrl.probes.region import looks
from mmrl.probes.scores import (
  attention_average,
  attention_reference,
  average,
  behaviour,
  reference,
)
from mmrl.probes.shares import attention_shares
from mmrl.probes.sinks import visual_sinks
from mmrl.probes.teacher import teacher

__all__ = [
  "attention_average",
  "attention_reference",
  "attention_shares",
  "average",
  "behaviour",
  "image_blind",
  "looks",
  "nucleus",
  "reference",
  "teacher",
  "visual_cosines",
  "visual_entropy",
  "visual_sinks",
]
