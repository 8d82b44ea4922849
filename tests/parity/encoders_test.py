"""Encoders against Transformers, on random weights and odd picture sizes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import transformers

from mmrl.models.encoders import files, vision_transformer

pytestmark = pytest.mark.parity
SIZES = {
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "image_size": 28,
  "patch_size": 7,
}


def make(kind: str, folder):
  torch.manual_seed(0)
  if kind == "siglip":
    config = transformers.SiglipVisionConfig(intermediate_size=48, **SIZES)
    model = transformers.SiglipVisionModel(config)
  elif kind.startswith("dinov3"):
    config = transformers.DINOv3ViTConfig(
      intermediate_size=48,
      num_register_tokens=3,
      use_gated_mlp=kind == "dinov3_gated",
      hidden_act="silu" if kind == "dinov3_gated" else "gelu",
      **SIZES,
    )
    model = transformers.DINOv3ViTModel(config)
  elif kind == "registers":
    config = transformers.Dinov2WithRegistersConfig(
      mlp_ratio=2, num_register_tokens=3, **SIZES
    )
    model = transformers.Dinov2WithRegistersModel(config)
  else:
    config = transformers.Dinov2Config(
      mlp_ratio=2, use_swiglu_ffn=kind == "swiglu", **SIZES
    )
    model = transformers.Dinov2Model(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.2)
  model.save_pretrained(folder)
  return model.eval()


KINDS = {
  **{"siglip": 0, "dinov2": 1, "swiglu": 1, "registers": 4},
  **{"dinov3": 4, "dinov3_gated": 4},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(28, 28), (35, 49), (23, 40)])
def test_features_are_those_of_transformers(kind, size, tmp_path):
  model = make(kind, tmp_path)
  settings = files.read(tmp_path)
  params = jax.tree.map(jnp.asarray, files.load(tmp_path))
  pixels = np.random.default_rng(1).normal(size=(2, 3, *size))
  pixels = pixels.astype(np.float32)
  options = {"interpolate_pos_encoding": True} if kind == "siglip" else {}
  with torch.no_grad():
    expected = model(torch.tensor(pixels), **options).last_hidden_state
  expected = expected[:, KINDS[kind] :].numpy()
  found = vision_transformer.features(
    params, settings, jnp.asarray(pixels.transpose(0, 2, 3, 1))
  )
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
