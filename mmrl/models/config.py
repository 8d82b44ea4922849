"""Qwen2.5-VL hyper-parameters, from and to a Hugging Face config.json."""

import dataclasses
import json
import pathlib

from mmrl.errors import UserError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The vision tower. Names follow config.json; sizes are in pixels."""

  depth: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  out_hidden_size: int
  patch_size: int = 14
  temporal_patch_size: int = 2
  spatial_merge_size: int = 2
  window_size: int = 112
  in_channels: int = 3
  tokens_per_second: int = 4
  fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_heads

  @property
  def patch_values(self) -> int:
    return self.in_channels * self.temporal_patch_size * self.patch_size**2

  @property
  def window_cells(self) -> int:
    """Merged cells along one side of an attention window."""
    return self.window_size // self.spatial_merge_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """The decoder. Names follow config.json."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  mrope_section: tuple[int, int, int]
  rope_theta: float = 1e6
  rms_norm_eps: float = 1e-6
  max_position_embeddings: int = 32768

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Qwen2.5-VL model. Hashable, so that it can be a static argument.

  Attributes:
    text: the decoder.
    vision: the vision tower.
    tie_word_embeddings: whether the output head is the embedding table.
    image_token_id, video_token_id: placeholders for visual tokens.
    vision_start_token_id, vision_end_token_id: the marks around them.
    eos_token_id: the token that ends an answer.
    pad_token_id: the token that fills padding.
    dtype: compute type of matrix products; softmax, norms, log-probabilities
      and rotary angles are float32 whatever it is.
    remat: whether each layer is recomputed in the backward pass.
  """

  text: TextConfig
  vision: VisionConfig
  tie_word_embeddings: bool
  image_token_id: int
  video_token_id: int
  vision_start_token_id: int
  vision_end_token_id: int
  eos_token_id: int
  pad_token_id: int
  dtype: str = "float32"
  remat: bool = True

  @property
  def banned_token_ids(self) -> tuple[int, ...]:
    """Placeholders that may never be sampled: no picture stands behind."""
    return (self.image_token_id, self.video_token_id)


def _pick(cls, values: dict, path, **fixed):
  """Builds dataclass `cls` from the entries of `values` that it names."""
  names = {f.name for f in dataclasses.fields(cls)} - set(fixed)
  found = {k: v for k, v in values.items() if k in names and v is not None}
  found |= {k: tuple(v) for k, v in found.items() if isinstance(v, list)}
  try:
    return cls(**found, **fixed)
  except TypeError as error:
    raise UserError(
      f"{path}: expected the fields of a Qwen2.5-VL config; {error}"
    ) from error


def from_hf(path: str | pathlib.Path) -> ModelConfig:
  """Reads config.json, nested (Transformers 5) or flat (the hub's files).

  Args:
    path: the model directory.

  Returns:
    The configuration.

  Raises:
    UserError: if the file is missing, isn't JSON, is of another family, or
      lacks a field.
  """
  path = pathlib.Path(path) / "config.json"
  try:
    raw = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise UserError(
      f"expected a model directory with config.json, found no {path}; pass"
      " a directory in the Hugging Face layout"
    ) from error
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is not valid JSON: {error}") from error
  if raw.get("model_type") != "qwen2_5_vl":
    raise UserError(
      f"{path}: expected model_type 'qwen2_5_vl', found"
      f" {raw.get('model_type')!r}; this version loads Qwen2.5-VL models"
    )
  if "quantization_config" in raw:
    raise UserError(
      f"{path}: expected plain weights, found a quantised checkpoint; use the"
      " unquantised model"
    )
  text = raw.get("text_config") or raw
  rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "mrope") or text.get("use_sliding_window"):
    raise UserError(
      f"{path}: expected plain M-RoPE over the whole context, found rope type"
      f" {kind!r} and use_sliding_window {text.get('use_sliding_window')}; this"
      " version computes neither scaled positions nor sliding windows"
    )
  text_config = _pick(
    TextConfig,
    text | {"rope_theta": rope.get("rope_theta", text.get("rope_theta"))},
    path,
    mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
  )
  eos = raw.get("eos_token_id", text.get("eos_token_id", 151645))
  pad = raw.get("pad_token_id", text.get("pad_token_id"))
  eos = eos[0] if isinstance(eos, list) else eos
  ids = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
  }
  return ModelConfig(
    text=text_config,
    vision=_pick(VisionConfig, raw.get("vision_config") or {}, path),
    tie_word_embeddings=bool(
      raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    ),
    eos_token_id=eos,
    pad_token_id=eos if pad is None else pad,
    **{name: raw.get(name, default) for name, default in ids.items()},
  )


def to_hf(config: ModelConfig, dtype: str) -> dict:
  """The config.json of `config`, for weights stored as `dtype`."""
  text = dataclasses.asdict(config.text)
  theta, sections = text.pop("rope_theta"), text.pop("mrope_section")
  ids = {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name.endswith("token_id")
  }
  return {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "dtype": dtype,
    "tie_word_embeddings": config.tie_word_embeddings,
    **ids,
    "text_config": text
    | {
      "model_type": "qwen2_5_vl_text",
      "dtype": dtype,
      "hidden_act": "silu",
      "tie_word_embeddings": config.tie_word_embeddings,
      "bos_token_id": config.pad_token_id,
      "eos_token_id": config.eos_token_id,
      "pad_token_id": config.pad_token_id,
      "rope_parameters": {
        "rope_type": "default",
        "rope_theta": theta,
        "mrope_section": list(sections),
      },
    },
    "vision_config": dataclasses.asdict(config.vision)
    | {"model_type": "qwen2_5_vl_vision", "hidden_act": "silu"},
  }
