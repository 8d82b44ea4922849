"""config.json: read, written, and what is refused."""

import dataclasses
import json
import os

import pytest
import small_models
import transformers

from mmrl.errors import UserError
from mmrl.hub import config_json
from mmrl.models.families import FAMILIES

IDS = list(small_models.IDS)


@pytest.fixture(params=FAMILIES)
def family(request):
  return request.param


def nested(family="qwen2_5_vl", **changes):
  """What is written for a small model; None takes a field out."""
  raw = config_json.to_json(small_models.small_config(family=family), "float32")
  raw = json.loads(json.dumps(raw)) | changes
  return {name: value for name, value in raw.items() if value is not None}


def inside(raw, part, **changes):
  """The same, changed inside of text_config or vision_config."""
  values = raw[part] | changes
  values = {name: value for name, value in values.items() if value is not None}
  return raw | {part: values}


def flat(raw):
  """The form of the hub's older files: decoder fields on top."""
  text = dict(raw["text_config"])
  rope = text.pop("rope_parameters")
  text |= {
    "rope_theta": rope["rope_theta"],
    "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
  }
  rest = {k: v for k, v in raw.items() if k != "text_config"}
  return text | rest


def read(path, raw):
  (path / "config.json").write_text(json.dumps(raw))
  return config_json.read(path)


def refused(path, raw, *messages):
  """In one line that names the file."""
  with pytest.raises(UserError) as error:
    read(path, raw)
  text = str(error.value)
  assert text.startswith(f"{path / 'config.json'}: ")
  assert "\n" not in text
  for message in messages:
    assert message in text


# Read and written.


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path, family, tied):
  config = small_models.small_config(family=family, tied=tied)
  config_json.write(config, tmp_path, "bfloat16")
  assert config_json.read(tmp_path) == config


def test_round_trip_of_other_values(tmp_path, family):
  """Every number that a family stores, none of them its default."""
  config = small_models.small_config(family=family)
  text = dataclasses.replace(
    config.text,
    num_hidden_layers=5,
    num_key_value_heads=1,
    rope_theta=12345.5,
    rms_norm_eps=1e-5,
    max_position_embeddings=77,
  )
  tower = dataclasses.replace(
    config.vision,
    depth=6,
    num_heads=3,
    in_channels=1,
    patch_size=6,
    temporal_patch_size=3,
    spatial_merge_size=4,
    hidden_act="silu" if family == "qwen2_vl" else "quick_gelu",
  )
  if family == "qwen2_5_vl":
    tower = dataclasses.replace(
      tower,
      window_size=48,
      fullatt_block_indexes=(0, 5),
      tokens_per_second=25,
    )
  if family == "qwen3_vl":
    tower = dataclasses.replace(
      tower, position_grid=7, deepstack_visual_indexes=(1, 2, 4)
    )
  ids = {name: 10 + i for i, name in enumerate(IDS)}
  config = dataclasses.replace(config, text=text, vision=tower, **ids)
  config_json.write(config, tmp_path, "float32")
  assert config_json.read(tmp_path) == config


def test_how_it_computes_is_not_stored(tmp_path):
  config = small_models.small_config(dtype="bfloat16", remat=False)
  config_json.write(config, tmp_path, "float16")
  assert config_json.read(tmp_path) == small_models.small_config()


@pytest.mark.parametrize("tied", [True, False])
def test_what_others_look_for(tmp_path, family, tied):
  config = small_models.small_config(family=family, tied=tied)
  config_json.write(config, tmp_path, "bfloat16")
  raw = json.loads((tmp_path / "config.json").read_text())
  classes = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
  }
  assert raw["architectures"] == [classes[family]]
  assert raw["model_type"] == family
  for part in (raw, raw["text_config"]):
    assert part["dtype"] == "bfloat16"
    assert part["tie_word_embeddings"] is tied
  rope = raw["text_config"]["rope_parameters"]
  assert rope["mrope_section"] == list(config.text.mrope_section)
  assert rope["rope_theta"] == 1e4
  assert rope.get("mrope_interleaved", False) == (family == "qwen3_vl")


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_and_writes_the_same(tmp_path, family, tied):
  config = small_models.small_config(family=family, tied=tied)
  config_json.write(config, tmp_path, "float32")
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert theirs.model_type == family
  theirs.save_pretrained(tmp_path / "theirs")
  assert config_json.read(tmp_path / "theirs") == config


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_flat_form(tmp_path, family):
  """Of the families that were published so."""
  raw = flat(nested(family))
  assert "text_config" not in raw and "rope_parameters" not in raw
  assert read(tmp_path, raw) == small_models.small_config(family=family)


def test_flat_config_of_the_hub(tmp_path):
  """The published 7B file: decoder fields on top, `rope_scaling`."""
  config = read(
    tmp_path,
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
    },
  )
  assert config.text.hidden_size == 3584
  assert config.text.head_dim == 128
  assert config.text.mrope_section == (16, 24, 24)
  assert config.text.rope_theta == 1e6
  assert config.vision.fullatt_block_indexes == (7, 15, 23, 31)
  assert config.vision.tokens_per_second == 2
  assert not config.tie_word_embeddings
  assert config.eos_token_id == 151645
  # Written in the nested layout, it is still the same model.
  config_json.write(config, tmp_path, "bfloat16")
  assert config_json.read(tmp_path) == config


# What may be left out.


def test_ids_left_out(tmp_path, family):
  """Those of Qwen's vocabulary; padding is the end of an answer."""
  raw = nested(family, **dict.fromkeys(IDS))
  ids = dict.fromkeys(["eos_token_id", "pad_token_id"])
  raw = inside(raw, "text_config", vocab_size=151936, **ids)
  config = read(tmp_path, raw)
  assert {name: getattr(config, name) for name in IDS} == {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "eos_token_id": 151645,
    "pad_token_id": 151645,
  }


def test_ids_of_the_decoder(tmp_path, family):
  """Taken where the top says nothing, and only there."""
  raw = nested(family, eos_token_id=None, pad_token_id=None)
  raw = inside(raw, "text_config", eos_token_id=7, pad_token_id=8)
  config = read(tmp_path, raw)
  assert (config.eos_token_id, config.pad_token_id) == (7, 8)
  config = read(tmp_path, raw | {"eos_token_id": 9, "pad_token_id": 10})
  assert (config.eos_token_id, config.pad_token_id) == (9, 10)


def test_several_ends(tmp_path):
  """The first ends an answer, and pads where nothing else does."""
  raw = inside(nested(pad_token_id=None), "text_config", pad_token_id=None)
  config = read(tmp_path, raw | {"eos_token_id": [258, 256]})
  assert (config.eos_token_id, config.pad_token_id) == (258, 258)


def test_tying(tmp_path):
  """The top counts, then the decoder; otherwise the head is its own."""
  raw = nested(tie_word_embeddings=None)
  tied = inside(raw, "text_config", tie_word_embeddings=True)
  assert read(tmp_path, tied).tie_word_embeddings
  top = tied | {"tie_word_embeddings": False}
  assert not read(tmp_path, top).tie_word_embeddings
  neither = inside(raw, "text_config", tie_word_embeddings=None)
  assert not read(tmp_path, neither).tie_word_embeddings


def test_heads_left_out(tmp_path):
  raw = inside(nested(), "text_config", num_key_value_heads=None)
  assert read(tmp_path, raw).text.num_key_value_heads == 4


def test_nulls_are_left_out(tmp_path):
  """As Transformers writes what it has no value for."""
  raw = nested()
  raw["text_config"] |= {"sliding_window": None, "rms_norm_eps": None}
  raw["vision_config"] |= {"in_channels": None}
  assert read(tmp_path, raw) == small_models.small_config()


# Refused.


@pytest.mark.parametrize("found", ["llama", "qwen2_5_vl_text", None])
def test_other_families(tmp_path, found):
  """The families that there are get named."""
  raw = nested(model_type=found)
  message = "expected model_type 'qwen2_vl' or 'qwen2_5_vl' or 'qwen3_vl'"
  refused(tmp_path, raw, message, f"found {found!r};")


def test_quantised(tmp_path, family):
  raw = nested(family, quantization_config={"bits": 4})
  refused(tmp_path, raw, "found a quantised checkpoint; use the unquantised")


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_scaled_positions(tmp_path, family, kind, key):
  rope = nested(family)["text_config"]["rope_parameters"]
  del rope["rope_type"]
  raw = inside(
    nested(family), "text_config", rope_parameters=rope | {key: kind}
  )
  refused(tmp_path, raw, "expected plain M-RoPE", repr(kind), "aren't computed")


def test_scaled_positions_in_the_flat_form(tmp_path):
  raw = flat(nested("qwen2_vl"))
  raw["rope_scaling"] |= {"type": "yarn", "factor": 4}
  refused(tmp_path, raw, "expected plain M-RoPE", "'yarn'", "aren't computed")


@pytest.mark.parametrize(
  "rope", [None, {"rope_type": "default", "rope_theta": 1e4}]
)
def test_plain_positions(tmp_path, rope):
  raw = inside(nested(), "text_config", rope_parameters=rope)
  refused(tmp_path, raw, "expected plain M-RoPE with its mrope_section")


def test_sliding_windows(tmp_path, family):
  raw = inside(nested(family), "text_config", use_sliding_window=True)
  refused(tmp_path, raw, "found use_sliding_window", "aren't computed")


def test_activation_of_the_decoder(tmp_path, family):
  raw = inside(nested(family), "text_config", hidden_act="gelu")
  refused(tmp_path, raw, "hidden_act 'silu' in the decoder, found 'gelu'")


def test_activation_of_the_tower(tmp_path, family):
  raw = inside(nested(family), "vision_config", hidden_act="relu")
  refused(tmp_path, raw, "hidden_act of the vision tower", "found 'relu'")


@pytest.mark.parametrize(
  "name",
  [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
  ],
)
def test_missing_fields_of_the_decoder(tmp_path, family, name):
  raw = inside(nested(family), "text_config", **{name: None})
  refused(tmp_path, raw, f"the fields of a {family} config", f"'{name}'")


@pytest.mark.parametrize(
  "name",
  ["depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size"],
)
def test_missing_fields_of_the_tower(tmp_path, name):
  """Older families have defaults for them, which their files make use of."""
  raw = inside(nested("qwen3_vl"), "vision_config", **{name: None})
  refused(tmp_path, raw, "the fields of a qwen3_vl config", f"'{name}'")


@pytest.mark.parametrize("tower", [{}, None])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_no_tower(tmp_path, family, tower):
  raw = nested(family, vision_config=tower)
  refused(tmp_path, raw, f"the fields of a {family} config")


@pytest.mark.parametrize(
  "family, part, changes",
  [
    ("qwen2_vl", "text_config", {"hidden_size": "32"}),
    ("qwen2_5_vl", "text_config", {"num_attention_heads": [4]}),
    ("qwen3_vl", "text_config", {"rope_theta": "large"}),
    ("qwen2_vl", "vision_config", {"mlp_ratio": "four"}),
    ("qwen3_vl", "vision_config", {"num_position_embeddings": "25"}),
  ],
)
def test_mistyped_fields(tmp_path, family, part, changes):
  raw = nested(family)
  if "rope_theta" in changes:
    raw[part]["rope_parameters"] |= changes
  else:
    raw = inside(raw, part, **changes)
  refused(tmp_path, raw, f"the fields of a {family} config")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"image_token_id": "7"}, "image_token_id is '7'"),
    ({"image_token_id": 1.5}, "image_token_id is 1.5"),
    ({"eos_token_id": []}, "mistyped"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ({"text_config": [1]}, "text_config is [1], not an object"),
    ({"vision_config": [1]}, "vision_config is [1], not an object"),
  ],
)
def test_mistyped_fields_on_top(tmp_path, changes, message):
  refused(tmp_path, nested(**changes), message)


@pytest.mark.parametrize(
  "part, name, value",
  [
    ("text_config", "vocab_size", "272"),
    ("text_config", "num_hidden_layers", True),
    ("text_config", "intermediate_size", 3.5),
    ("text_config", "rms_norm_eps", "1e-6"),
    ("vision_config", "patch_size", "12"),
    ("vision_config", "fullatt_block_indexes", [1, "2"]),
    ("vision_config", "fullatt_block_indexes", 1),
  ],
)
def test_mistyped_fields_are_named(tmp_path, part, name, value):
  raw = inside(nested(), part, **{name: value})
  bad = "2" if isinstance(value, list) else value
  refused(tmp_path, raw, f"{name} is {bad!r}")


@pytest.mark.parametrize("section", [[4, 4], "444", 12, [4.0, 2, 2]])
def test_mistyped_rotary_sections(tmp_path, section):
  raw = nested()
  raw["text_config"]["rope_parameters"]["mrope_section"] = section
  refused(tmp_path, raw, "mrope_section is ")


def test_no_heads(tmp_path):
  raw = inside(nested("qwen2_vl"), "text_config", num_attention_heads=0)
  refused(tmp_path, raw, "the fields of a qwen2_vl config")


def test_an_uneven_tower(tmp_path):
  """Qwen2-VL writes its inner width as a multiple of the outer one."""
  raw = inside(nested("qwen2_vl"), "vision_config", mlp_ratio=1.5)
  config = read(tmp_path, raw)
  assert config.vision.intermediate_size == 36
  config_json.write(config, tmp_path, "float32")
  assert config_json.read(tmp_path) == config


def test_no_quantisation(tmp_path):
  assert read(tmp_path, nested(quantization_config=None))


def test_uneven_rotary_sections(tmp_path, family):
  raw = nested(family)
  half = sum(raw["text_config"]["rope_parameters"]["mrope_section"])
  raw["text_config"]["rope_parameters"]["mrope_section"] = [1, 1, half]
  message = f"adds up to half of head_dim = {2 * half}, found (1, 1, {half})"
  refused(tmp_path, raw, message)


def test_tower_of_another_width(tmp_path, family):
  name = "hidden_size" if family == "qwen2_vl" else "out_hidden_size"
  raw = inside(nested(family), "vision_config", **{name: 48})
  refused(tmp_path, raw, "as wide as the decoder, 32, found 48")


@pytest.mark.parametrize("value", [-1, 272])
@pytest.mark.parametrize("name", IDS)
def test_ids_beyond_the_vocabulary(tmp_path, name, value):
  raw = nested(**{name: value})
  refused(tmp_path, raw, f"{name} in a vocabulary of 272, found {value}")


def test_the_last_id_of_the_vocabulary(tmp_path):
  raw = inside(nested(), "text_config", vocab_size=263)
  assert read(tmp_path, raw).video_token_id == 262
  raw["text_config"]["vocab_size"] = 262
  refused(tmp_path, raw, "video_token_id in a vocabulary of 262, found 262")


# Files.


def test_missing_file(tmp_path):
  with pytest.raises(UserError, match="config.json, found no file") as error:
    config_json.read(tmp_path)
  assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b'{"a": "\xff"}'])
def test_not_json(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(UserError, match="config.json is not readable JSON"):
    config_json.read(tmp_path)


def test_a_folder(tmp_path):
  os.mkdir(tmp_path / "config.json")
  with pytest.raises(UserError, match="config.json is not readable JSON"):
    config_json.read(tmp_path)


@pytest.mark.parametrize("raw", [[1], "qwen2_5_vl", 3, None])
def test_not_an_object(tmp_path, raw):
  refused(tmp_path, raw, "expected a JSON object, found ")


def test_long_json_is_cut_short(tmp_path):
  with pytest.raises(UserError) as error:
    read(tmp_path, list(range(10**5)))
  assert len(str(error.value)) < 200 + len(str(tmp_path))
