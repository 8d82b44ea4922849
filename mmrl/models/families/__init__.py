"""Model families, one file each.

A family that fits the fields of `TextConfig` and `VisionConfig` is a new file
here and its name below. Its config.json, tensor names and treatment of videos
are in that file; no other code refers to it by name.
"""

from mmrl.models.families import qwen2_5_vl, qwen2_vl, qwen3_vl
from mmrl.models.families.family import (
  Family,
  Span,
  VideoConfig,
  uniform_frames,
)

FAMILIES = {
  module.FAMILY.model_type: module.FAMILY
  for module in (qwen2_vl, qwen2_5_vl, qwen3_vl)
}

__all__ = ["FAMILIES", "Family", "Span", "VideoConfig", "uniform_frames"]
