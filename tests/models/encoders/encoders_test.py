"""Frozen encoders: pictures found in packed patches, files of another kind."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.models import encoders
from mmrl.models.encoders import packed
from mmrl.models.passes import segments


def make(rows: int):
  """Prompts whose pictures have different grids; the last has none."""
  config = small_models.small_config()
  processor = small_models.make_processor(config)
  chats = [*small_models.conversations(), small_models.user("no")]
  return config, processor(chats, rows=rows)


@functools.partial(jax.jit, static_argnums=0)
def pictures_of(config, prompt, numbers):
  frames = packed.find(prompt, numbers, config.vision)
  return frames, packed.pictures(
    prompt.patches, frames, config.vision, config.family, 16, 16
  )


@pytest.mark.parametrize("rows", [1, 4])
def test_pictures_come_back_from_their_patches(rows):
  """Whatever row they are packed in; the processor has scaled them."""
  config, prompt = make(rows)
  prompt = small_models.on_device(prompt)
  numbers = jnp.array([[0, -1], [1, 0], [0, 0], [0, 1]])
  frames, found = pictures_of(config, prompt, numbers)
  np.testing.assert_array_equal(
    frames.there.reshape(4, 2), [[1, 0], [1, 1], [0, 0], [0, 0]]
  )
  extent = np.asarray(frames.extent).reshape(4, 2, 2)[1]
  np.testing.assert_array_equal(extent, [[6, 8], [4, 4]])
  # The 16 x 16 picture of the second conversation isn't scaled.
  own = small_models.picture(16, 16, 2) / 255
  np.testing.assert_allclose(found[3], own, atol=2e-3)


def test_visual_tokens_are_resized_like_segments():
  config, prompt = make(4)
  prompt = small_models.on_device(prompt)
  params = small_models.make_params(config)

  @jax.jit
  def resized(params, prompt):
    visual = models.vision(params, config, prompt.patches)
    frames = packed.find(prompt, jnp.zeros((4, 1), jnp.int32), config.vision)
    # 2 x 2 tokens of a picture of 16 x 16 pixels.
    expected = segments.upsample(visual[1, :4].astype(jnp.float32), 4, 4)
    return packed.tokens(visual, frames, 2, 4), expected

  found, expected = resized(params, prompt)
  np.testing.assert_allclose(found[1], expected, atol=1e-5)


def test_directories_of_another_kind_are_refused(tmp_path):
  with pytest.raises(UserError, match="an encoder's directory"):
    encoders.vit(path=str(tmp_path))
  file = tmp_path / "config.json"
  file.write_text(json.dumps({"model_type": "clip"}))
  with pytest.raises(UserError, match="expected an encoder of model_type"):
    encoders.vit(path=str(tmp_path))
  file.write_text(json.dumps({"model_type": "dinov2", "hidden_size": 8}))
  with pytest.raises(UserError, match="missing or mistyped"):
    encoders.vit(path=str(tmp_path))
  sizes = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
  }
  file.write_text(json.dumps({"model_type": "dinov2", **sizes}))
  made = encoders.vit(path=str(tmp_path))
  assert made.grid == (2, 2)
  with pytest.raises(UserError, match="weights of an encoder in one file"):
    made.init(None, small_models.small_config())
