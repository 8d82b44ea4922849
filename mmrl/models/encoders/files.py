"""Encoders' directories in the Hugging Face layout: config.json and weights."""

from typing import Any

import jax
import numpy as np
import safetensors.numpy

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.models.encoders.vision_transformer import ACTIVATIONS, Settings
from mmrl.types import PyTree

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,) * 3, (0.5,) * 3)
_KINDS = {
  "siglip": "siglip",
  "siglip_vision_model": "siglip",
  "dinov2": "dinov2",
  "dinov2_with_registers": "dinov2",
  "dinov3_vit": "dinov3",
}
# Ours, by the names in the files below a layer.
_SIGLIP = {
  "norm1": "layer_norm1",
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "output": "self_attn.out_proj",
  "norm2": "layer_norm2",
  "fc1": "mlp.fc1",
  "fc2": "mlp.fc2",
}
_DINO2 = {
  "norm1": "norm1",
  "query": "attention.attention.query",
  "key": "attention.attention.key",
  "value": "attention.attention.value",
  "output": "attention.output.dense",
  "norm2": "norm2",
  "fc1": "mlp.fc1",
  "fc2": "mlp.fc2",
}
_DINO3 = {
  "norm1": "norm1",
  "query": "attention.q_proj",
  "key": "attention.k_proj",
  "value": "attention.v_proj",
  "output": "attention.o_proj",
  "norm2": "norm2",
  "fc1": "mlp.up_proj",
  "fc2": "mlp.down_proj",
}
_LAYERS = {"siglip": _SIGLIP, "dinov2": _DINO2, "dinov3": _DINO3}
_TOP = {
  "siglip": {
    "patch": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "positions": "embeddings.position_embedding.weight",
    "layer": "encoder.layers.",
  },
  "dinov2": {
    "patch": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "positions": "embeddings.position_embeddings",
    "layer": "encoder.layer.",
  },
  "dinov3": {
    "patch": "embeddings.patch_embeddings",
    "norm": "norm",
    "layer": "layer.",
  },
}
# Before the names in the files of some.
_PREFIXES = ("vision_model.", "dinov2_with_registers.", "dinov2.", "model.")
_FILE = "model.safetensors"


def read(path: storage.Name) -> Settings:
  """Reads an encoder's config.json.

  Raises:
    UserError: if it is missing, or of another kind.
  """
  folder = storage.path(path)
  raw = json_files.read(
    folder / "config.json", "an encoder's directory with config.json"
  )
  kind = _KINDS.get(str(raw.get("model_type")))
  if kind is None:
    raise UserError(
      f"{folder}: expected an encoder of model_type"
      f" {', '.join(map(repr, _KINDS))}, found {raw.get('model_type')!r:.80}"
    )
  own = raw.get("vision_config") or raw
  try:
    return _settings(kind, own, raw)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{folder}: expected the fields of a {kind} config.json; missing or"
      f" mistyped: {error}"
    ) from error


def _settings(kind: str, own: dict[str, Any], raw: dict[str, Any]) -> Settings:
  gated = "joint" if own.get("use_swiglu_ffn") else ""
  gated = "apart" if own.get("use_gated_mlp") else gated
  default = "gelu_pytorch_tanh" if kind == "siglip" else "gelu"
  activation = own.get("hidden_act", default)
  if activation not in ACTIVATIONS:
    raise ValueError(f"hidden_act {activation!r}")
  if own.get("num_channels", 3) != 3:
    raise ValueError(f"num_channels {own['num_channels']}")
  mean, deviation = _HALF if kind == "siglip" else _IMAGENET
  return Settings(
    kind=kind,
    hidden_size=int(own["hidden_size"]),
    num_hidden_layers=int(own["num_hidden_layers"]),
    num_attention_heads=int(own["num_attention_heads"]),
    image_size=int(own["image_size"]),
    patch_size=int(own["patch_size"]),
    layer_norm_eps=float(own.get("layer_norm_eps", 1e-6)),
    hidden_act=activation,
    mean=mean,
    deviation=deviation,
    gated=gated,
    registers=0 if kind == "siglip" else int(own.get("num_register_tokens", 0)),
    rope_theta=_theta(own) if kind == "dinov3" else 0.0,
  )


def _theta(own: dict[str, Any]) -> float:
  rope = own.get("rope_parameters") or {}
  return float(rope.get("rope_theta", own.get("rope_theta", 100.0)))


def load(path: storage.Name) -> PyTree:
  """Loads an encoder's tensors, those of its layers stacked on axis 0.

  Raises:
    UserError: if a file or a tensor is missing.
  """
  settings, file = read(path), storage.path(path) / _FILE
  try:
    tensors = safetensors.numpy.load(file.read_bytes())
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{file}: expected the weights of an encoder in one file: {error}"
    ) from error
  return arrange(tensors, settings, str(file))


def arrange(
  tensors: dict[str, np.ndarray], settings: Settings, name: str
) -> PyTree:
  """Arranges tensors by their Hugging Face names; `name` is for errors."""
  tensors = {
    _short(key): np.asarray(x, np.float32) for key, x in tensors.items()
  }
  top, width = _TOP[settings.kind], settings.hidden_size

  def take(key: str) -> np.ndarray:
    if key not in tensors:
      raise UserError(
        f"{name}: expected the tensor {key} of a {settings.kind} encoder, found"
        " none; give the directory of a whole vision model"
      )
    return tensors[key]

  def dense(key: str) -> dict[str, np.ndarray]:
    weight = take(f"{key}.weight")
    bias = tensors.get(f"{key}.bias", np.zeros(len(weight), np.float32))
    return {"weight": weight, "bias": bias}

  def layer(number: int) -> PyTree:
    prefix = f"{top['layer']}{number}."
    names = dict(_LAYERS[settings.kind])
    if settings.gated == "joint":
      names |= {"fc1": "mlp.weights_in", "fc2": "mlp.weights_out"}
    elif settings.gated:
      names["gate"] = "mlp.gate_proj"
    found: dict[str, Any]
    found = {ours: dense(prefix + theirs) for ours, theirs in names.items()}
    if settings.kind != "siglip":
      for i in (1, 2):
        found[f"scale{i}"] = take(f"{prefix}layer_scale{i}.lambda1")
    return found

  layers = [layer(n) for n in range(settings.num_hidden_layers)]
  found: dict[str, Any] = {
    "patch": dense(top["patch"]),
    "norm": dense(top["norm"]),
  }
  if "positions" in top:
    found["positions"] = take(top["positions"]).reshape(-1, width)
  if settings.kind != "siglip":
    first = [take("embeddings.cls_token")]
    if settings.registers:
      first.append(take("embeddings.register_tokens"))
    found["first"] = np.concatenate([x.reshape(-1, width) for x in first])
  return found | {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)}


def _short(key: str) -> str:
  for prefix in _PREFIXES:
    key = key.removeprefix(prefix)
  return key
