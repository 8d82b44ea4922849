"""Adapters of PEFT: read whole, or refused by one line."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_models

from mmrl import hub
from mmrl.errors import UserError
from mmrl.hub import adapters, directory
from mmrl.models import parameters
from mmrl.models.config import Lora
from mmrl.models.families import FAMILIES

ALL = {
  "decoder": "text/.*",
  "some": "text/layers/(q|mlp/up)",
  "tower": "vision/.*",
  "both": ".*",
}


@functools.cache
def learned(family: str, targets: str, rs: bool = False):
  """A small model whose adapter is random: (model, parameters by path)."""
  config = small_models.small_config(family=family)
  model = small_models.make_model(config)
  lora = Lora(rank=3, alpha=7, targets=targets, rs=rs)
  config = dataclasses.replace(config, lora=lora)
  pairs = parameters.init_adapter(jax.random.key(0), config)
  for path, leaf in pairs.items():
    if path.endswith("/lora_b"):
      values = np.random.default_rng(len(path)).normal(size=leaf.shape)
      pairs[path] = jnp.asarray(values, jnp.float32)
  params = parameters.merge(parameters.flat(model.params), pairs)
  return dataclasses.replace(model, config=config, params=params)


def write(path: pathlib.Path, model: hub.Model, name="base") -> pathlib.Path:
  """The folder of its adapter."""
  params = parameters.flat(model.params)
  adapters.save(params, model.config, path, name)
  return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """The directory of the base model."""
  path = tmp_path_factory.mktemp("models") / "base"
  hub.save(small_models.make_model(small_models.small_config()), path)
  return path


@pytest.mark.parametrize("family", small_models.one_family(FAMILIES))
@pytest.mark.parametrize("rs", [False, True])
@pytest.mark.parametrize("targets", ALL)
def test_what_is_written_is_read(tmp_path, family, targets, rs):
  model = learned(family, ALL[targets], rs)
  write(tmp_path, model)
  plain = parameters.without_adapter(model.config)
  config = directory.with_adapter(plain, "models/Base", tmp_path)
  assert config.lora is not None and model.config.lora is not None
  for field in ("rank", "alpha", "rs", "scale"):
    assert getattr(config.lora, field) == getattr(model.config.lora, field)
  found = adapters.load(tmp_path, config)
  wanted = {
    path: leaf
    for path, leaf in parameters.flat(model.params).items()
    if parameters.is_of_adapter(path)
  }
  assert set(found) == set(wanted)
  for path, leaf in wanted.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_names_are_pefts(tmp_path):
  """Written out by hand; torch's layout, (rank, in) and (out, rank)."""
  write(tmp_path, learned("qwen2_5_vl", ".*"), "Qwen/Some-VL")
  tensors = safetensors.numpy.load_file(tmp_path / adapters.FILE)
  start = "base_model.model.model."
  wanted = {
    "language_model.layers.0.self_attn.q_proj": (32, 32),
    "language_model.layers.2.self_attn.k_proj": (32, 16),
    "language_model.layers.1.mlp.down_proj": (48, 32),
    "visual.blocks.2.attn.qkv": (24, 72),
    "visual.blocks.0.mlp.gate_proj": (24, 36),
    "visual.merger.mlp.0": (96, 96),
    "visual.merger.mlp.2": (96, 32),
  }
  for name, (rows, columns) in wanted.items():
    assert tensors[f"{start}{name}.lora_A.weight"].shape == (3, rows)
    assert tensors[f"{start}{name}.lora_B.weight"].shape == (columns, 3)
  # 7 layers of 3 decoder layers, 5 of 3 blocks, 2 of the merger.
  assert len(tensors) == 2 * (7 * 3 + 5 * 3 + 2)
  raw = json.loads((tmp_path / adapters.CONFIG).read_text())
  assert raw["base_model_name_or_path"] == "Qwen/Some-VL"
  assert (raw["r"], raw["lora_alpha"], raw["peft_type"]) == (3, 7, "LORA")


def test_target_modules_end_in_names_of_layers(tmp_path):
  """As vLLM looks for them; those of the decoder alone."""
  write(tmp_path, learned("qwen2_5_vl", ALL["some"]))
  raw = json.loads((tmp_path / adapters.CONFIG).read_text())
  assert raw["target_modules"] == (
    r"model\.language_model\.layers\.\d+\.\w+\.(up_proj|q_proj)"
  )


@pytest.mark.full
def test_a_loaded_model_has_its_adapter(tmp_path, base):
  """And a saved one has it merged."""
  model = learned("qwen2_5_vl", ".*")
  loaded = hub.load(base, adapter=write(tmp_path / "adapter", model))
  jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
  hub.save(loaded, tmp_path / "merged")
  leaves = parameters.flat(loaded.params)
  merged = hub.load(tmp_path / "merged")
  assert merged.config == hub.load(base).config
  moved = 0
  for path, leaf in parameters.flat(merged.params).items():
    module, _, name = path.rpartition("/")
    wanted = np.asarray(leaves[path])
    if f"{module}/lora_a" in leaves and name == "kernel":
      a, b = (np.asarray(leaves[f"{module}/lora_{one}"]) for one in "ab")
      wanted = wanted + 7 / 3 * np.einsum("...ir,...ro->...io", a, b)
      moved += 1
    np.testing.assert_allclose(leaf, wanted, atol=1e-5, rtol=0, err_msg=path)
  assert moved == 14


def test_names_of_older_transformers_are_used(tmp_path):
  """There the decoder was `model`, and the tower stood beside it."""
  model = learned("qwen2_5_vl", ".*")
  write(tmp_path, model)
  tensors = safetensors.numpy.load_file(tmp_path / adapters.FILE)
  older = {
    key.replace(".model.language_model.", ".model.").replace(
      ".model.visual.", ".visual."
    ): value
    for key, value in tensors.items()
  }
  assert not set(older) & set(tensors)
  safetensors.numpy.save_file(older, tmp_path / adapters.FILE)
  change(tmp_path, target_modules=r"(model\.layers|visual\.\w+)\..*")
  config = directory.with_adapter(small_models.small_config(), "base", tmp_path)
  found = adapters.load(tmp_path, config)
  leaves = parameters.flat(model.params)
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, leaves[path], err_msg=path)


def change(folder, **fields):
  """Other fields of adapter_config.json; None takes one out."""
  path = folder / adapters.CONFIG
  raw = json.loads(path.read_text()) | fields
  path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def rename(folder, **names):
  """Other names of tensors; None takes one out."""
  path = folder / adapters.FILE
  tensors = safetensors.numpy.load_file(path)
  for old, new in names.items():
    key = f"base_model.model.model.{old}.weight"
    value = tensors.pop(key)
    if new:
      tensors[new] = value
  safetensors.numpy.save_file(tensors, path)


def reshape(folder, name, function):
  path = folder / adapters.FILE
  tensors = safetensors.numpy.load_file(path)
  key = f"base_model.model.model.{name}.weight"
  tensors[key] = np.ascontiguousarray(function(tensors[key]))
  safetensors.numpy.save_file(tensors, path)


Q = "language_model.layers.1.self_attn.q_proj"
CONFIGS = [
  ({"peft_type": "IA3"}, "expected peft_type 'LORA', found 'IA3'"),
  ({"peft_type": None}, "expected peft_type 'LORA', found None"),
  ({"bias": "lora_only"}, "expected bias 'none', found 'lora_only'"),
  ({"use_dora": True}, "found use_dora True, which isn't computed"),
  ({"modules_to_save": ["lm_head"]}, "found modules_to_save \\['lm_head'\\]"),
  ({"fan_in_fan_out": True}, "found fan_in_fan_out True"),
  ({"rank_pattern": {"q_proj": 2}}, "one rank .* found rank_pattern"),
  ({"alpha_pattern": {"q_proj": 2}}, "one alpha, found alpha_pattern"),
  ({"layers_to_transform": [0, 1]}, "found layers_to_transform"),
  ({"target_parameters": ["x"]}, "found target_parameters"),
  ({"trainable_token_indices": [1]}, "found trainable_token_indices"),
  ({"lora_bias": True}, "found lora_bias True"),
  ({"some_later_option": 2}, "found some_later_option 2"),
  ({"init_lora_weights": "pissa"}, "found 'pissa'; convert it"),
  ({"r": 0}, "missing or wrong: expected rank to be a whole .* found 0"),
  ({"r": None}, "expected r and lora_alpha .*: 'r'"),
  ({"lora_alpha": 0}, "expected alpha to be a number above 0, found 0"),
  ({"lora_alpha": None}, ": 'lora_alpha'"),
  ({"target_modules": None}, "expected target_modules .* found None"),
  ({"target_modules": []}, "expected target_modules .* found \\[\\]"),
  ({"target_modules": [3]}, "expected target_modules .* found \\[3\\]"),
  ({"target_modules": "("}, "expected target_modules .* found '\\('"),
  ({"exclude_modules": {"a": 1}}, "expected exclude_modules to be names"),
  (
    {"target_modules": ["q_proj", "up_proj", "c_attn"]},
    "names of dense layers, found c_attn, which the model doesn't have",
  ),
  (
    {"target_modules": ["q_proj"]},
    "target_modules to match the layers that have tensors, but not .*up_proj",
  ),
  (
    {"target_modules": ["q_proj", "up_proj", "v_proj"]},
    "layers that target_modules matches, found none for .*v_proj",
  ),
  (
    {"target_modules": r".*language_model.*(q|v|up)_proj"},
    "for the layers that target_modules matches, found none for .*v_proj",
  ),
  (
    {"exclude_modules": r".*visual.*|.*layers\.0\..*"},
    "match the layers that have tensors, but not .*layers.0.*q_proj",
  ),
  (
    {"base_model_name_or_path": "Qwen/Other-VL"},
    "an adapter of models/base, found one of Qwen/Other-VL; give that model's",
  ),
]
TENSORS = [
  (
    lambda path: rename(path, **{f"{Q}.lora_A": None}),
    "lora_A and lora_B of each layer, found one of them for .*1.*q_proj",
  ),
  (
    lambda path: rename(path, **{f"{Q}.lora_A": None, f"{Q}.lora_B": None}),
    "target_modules matches, found none for .*layers.1.self_attn.q_proj",
  ),
  (
    lambda path: rename(path, **{f"{Q}.lora_A": "lm_head.lora_A.weight"}),
    r"of models/base \(its base is base\), each once, found 1 other .*lm_",
  ),
  (
    lambda path: rename(
      path, **{f"{Q}.lora_A": f"base_model.model.model.{Q}.lora_magnitude"}
    ),
    "found 1 other tensors: .*lora_magnitude",
  ),
  (
    # The same layer, by its older name.
    lambda path: rename(
      path,
      **{
        "language_model.layers.0.self_attn.q_proj.lora_A": (
          "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
        )
      },
    ),
    "each once, found 1 other tensors",
  ),
  (
    lambda path: reshape(path, f"{Q}.lora_A", lambda x: x[:2]),
    r"rank 3 for models/base, base, found .*lora_A.* \(2, 32\), not \(3, 32\)",
  ),
  (
    lambda path: reshape(path, f"{Q}.lora_B", lambda x: x[:8]),
    r"found .*lora_B.weight in shape \(8, 3\), not \(32, 3\)",
  ),
  (
    lambda path: reshape(path, f"{Q}.lora_B", lambda x: x.astype(np.int8)),
    "found I8 in .*lora_B.weight; use the unquantised",
  ),
  (
    lambda path: reshape(path, f"{Q}.lora_B", lambda x: x * np.nan),
    "found NaN or infinity in .*lora_B.weight",
  ),
  (
    lambda path: (path / adapters.FILE).unlink(),
    "expected safetensors weights at .*adapter_model.safetensors",
  ),
  (
    lambda path: (path / adapters.CONFIG).unlink(),
    "expected a LoRA adapter in PEFT's format at .*, found no file",
  ),
]
MISTAKES = [
  *((functools.partial(change, **fields), said) for fields, said in CONFIGS),
  *TENSORS,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("adapter") / "whole"
  write(path, learned("qwen2_5_vl", ALL["some"]))
  change(
    path, target_modules=["q_proj", "up_proj"], exclude_modules=r".*visual.*"
  )
  return path


@pytest.mark.parametrize(
  "mistake, message", MISTAKES, ids=[str(i) for i in range(len(MISTAKES))]
)
def test_what_is_not_used_is_refused(folder, tmp_path, mistake, message):
  path = tmp_path / "adapter"
  shutil.copytree(folder, path)

  def load():
    config = directory.with_adapter(
      small_models.small_config(), "models/base", path
    )
    return adapters.load(path, config)

  assert len(load()) == 6
  mistake(path)
  with pytest.raises(UserError, match=message) as error:
    load()
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "one, other, same",
  [
    ("Qwen/Qwen2.5-VL-7B-Instruct", "/data/Qwen2.5-VL-7B-Instruct/", True),
    ("Qwen/Qwen2.5-VL-7B-Instruct@abc", "Qwen/Qwen2.5-VL-7B-Instruct", True),
    (
      "/home/me/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/cc5940",
      "Qwen/Qwen2.5-VL-7B-Instruct",
      True,
    ),
    ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", False),
    ("Qwen/Qwen2.5-VL-7B", "Qwen/Qwen2.5-VL-7B-Instruct", False),
  ],
)
def test_a_model_in_another_folder_is_the_same(
  folder, tmp_path, one, other, same
):
  path = tmp_path / "adapter"
  shutil.copytree(folder, path)
  change(path, base_model_name_or_path=one)
  config = small_models.small_config()
  if same:
    assert directory.with_adapter(config, other, path).lora is not None
    return
  with pytest.raises(UserError, match=f"adapter of {other}, found .*{one}"):
    directory.with_adapter(config, other, path)


def test_another_size_of_model_is_named(folder):
  """Where nobody says of which model it is."""
  config = small_models.small_config()
  wider = dataclasses.replace(config.text, intermediate_size=64)
  with pytest.raises(
    UserError, match="adapter of rank 3 for models/base, base, found .*up_proj"
  ):
    directory.with_adapter(
      dataclasses.replace(config, text=wider), "models/base", folder
    )


def test_an_adapter_is_no_model(folder):
  with pytest.raises(
    UserError, match=r"found adapter_config.json.*config.models.policy.adapter"
  ):
    hub.load(folder)


def test_folders_that_hold_something_else(tmp_path, base):
  model = learned("qwen2_5_vl", ".*")
  with pytest.raises(UserError, match="adapter to a folder of its own, found"):
    write(base, model)
  write(tmp_path, model)
  with pytest.raises(UserError, match="a model to a folder of its own, found"):
    hub.save(model, tmp_path)
  plain = small_models.make_model(small_models.small_config())
  with pytest.raises(UserError, match="expected a model with an adapter"):
    write(tmp_path / "other", plain)
