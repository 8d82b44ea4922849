"""Model directories: written, read back, and refused by name."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.models import checkpoint, config_json, parameters


@pytest.fixture(scope="module", params=["tied", "untied"])
def directory(request, tmp_path_factory):
  """A saved model; tests that change it copy it first."""
  config = small_models.small_config(tied=request.param == "tied")
  path = tmp_path_factory.mktemp("model") / request.param
  models.save(small_models.make_model(config), path)
  return path


@pytest.fixture
def changed(directory, tmp_path):
  return shutil.copytree(directory, tmp_path / "copy")


def read(path):
  return safetensors.numpy.load_file(path / "model.safetensors")


def write(path, tensors):
  safetensors.numpy.save_file(tensors, path / "model.safetensors")


def edit(path, **changes):
  raw = json.loads((path / "config.json").read_text()) | changes
  (path / "config.json").write_text(json.dumps(raw))


def same(one, other):
  """Bit for bit, types too."""
  jax.tree.map(np.testing.assert_array_equal, one, other)
  types = [jax.tree.map(lambda x: x.dtype, tree) for tree in (one, other)]
  return types[0] == types[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path, tied, dtype):
  model = small_models.make_model(small_models.small_config(tied=tied))
  params = jax.tree.map(lambda x: x.astype(dtype), model.params)
  model = dataclasses.replace(model, params=params)
  models.save(model, tmp_path / "a")
  loaded = models.load(tmp_path / "a", dtype=dtype)
  assert same(loaded.params, params)
  assert loaded.config == model.config
  assert loaded.processor.picture == model.processor.picture
  chats = small_models.conversations()
  assert same(loaded.processor(chats), model.processor(chats))
  raw = json.loads((tmp_path / "a" / "config.json").read_text())
  assert raw["dtype"] == dtype
  # Saving what was loaded writes the same bytes.
  models.save(loaded, tmp_path / "b")
  for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
    one, other = (tmp_path / d / name for d in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_tensors_are_named_and_laid_out_as_published(directory):
  tensors = read(directory)
  wanted = small_models.weights(config_json.read(directory))
  assert set(tensors) == set(wanted)
  for name, tensor in wanted.items():
    np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_newer_tensor_names(directory, changed):
  """Transformers 4.52 and later nest both halves under `model`."""

  def rename(name):
    if name.startswith("visual."):
      return "model." + name
    return name.replace("model.", "model.language_model.", 1)

  write(changed, {rename(k): v for k, v in read(changed).items()})
  assert same(models.load(changed).params, models.load(directory).params)


def test_shards(directory, changed):
  tensors = read(changed)
  (changed / "model.safetensors").unlink()
  weight_map = {}
  for shard in range(3):
    file = f"model-0000{shard + 1}-of-00003.safetensors"
    names = sorted(tensors)[shard::3]
    part = {name: tensors[name] for name in names}
    safetensors.numpy.save_file(part, changed / file)
    weight_map |= dict.fromkeys(names, file)
  index = changed / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  assert same(models.load(changed).params, models.load(directory).params)
  (changed / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(UserError, match="model-00002-of-00003"):
    models.load(changed)


def test_saving_over_shards(changed):
  """An old index must not outlive the file that replaces its shards."""
  model = models.load(changed)
  (changed / "model.safetensors").rename(changed / "old.safetensors")
  weight_map = dict.fromkeys(read_names(changed), "old.safetensors")
  index = changed / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  params = jax.tree.map(lambda x: x + 1, model.params)
  models.save(dataclasses.replace(model, params=params), changed)
  assert same(models.load(changed).params, params)


def read_names(path):
  return safetensors.numpy.load_file(path / "old.safetensors")


def test_saving_over_a_model(changed):
  model = models.load(changed)
  params = jax.tree.map(lambda x: x + 1, model.params)
  before = {file.name for file in changed.iterdir()}
  models.save(dataclasses.replace(model, params=params), changed)
  assert same(models.load(changed).params, params)
  assert {file.name for file in changed.iterdir()} == before


def test_a_tied_head_may_be_stored(directory, changed):
  tensors = read(changed)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  write(changed, tensors)
  edit(changed, tie_word_embeddings=True)
  loaded = models.load(changed).params
  assert "head" not in loaded["text"]
  wanted = models.load(directory).params["text"]["embed"]
  assert same(loaded["text"]["embed"], wanted)


def test_missing_tensors(changed):
  tensors = read(changed)
  del tensors["model.layers.1.self_attn.q_proj.bias"]
  del tensors["visual.merger.ln_q.weight"]
  write(changed, tensors)
  with pytest.raises(
    UserError,
    match=r"2 missing tensors: model\.layers\.1\.self_attn\.q_proj\.bias,"
    r" visual\.merger\.ln_q\.weight",
  ):
    models.load(changed)


def test_extra_tensors(changed):
  write(changed, read(changed) | {"model.layers.9.x": np.zeros(2)})
  with pytest.raises(UserError, match=r"1 tensors that .*model\.layers\.9\.x"):
    models.load(changed)


def test_misshaped_tensors(changed):
  tensors = read(changed)
  tensors["model.norm.weight"] = np.ones(31, np.float32)
  tensors["visual.blocks.0.attn.proj.bias"] = np.ones(5, np.float32)
  write(changed, tensors)
  with pytest.raises(UserError, match="2 misshaped tensors") as error:
    models.load(changed)
  assert "model.norm.weight is (31,) in the file, (32,) in" in str(error.value)
  assert "proj.bias is (5,) in the file, (24,) in" in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 9])
def test_unreadable_weights(changed, content):
  (changed / "model.safetensors").unlink()
  if content is not None:
    (changed / "model.safetensors").write_bytes(content)
  with pytest.raises(UserError, match="expected safetensors weights at"):
    models.load(changed)


def test_missing_directory(tmp_path):
  with pytest.raises(UserError, match="found none at .*nowhere"):
    models.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
  "name, message",
  [
    ("config.json", "config.json, found no file"),
    ("tokenizer.json", "found no tokenizer.json"),
    ("chat_template.jinja", "expected a chat template"),
    ("preprocessor_config.json", "preprocessor_config.json, found no file"),
  ],
)
def test_missing_files(changed, name, message):
  (changed / name).unlink()
  with pytest.raises(UserError, match=message):
    models.load(changed)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_broken_json(changed, name):
  (changed / name).write_text("{")
  with pytest.raises(UserError, match=name):
    models.load(changed)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model_type": "llama"}, "'qwen3_vl', found 'llama'"),
    ({"model_type": None}, "'qwen3_vl', found None"),
    ({"quantization_config": {"bits": 4}}, "found a quantised checkpoint"),
    ({"vision_config": {}}, "the fields of a qwen2_5_vl config"),
    ({"vision_config": None}, "the fields of a qwen2_5_vl config"),
  ],
)
def test_refused_configs(changed, changes, message):
  edit(changed, **changes)
  with pytest.raises(UserError, match=message):
    models.load(changed)


def test_tokenizer_larger_than_the_model(changed):
  raw = json.loads((changed / "config.json").read_text())
  edit(changed, text_config=raw["text_config"] | {"vocab_size": 200})
  with pytest.raises(
    UserError, match="image_token_id in a vocabulary of 200, found 261"
  ):
    models.load(changed)


def test_config_round_trip(tmp_path):
  config = small_models.small_config(tied=False)
  config_json.write(config, tmp_path, "bfloat16")
  assert config_json.read(tmp_path) == config


def test_flat_config_of_the_hub(tmp_path):
  """The published 7B file: decoder fields on top, `rope_scaling`."""
  (tmp_path / "config.json").write_text(
    json.dumps(
      {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
          "depth": 32,
          "hidden_act": "silu",
          "hidden_size": 1280,
          "intermediate_size": 3420,
          "num_heads": 16,
          "in_chans": 3,
          "out_hidden_size": 3584,
          "patch_size": 14,
          "spatial_merge_size": 2,
          "spatial_patch_size": 14,
          "window_size": 112,
          "fullatt_block_indexes": [7, 15, 23, 31],
          "tokens_per_second": 2,
          "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
      }
    )
  )
  config = config_json.read(tmp_path)
  assert config.text.hidden_size == 3584
  assert config.text.mrope_section == (16, 24, 24)
  assert config.text.rope_theta == 1e6
  assert config.vision.fullatt_block_indexes == (7, 15, 23, 31)
  assert config.vision.tokens_per_second == 2
  assert not config.tie_word_embeddings
  assert config.eos_token_id == 151645
  # Written in the nested layout, it is still the same model.
  config_json.write(config, tmp_path, "bfloat16")
  assert config_json.read(tmp_path) == config


def test_the_shipped_model_loads():
  model = models.load("tiny", dtype="bfloat16")
  leaves = jax.tree.leaves(model.params)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in leaves)
  count = sum(x.size for x in jax.tree.leaves(model.params))
  assert count < 1e6
  wanted = parameters.shapes(model.config)
  assert jax.tree.map(lambda x: x.shape, model.params) == jax.tree.map(
    lambda x: x.shape, wanted
  )


@pytest.mark.parametrize(
  "change",
  [
    {"rope_parameters": {"rope_type": "yarn", "mrope_section": [4, 4, 4]}},
    {"use_sliding_window": True},
  ],
)
def test_what_is_not_computed_is_refused(tmp_path, change):
  raw = json.loads((checkpoint.tiny_path() / "config.json").read_text())
  raw["text_config"] |= change
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(UserError, match="aren't computed"):
    config_json.read(tmp_path)
