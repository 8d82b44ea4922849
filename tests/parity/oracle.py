"""Transformers' Qwen2.5-VL with the reproducible weights of `small_models`."""

import json
import pathlib
import tempfile

import numpy as np
from PIL import Image
import small_models
import torch
import transformers

from mmrl.models import config as config_lib
from mmrl.models.config import ModelConfig

Torch = transformers.Qwen2_5_VLForConditionalGeneration


def make_torch(config: ModelConfig) -> Torch:
  """The model, its weights set by name: our loader has no part in it."""
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name)
    raw = json.dumps(config_lib.to_hf(config, "float32"))
    (path / "config.json").write_text(raw)
    hf_config = transformers.AutoConfig.from_pretrained(path)
  hf_config._attn_implementation = "eager"
  model = Torch(hf_config).eval()
  with torch.no_grad():
    for tensor_name, tensor in model.named_parameters():
      values = small_models.weight(tensor_name, tuple(tensor.shape))
      tensor.copy_(torch.from_numpy(values))
  return model


def make_inputs(config: ModelConfig, conversations: list) -> dict:
  """What `Qwen2_5_VLProcessor` returns, without its video half.

  That class needs torchvision to be built. Its work on text is to repeat
  each placeholder, which is done here as it does it.
  """
  tokenizer = small_models.make_tokenizer()
  picture, vision = small_models.PICTURE, config.vision
  processor = transformers.Qwen2VLImageProcessorPil(
    patch_size=vision.patch_size,
    merge_size=vision.spatial_merge_size,
    temporal_patch_size=vision.temporal_patch_size,
    min_pixels=picture.min_pixels,
    max_pixels=picture.max_pixels,
  )
  images = [
    Image.fromarray(part["image"])
    for conversation in conversations
    for message in conversation
    if not isinstance(message["content"], str)
    for part in message["content"]
    if part["type"] == "image"
  ]
  inputs = processor(images=images, return_tensors="pt") if images else {}
  grids = iter(inputs.get("image_grid_thw", []))
  texts = []
  for conversation in conversations:
    text, *pieces = tokenizer.apply_chat_template(
      conversation, tokenize=False, add_generation_prompt=True
    ).split("<|image_pad|>")
    for piece in pieces:
      count = int(next(grids).prod()) // vision.spatial_merge_size**2
      text += "<|image_pad|>" * count + piece
    texts.append(text)
  encoded = tokenizer(
    texts, padding=True, padding_side="left", return_tensors="pt"
  )
  ids = encoded["input_ids"]
  return {
    "input_ids": ids,
    "attention_mask": encoded["attention_mask"],
    "mm_token_type_ids": (ids == config.image_token_id).int(),
    **inputs,
  }


def positions(model: Torch, inputs: dict) -> np.ndarray:
  """Rotary positions [P, S, 3]."""
  found, _ = model.model.get_rope_index(
    inputs["input_ids"],
    mm_token_type_ids=inputs["mm_token_type_ids"],
    image_grid_thw=inputs.get("image_grid_thw"),
    attention_mask=inputs["attention_mask"],
  )
  return found.permute(1, 2, 0).numpy()


def outputs(model: Torch, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
  """Logits [P, S, V] and attention [L, P, H, S, S]."""
  with torch.no_grad():
    found = model(**inputs, output_attentions=True)
  maps = np.stack([layer.numpy() for layer in found.attentions])
  return found.logits.numpy(), maps
