"""config.json of a model directory, read and written."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from mmrl.errors import UserError
from mmrl.models import layers
from mmrl.models.config import ModelConfig, TextConfig, VisionConfig
from mmrl.models.families import FAMILIES

# Of Qwen's vocabulary, where a config.json leaves them out.
_IDS = {
  "image_token_id": 151655,
  "video_token_id": 151656,
  "vision_start_token_id": 151652,
  "vision_end_token_id": 151653,
}


def read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
  """A JSON object from a file.

  Raises:
    UserError: if there is no such file or it isn't one, naming `what` it is.
  """
  try:
    raw = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise UserError(
      f"expected {what} at {path}, found no file; pass a directory in the"
      " Hugging Face layout"
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is not readable JSON: {error}") from error
  if not isinstance(raw, dict):
    raise UserError(f"{path}: expected a JSON object, found {raw!s:.80}")
  return raw


def read(path: str | pathlib.Path) -> ModelConfig:
  """Reads config.json, nested (Transformers 5) or flat (the hub's files).

  Args:
    path: the model directory.

  Returns:
    The configuration.

  Raises:
    UserError: if the file is missing, isn't JSON, is of another family, lacks
      a field, or asks for something that isn't computed here.
  """
  path = pathlib.Path(path) / "config.json"
  raw = read_json(path, "a model directory with config.json")
  family = FAMILIES.get(raw.get("model_type"))
  if family is None:
    raise UserError(
      f"{path}: expected model_type {' or '.join(map(repr, FAMILIES))}, found"
      f" {raw.get('model_type')!r}; models of other families can't be loaded"
    )
  if "quantization_config" in raw:
    raise UserError(
      f"{path}: expected plain weights, found a quantised checkpoint; use the"
      " unquantised model"
    )
  text = raw.get("text_config") or raw
  text = {k: v for k, v in text.items() if v is not None}
  rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
  _check_decoder(text, rope, path)
  tower = {
    k: v for k, v in (raw.get("vision_config") or {}).items() if v is not None
  }
  try:
    text_config = _pick(
      TextConfig,
      {"num_key_value_heads": text["num_attention_heads"]}
      | text
      | {"mrope_section": rope["mrope_section"]}
      | {k: float(v) for k, v in (text | rope).items() if k == "rope_theta"}
      | family.text(text),
    )
    vision_config = _pick(VisionConfig, tower | family.vision(tower))
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path}: expected the fields of a {family.model_type} config; missing"
      f" or mistyped: {error}"
    ) from error
  eos = raw.get("eos_token_id", text.get("eos_token_id", 151645))
  eos = eos[0] if isinstance(eos, list) else eos
  pad = raw.get("pad_token_id", text.get("pad_token_id"))
  config = ModelConfig(
    text=text_config,
    vision=vision_config,
    tie_word_embeddings=bool(
      raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    ),
    eos_token_id=eos,
    pad_token_id=eos if pad is None else pad,
    family=family.model_type,
    **{name: raw.get(name, default) for name, default in _IDS.items()},
  )
  _check_model(config, path)
  return config


def _pick(cls, values: Mapping[str, Any]):
  """Builds dataclass `cls` from the entries of `values` that it names."""
  names = {field.name for field in dataclasses.fields(cls)}
  return cls(
    **{
      name: tuple(value) if isinstance(value, list) else value
      for name, value in values.items()
      if name in names
    }
  )


def _check_decoder(text: dict, rope: dict, path: pathlib.Path) -> None:
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "mrope") or "mrope_section" not in rope:
    raise UserError(
      f"{path}: expected plain M-RoPE with its mrope_section, found {rope};"
      " scaled positions (YaRN) aren't computed"
    )
  if text.get("use_sliding_window"):
    raise UserError(
      f"{path}: expected attention over the whole context, found"
      " use_sliding_window; sliding windows aren't computed"
    )
  if text.get("hidden_act", "silu") != "silu":
    raise UserError(
      f"{path}: expected hidden_act 'silu' in the decoder, found"
      f" {text['hidden_act']!r}"
    )


def _check_model(config: ModelConfig, path: pathlib.Path) -> None:
  """What would otherwise fail deep inside, or compute nonsense."""
  text, tower = config.text, config.vision
  if sum(text.mrope_section) * 2 != text.head_dim:
    raise UserError(
      f"{path}: expected an mrope_section that adds up to half of head_dim ="
      f" {text.head_dim}, found {text.mrope_section}"
    )
  if tower.out_hidden_size != text.hidden_size:
    raise UserError(
      f"{path}: expected visual tokens as wide as the decoder,"
      f" {text.hidden_size}, found {tower.out_hidden_size}"
    )
  if tower.hidden_act not in layers.ACTIVATIONS:
    raise UserError(
      f"{path}: expected hidden_act of the vision tower to be one of"
      f" {sorted(layers.ACTIVATIONS)}, found {tower.hidden_act!r}"
    )
  for name, value in dataclasses.asdict(config).items():
    if name.endswith("token_id") and not 0 <= value < text.vocab_size:
      raise UserError(
        f"{path}: expected {name} in a vocabulary of {text.vocab_size}, found"
        f" {value}"
      )


def write(config: ModelConfig, path: str | pathlib.Path, dtype: str) -> None:
  """Writes the config.json of a model whose weights are stored as `dtype`.

  It has the nested form that Transformers 5 and vLLM read.
  """
  text = json.dumps(to_json(config, dtype), indent=2) + "\n"
  (pathlib.Path(path) / "config.json").write_text(text)


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
  """See `write`."""
  family = FAMILIES[config.family]
  text = dataclasses.asdict(config.text)
  for ours in ("qkv_bias", "qk_norm"):
    del text[ours]
  rope = {
    "rope_type": "default",
    "rope_theta": text.pop("rope_theta"),
    "mrope_section": list(text.pop("mrope_section")),
  }
  if text.pop("mrope_interleaved"):
    rope["mrope_interleaved"] = True
  ids = {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name.endswith("token_id")
  }
  return {
    "architectures": [family.architecture],
    "model_type": family.model_type,
    "dtype": dtype,
    "tie_word_embeddings": config.tie_word_embeddings,
    **ids,
    "text_config": {
      "model_type": f"{family.model_type}_text",
      "dtype": dtype,
      "hidden_act": "silu",
      "tie_word_embeddings": config.tie_word_embeddings,
      "bos_token_id": config.pad_token_id,
      "eos_token_id": config.eos_token_id,
      "pad_token_id": config.pad_token_id,
      **text,
      **family.text_json,
      "rope_parameters": rope,
    },
    "vision_config": {
      "model_type": f"{family.model_type}_vision",
      **family.vision_json(config.vision),
    },
  }
