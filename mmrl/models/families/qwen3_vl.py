"""Qwen3-VL, dense (arXiv 2511.21631): DeepStack, interleaved M-RoPE, and
time written out as text."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
import numpy as np

from mmrl.models.config import VisionConfig
from mmrl.models.families import qwen2_vl, sizes
from mmrl.models.families.family import Family, Grid, Span, VideoConfig, nested


def text(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields that the family fixes: queries and keys are normalised.

  The size of a head is read from the file.
  """
  return {
    "head_dim": raw.get("head_dim", 128),
    "qkv_bias": False,
    "qk_norm": True,
    "mrope_interleaved": True,
  }


def vision(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields of a ViT with a learned grid of positions."""
  return {
    "hidden_act": raw.get("hidden_act", "gelu_pytorch_tanh"),
    "norm": "layer",
    "gated_mlp": False,
    "patch_bias": True,
    "position_grid": int(raw.get("num_position_embeddings", 2304) ** 0.5),
    "patch_size": raw.get("patch_size", 16),
    "window_size": 0,
    "fullatt_block_indexes": (),
    "tokens_per_second": 0,
  }


def vision_json(config: VisionConfig) -> dict[str, Any]:
  """Converts `VisionConfig` to vision_config.

  The grid of positions is stored by its area.
  """
  return {
    "depth": config.depth,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_heads": config.num_heads,
    "hidden_act": config.hidden_act,
    "in_channels": config.in_channels,
    "patch_size": config.patch_size,
    "temporal_patch_size": config.temporal_patch_size,
    "spatial_merge_size": config.spatial_merge_size,
    "out_hidden_size": config.out_hidden_size,
    "num_position_embeddings": config.position_grid**2,
    "deepstack_visual_indexes": list(config.deepstack_visual_indexes),
  }


def sample_frames(
  total: int, fps: float, config: VideoConfig, span: int
) -> Int[np.ndarray, "frames"]:
  """Samples frames evenly from the first frame to the last."""
  del span
  count = config.frames
  if not count:
    count = max(int(total / fps * config.fps), config.min_frames)
    count = min(count, config.max_frames, total)
  return np.linspace(0, total - 1, count).round().astype(np.int64)


def fit_video(
  frames: int,
  height: int,
  width: int,
  cell: int,
  span: int,
  config: VideoConfig,
) -> tuple[int, int]:
  """Fits the pixels of all frames together into the budget."""
  if frames < span:
    raise ValueError(f"expected at least {span} frames, found {frames}")
  grow = max(cell / height, cell / width)
  if grow > 1:
    height, width = int(height * grow), int(width * grow)
  return sizes.fit(
    height,
    width,
    cell,
    config.min_pixels,
    config.max_pixels,
    frames=frames,
    rounded=round(frames / span) * span,
  )


def video_spans(
  grid: Grid,
  seconds: np.ndarray,
  fps: float,
  tower: VisionConfig,
  placeholder: str,
  start: str,
  end: str,
) -> list[Span]:
  """Returns a span per temporal patch, after the time of its middle as text."""
  del fps
  span = tower.temporal_patch_size
  missing = -len(seconds) % span
  seconds = np.concatenate([seconds, np.repeat(seconds[-1:], missing)])
  middles = (seconds[::span] + seconds[span - 1 :: span]) / 2
  return [
    Span(f"<{middle:.1f} seconds>{start}{placeholder}{end}", (1, *grid[1:]))
    for middle in middles
  ]


FAMILY = Family(
  model_type="qwen3_vl",
  architecture="Qwen3VLForConditionalGeneration",
  processor="Qwen3VLProcessor",
  image_processor="Qwen2VLImageProcessor",
  video_processor="Qwen3VLVideoProcessor",
  text=text,
  text_json={"attention_bias": False},
  vision=vision,
  vision_json=vision_json,
  tensors={
    ours: nested(name)
    for ours, name in (
      qwen2_vl.DECODER
      | qwen2_vl.TOWER
      | {
        "text/layers/q_norm": "model.layers.{}.self_attn.q_norm",
        "text/layers/k_norm": "model.layers.{}.self_attn.k_norm",
        "vision/positions": "visual.pos_embed",
        "vision/blocks/mlp/fc1": "visual.blocks.{}.mlp.linear_fc1",
        "vision/blocks/mlp/fc2": "visual.blocks.{}.mlp.linear_fc2",
        "vision/merger/norm": "visual.merger.norm",
        "vision/merger/fc1": "visual.merger.linear_fc1",
        "vision/merger/fc2": "visual.merger.linear_fc2",
        "vision/deepstack/norm": "visual.deepstack_merger_list.{}.norm",
        "vision/deepstack/fc1": "visual.deepstack_merger_list.{}.linear_fc1",
        "vision/deepstack/fc2": "visual.deepstack_merger_list.{}.linear_fc2",
      }
    ).items()
  },
  video=VideoConfig(128 * 32 * 32, 768 * 32 * 32),
  sample_frames=sample_frames,
  fit_video=fit_video,
  video_spans=video_spans,
)
