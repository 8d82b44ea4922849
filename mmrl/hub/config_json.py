"""config.json of a model directory, read and written."""

import dataclasses
import json
from typing import Any

from etils import epath

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.hub import end_tokens, limits
from mmrl.models import layers
from mmrl.models.config import (
  Latent,
  ModelConfig,
  TextConfig,
  VisionConfig,
)
from mmrl.models.families import FAMILIES
from mmrl.models.families.family import Family

# Of Qwen's vocabulary, where a config.json leaves them out.
_IDS = {
  "image_token_id": 151655,
  "video_token_id": 151656,
  "vision_start_token_id": 151652,
  "vision_end_token_id": 151653,
}
# What only this library computes stands in config.json under this name.
_OWN = "mmrl"
# Of PEFT; a folder that has it is an adapter to those who read it.
ADAPTER = "adapter_config.json"
_WHOLE = (*_IDS, "pad_token_id", "tie_word_embeddings")


def read(path: storage.Name) -> ModelConfig:
  """Reads config.json, nested (Transformers 5) or flat (the hub's files).

  Args:
    path: the model directory.

  Returns:
    The configuration.

  Raises:
    UserError: if the file is missing, isn't JSON, is of another family, lacks
      a field, or needs something that isn't computed here.
  """
  folder = storage.path(path)
  path = folder / "config.json"
  if json_files.is_there(folder / ADAPTER):
    raise UserError(
      f"{folder}: expected a whole model, found {ADAPTER}: a LoRA adapter;"
      " give its base model's path, and this folder as config.models.policy"
      ".adapter (mmrl.sample: --adapter), or merge it (PEFT: merge_and_unload)"
    )
  raw = json_files.read(path, "a model directory with config.json")
  family = FAMILIES.get(str(raw.get("model_type")))
  if family is None:
    raise UserError(
      f"{path}: expected model_type {' or '.join(map(repr, FAMILIES))}, found"
      f" {raw.get('model_type')!r:.80}; other families can't be loaded"
    )
  inner = raw.get("text_config")
  inner = inner if isinstance(inner, dict) else {}
  if any(part.get("quantization_config") for part in (raw, inner)):
    raise UserError(
      f"{path}: expected plain weights, found a quantised checkpoint; use the"
      " unquantised model"
    )
  try:
    config = _build(raw, family, path)
  except (ArithmeticError, LookupError, TypeError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path}: expected the fields of a {family.model_type} config; missing"
      f" or mistyped: {error}"
    ) from error
  _check_model(config, path)
  return config


def _build(
  raw: dict[str, Any], family: Family, path: epath.Path
) -> ModelConfig:
  """Builds the configuration from `raw`; errors name `path`."""
  raw = json_files.without_nulls(raw)
  text = json_files.part(raw, "text_config") or raw
  tower = json_files.part(raw, "vision_config")
  rope = _rope(raw, text, path)
  _check_decoder(text, path)
  for part in (raw, text, rope, tower):
    limits.check(part)
  text_config = json_files.build(
    TextConfig,
    {"num_key_value_heads": text["num_attention_heads"]}
    | text
    | rope
    | family.text(text),
  )
  vision_config = json_files.build(VisionConfig, tower | family.vision(tower))
  limits.check_shapes(text_config, vision_config)
  # Ids and the like are outside of the decoder's part, or in both.
  whole = text | raw
  eos, *others = end_tokens.read(whole.get("eos_token_id", 151645), path.parent)
  return json_files.build(
    ModelConfig,
    _IDS
    | {"pad_token_id": eos, "tie_word_embeddings": False}
    | {k: v for k, v in whole.items() if k in _WHOLE}
    | {
      "text": text_config,
      "vision": vision_config,
      "eos_token_id": eos,
      "other_end_token_ids": others,
      "family": family.model_type,
    }
    | _read_own(raw, path),
  )


def _read_own(raw: dict[str, Any], path: epath.Path) -> dict[str, Any]:
  """Reads what only this library computes."""
  own = json_files.part(raw, _OWN)
  known = ("latent", "mixed_attention")
  unknown = sorted(own.keys() - {*known})
  if unknown:
    raise UserError(
      f"{path}: expected {' and '.join(known)} in {_OWN!r}, found"
      f" {unknown[0]!r}"
    )
  found: dict[str, Any] = {}
  if "mixed_attention" in own:
    found["mixed_attention"] = own["mixed_attention"]
    if not isinstance(found["mixed_attention"], bool):
      raise UserError(
        f"{path}: expected mixed_attention in {_OWN!r} to be true or false,"
        f" found {own['mixed_attention']!r:.80}"
      )
  if "latent" in own:
    latent = json_files.part(own, "latent")
    try:
      found["latent"] = Latent(**latent)
    except TypeError as error:
      raise UserError(
        f"{path}: expected 'latent' in {_OWN!r} with token_id, end_token_id,"
        f" length and segments: {error}"
      ) from error
  return found


def caveat(config: ModelConfig) -> str:
  """Says what other programs do wrong with a model; "" if nothing."""
  wrong = []
  if config.latent:
    wrong.append(
      "read the inner positions of its latent segments as tokens, not as states"
      " that are fed back"
    )
  if config.mixed_attention:
    wrong.append("let visual tokens see only those before them")
  if not wrong:
    return ""
  return (
    "Transformers and vLLM load this model but would"
    f" {' and '.join(wrong)}: answer with python -m mmrl.sample"
  )


def _rope(raw: dict, text: dict, path: epath.Path) -> dict[str, Any]:
  """Merges what the file says of rotary positions, under any usual name."""
  found = [
    json_files.part(part, name)
    for part in (raw, text)
    for name in ("rope_scaling", "rope_parameters")
  ]
  rope = {k: v for k, v in (raw | text).items() if k == "rope_theta"}
  for one in found:
    rope |= one
    kinds = [one.get(name, "default") for name in ("rope_type", "type")]
    if any(kind not in ("default", "mrope") for kind in kinds):
      raise UserError(
        f"{path}: expected plain M-RoPE, found {one!r:.160}; scaled positions"
        " (YaRN) aren't computed"
      )
  sections = [one["mrope_section"] for one in found if "mrope_section" in one]
  if not sections or any(other != sections[0] for other in sections):
    raise UserError(
      f"{path}: expected plain M-RoPE with one mrope_section, in"
      " rope_parameters or rope_scaling of text_config or on top, found"
      f" {sections or rope!s:.160}; use the config.json of the published model"
    )
  if "rope_theta" not in rope:
    raise LookupError("rope_theta")
  return rope


def _check_decoder(text: dict, path: epath.Path) -> None:
  if text.get("use_sliding_window"):
    raise UserError(
      f"{path}: expected attention over the whole context, found"
      " use_sliding_window; sliding windows aren't computed"
    )
  if text.get("hidden_act", "silu") != "silu":
    raise UserError(
      f"{path}: expected hidden_act 'silu' in the decoder, found"
      f" {text['hidden_act']!r:.80}"
    )


def _check_model(config: ModelConfig, path: epath.Path) -> None:
  """Refuses what would otherwise fail deep inside, or compute nonsense."""
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
  label = f"eos_token_id (here or in {end_tokens.FILE})"
  ids = [(label, value) for value in config.other_end_token_ids]
  latent = dataclasses.asdict(config.latent) if config.latent else {}
  ids += latent.items()
  for name, value in [*dataclasses.asdict(config).items(), *ids]:
    an_id = name == label or name.endswith("token_id")
    if an_id and not 0 <= value < text.vocab_size:
      raise UserError(
        f"{path}: expected {name} in a vocabulary of {text.vocab_size}, found"
        f" {value}"
      )


def write(config: ModelConfig, path: storage.Name, dtype: str) -> None:
  """Writes the config.json of a model whose weights are stored as `dtype`.

  It has the nested form that Transformers 5 and vLLM read.
  """
  text = json.dumps(to_json(config, dtype), indent=2) + "\n"
  storage.write_text(storage.path(path) / "config.json", text)


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
  """Converts a configuration to the object in config.json; see `write`."""
  family = FAMILIES[config.family]
  text = dataclasses.asdict(config.text)
  # The family fixes them, so config.json has no fields for them.
  for ours in ("qkv_bias", "qk_norm"):
    del text[ours]
  rope = {
    "rope_type": "default",
    "rope_theta": text.pop("rope_theta"),
    "mrope_section": list(text.pop("mrope_section")),
  }
  if text.pop("mrope_interleaved"):
    rope["mrope_interleaved"] = True
  ends = end_tokens.to_json(config.end_token_ids)
  own: dict[str, Any] = {}
  if config.latent:
    own["latent"] = dataclasses.asdict(config.latent)
  if config.mixed_attention:
    own["mixed_attention"] = True
  ids = {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name.endswith("token_id")
  } | {"eos_token_id": ends}
  return {
    "architectures": [family.architecture],
    "model_type": family.model_type,
    "dtype": dtype,
    "tie_word_embeddings": config.tie_word_embeddings,
    **ids,
    **({_OWN: own} if own else {}),
    "text_config": {
      "model_type": f"{family.model_type}_text",
      "dtype": dtype,
      "hidden_act": "silu",
      "tie_word_embeddings": config.tie_word_embeddings,
      "bos_token_id": config.pad_token_id,
      "eos_token_id": ends,
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
