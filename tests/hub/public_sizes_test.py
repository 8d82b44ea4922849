"""The published models: mmrl/hub/public holds their config.json files.

Nothing is allocated; tests/parity compares every tensor's name and shape.
"""

import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest

from mmrl import hub, models
from mmrl.hub import config_json
from mmrl.models import parameters
from mmrl.types import Patches, Prompt

CONFIGS = pathlib.Path(hub.__file__).parent / "public"
# As Transformers counts them; a tied head once.
PARAMETERS = {
  "qwen2_vl_2b": 2_208_985_600,
  "qwen2_vl_7b": 8_291_375_616,
  "qwen2_vl_72b": 73_405_560_320,
  "qwen2_5_vl_3b": 3_754_622_976,
  "qwen2_5_vl_7b": 8_292_166_656,
  "qwen2_5_vl_32b": 33_452_718_336,
  "qwen2_5_vl_72b": 73_410_777_344,
  "qwen3_vl_2b": 2_127_532_032,
  "qwen3_vl_4b": 4_437_815_808,
  "qwen3_vl_8b": 8_767_123_696,
  "qwen3_vl_32b": 33_357_390_064,
}
PROMPTS, LENGTH, PATCHES, ANSWERS, NEW = 2, 96, 128, 3, 5


@pytest.fixture(params=PARAMETERS)
def name(request):
  return request.param


@pytest.fixture
def config(name, tmp_path):
  shutil.copy(CONFIGS / name / "config.json", tmp_path / "config.json")
  return config_json.read(tmp_path)


def prompt_shapes(config):
  """A batch of prompts whose pictures share one row."""
  tower = config.vision
  ints = shapes(jnp.int32)
  windows = (ints(1, 4, tower.window_patches), ints(1, PATCHES))
  return Prompt(
    tokens=ints(PROMPTS, LENGTH),
    mask=shapes(bool)(PROMPTS, LENGTH),
    positions=ints(PROMPTS, LENGTH, 3),
    visual_index=ints(PROMPTS, LENGTH),
    next_position=ints(PROMPTS),
    region=shapes(jnp.float32)(PROMPTS, LENGTH),
    patches=Patches(
      shapes(jnp.float32)(1, PATCHES, tower.patch_values),
      *[ints(1, PATCHES, 2)] * 3,
      *(windows if tower.window_size else (None, None)),
    ),
  )


def shapes(dtype):
  return lambda *shape: jax.ShapeDtypeStruct(shape, dtype)


def test_every_file_is_tested():
  assert {path.parent.name for path in CONFIGS.glob("*/config.json")} == set(
    PARAMETERS
  )


def test_parameters(name, config):
  leaves = jax.tree.leaves(parameters.shapes(config))
  assert sum(math.prod(leaf.shape) for leaf in leaves) == PARAMETERS[name]


@pytest.mark.full
def test_shapes(config):
  """Pictures, prompts and answers, traced."""
  text, tower = config.text, config.vision

  def run(params, prompt, answers):
    visual = models.vision(params, config, prompt.patches)
    prefix = models.prefill(
      params, config, prompt, visual, attention_layers=(-1,)
    )
    inputs = models.embed(params, config, answers)
    output = models.extend(
      params, config, prefix, inputs, attention_layers=(-1,)
    )
    rows = models.attention_rows(output.attention)
    logits = models.logits(params, config, output.hidden)
    return visual, prefix, output, rows, logits

  visual, prefix, output, attention, logits = jax.eval_shape(
    run,
    parameters.shapes(config),
    prompt_shapes(config),
    jax.ShapeDtypeStruct((PROMPTS, ANSWERS, NEW), jnp.int32),
  )
  fed = 1 + len(tower.deepstack_visual_indexes)
  tokens = PATCHES // tower.spatial_merge_size**2
  assert visual.shape == (1, tokens, fed * text.hidden_size)
  assert prefix.keys.shape == (
    text.num_hidden_layers,
    PROMPTS,
    LENGTH,
    text.num_key_value_heads,
    128,
  )
  rows = (PROMPTS, ANSWERS, NEW)
  assert output.hidden.shape == (*rows, text.hidden_size)
  assert attention.shape == (*rows, LENGTH + NEW)
  assert logits.shape == (*rows, text.vocab_size)


def test_written_config_is_read_back(config, tmp_path):
  config_json.write(config, tmp_path, "bfloat16")
  assert config_json.read(tmp_path) == config
