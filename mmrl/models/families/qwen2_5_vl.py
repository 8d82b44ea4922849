"""Qwen2.5-VL (arXiv 2502.13923): windows in the tower, absolute time."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from mmrl.models.config import VisionConfig
from mmrl.models.families import qwen2_vl


def vision(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields of a tower with RMS norms, a gated MLP and windows.

  Most blocks attend inside windows. Fields that a file leaves out are
  filled in from the 7B model.
  """
  return {
    "depth": 32,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    **raw,
    "norm": "rms",
    "gated_mlp": True,
  }


def vision_json(config: VisionConfig) -> dict[str, Any]:
  """Converts `VisionConfig` to vision_config, which uses the same names."""
  ours = dataclasses.asdict(config)
  for fixed in ("norm", "gated_mlp", "patch_bias", "position_grid"):
    del ours[fixed]
  del ours["deepstack_visual_indexes"]
  return ours | {
    "in_chans": config.in_channels,
    "spatial_patch_size": config.patch_size,
  }


FAMILY = dataclasses.replace(
  qwen2_vl.FAMILY,
  model_type="qwen2_5_vl",
  architecture="Qwen2_5_VLForConditionalGeneration",
  processor="Qwen2_5_VLProcessor",
  vision=vision,
  vision_json=vision_json,
  tensors=qwen2_vl.DECODER
  | qwen2_vl.TOWER
  | {
    "vision/blocks/mlp/gate": "visual.blocks.{}.mlp.gate_proj",
    "vision/blocks/mlp/up": "visual.blocks.{}.mlp.up_proj",
    "vision/blocks/mlp/down": "visual.blocks.{}.mlp.down_proj",
  },
)
