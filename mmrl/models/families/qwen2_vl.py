"""Qwen2-VL (arXiv 2409.12191), and what later families kept of it."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
import numpy as np

from mmrl.models.config import VisionConfig
from mmrl.models.families import sizes
from mmrl.models.families.family import Family, Grid, Span, VideoConfig

DECODER = {
  "text/embed": "model.embed_tokens",
  "text/norm": "model.norm",
  "text/head": "lm_head",
  "text/layers/input_norm": "model.layers.{}.input_layernorm",
  "text/layers/mlp_norm": "model.layers.{}.post_attention_layernorm",
  "text/layers/q": "model.layers.{}.self_attn.q_proj",
  "text/layers/k": "model.layers.{}.self_attn.k_proj",
  "text/layers/v": "model.layers.{}.self_attn.v_proj",
  "text/layers/o": "model.layers.{}.self_attn.o_proj",
  "text/layers/mlp/gate": "model.layers.{}.mlp.gate_proj",
  "text/layers/mlp/up": "model.layers.{}.mlp.up_proj",
  "text/layers/mlp/down": "model.layers.{}.mlp.down_proj",
}
TOWER = {
  "vision/patch_embed": "visual.patch_embed.proj",
  "vision/merger/norm": "visual.merger.ln_q",
  "vision/merger/fc1": "visual.merger.mlp.0",
  "vision/merger/fc2": "visual.merger.mlp.2",
  "vision/blocks/norm1": "visual.blocks.{}.norm1",
  "vision/blocks/norm2": "visual.blocks.{}.norm2",
  "vision/blocks/qkv": "visual.blocks.{}.attn.qkv",
  "vision/blocks/proj": "visual.blocks.{}.attn.proj",
}


def text(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields that the family fixes: size of a head, attention biases.

  Heads divide the width; queries, keys and values have biases.
  """
  return {
    "head_dim": raw["hidden_size"] // raw["num_attention_heads"],
    "qkv_bias": True,
  }


def vision(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields of a plain ViT: layer norms, ungated MLP, no windows.

  Fields that a file leaves out are filled in from the 7B model.
  """
  width = raw.get("embed_dim", 1280)
  return {
    "depth": raw.get("depth", 32),
    "hidden_size": width,
    "intermediate_size": round(width * raw.get("mlp_ratio", 4)),
    "num_heads": raw.get("num_heads", 16),
    "out_hidden_size": raw.get("hidden_size", 3584),
    "hidden_act": raw.get("hidden_act", "quick_gelu"),
    "norm": "layer",
    "gated_mlp": False,
    "window_size": 0,
    "fullatt_block_indexes": (),
    "tokens_per_second": 0,
  }


def vision_json(config: VisionConfig) -> dict[str, Any]:
  """Converts `VisionConfig` to vision_config.

  Its `hidden_size` is the decoder's width.
  """
  ratio = config.intermediate_size / config.hidden_size
  return {
    "depth": config.depth,
    "embed_dim": config.hidden_size,
    "hidden_size": config.out_hidden_size,
    "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
    "num_heads": config.num_heads,
    "hidden_act": config.hidden_act,
    "in_channels": config.in_channels,
    "in_chans": config.in_channels,
    "patch_size": config.patch_size,
    "spatial_patch_size": config.patch_size,
    "temporal_patch_size": config.temporal_patch_size,
    "spatial_merge_size": config.spatial_merge_size,
  }


def sample_frames(
  total: int, fps: float, config: VideoConfig, span: int
) -> Int[np.ndarray, "frames"]:
  """Samples a multiple of `span` frames, evenly from the first on."""
  if config.frames:
    count = round(config.frames / span) * span
  else:
    most = min(config.max_frames, total) // span * span
    wanted = max(total / fps * config.fps, config.min_frames)
    count = int(min(wanted, most, total) // span * span)
  if not 0 < count <= total:
    raise ValueError(
      f"expected a video of at least {max(count, span)} frames, found {total}"
    )
  # Rounded to float32 before it is truncated, as in Transformers. Where that
  # one computes an index past the last frame, this doesn't.
  indices = np.arange(count) * (total / count)
  return indices.astype(np.float32).astype(np.int64)


def fit_video(
  frames: int,
  height: int,
  width: int,
  cell: int,
  span: int,
  config: VideoConfig,
) -> tuple[int, int]:
  """Fits every frame into the budget like a picture of its own."""
  return sizes.fit(height, width, cell, config.min_pixels, config.max_pixels)


def video_spans(
  grid: Grid,
  seconds: np.ndarray,
  fps: float,
  tower: VisionConfig,
  placeholder: str,
  start: str,
  end: str,
) -> list[Span]:
  """Returns one span for the whole video, with frames at positions in time.

  `tokens_per_second` positions a second if the family has it (Qwen2.5-VL),
  else one position a frame.
  """
  interval = 1.0
  if tower.tokens_per_second:
    interval = float(
      np.float32(tower.tokens_per_second)
      * np.float32(tower.temporal_patch_size / fps)
    )
  return [Span(placeholder, grid, interval)]


FAMILY = Family(
  model_type="qwen2_vl",
  architecture="Qwen2VLForConditionalGeneration",
  processor="Qwen2VLProcessor",
  image_processor="Qwen2VLImageProcessor",
  video_processor="Qwen2VLVideoProcessor",
  text=text,
  text_json={},
  vision=vision,
  vision_json=vision_json,
  tensors=DECODER
  | TOWER
  | {
    "vision/blocks/mlp/fc1": "visual.blocks.{}.mlp.fc1",
    "vision/blocks/mlp/fc2": "visual.blocks.{}.mlp.fc2",
  },
  video=VideoConfig(128 * 28 * 28, 768 * 28 * 28),
  sample_frames=sample_frames,
  fit_video=fit_video,
  video_spans=video_spans,
)
