"""config.json: read, written, and what is refused."""

import dataclasses
import json
import math
import os
import pathlib
import time

import pytest
import small_models
import transformers

from mmrl import hub
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
  """And what Transformers makes of it and writes again."""
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


def test_flat_config_of_the_hub():
  """As published: decoder fields on top, `rope_scaling`."""
  path = pathlib.Path(hub.__file__).parent / "public" / "qwen2_5_vl_7b"
  assert "rope_scaling" in json.loads((path / "config.json").read_text())
  config = config_json.read(path)
  assert (config.text.hidden_size, config.text.head_dim) == (3584, 128)
  assert config.text.mrope_section == (16, 24, 24)
  assert config.text.rope_theta == 1e6
  assert config.vision.fullatt_block_indexes == (7, 15, 23, 31)
  assert config.vision.tokens_per_second == 2
  assert not config.tie_word_embeddings
  assert config.eos_token_id == 151645


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
  """Taken where the top says nothing, and only there. Of several ends the first
  closes answers, and pads where nothing else does."""
  raw = nested(family, eos_token_id=None, pad_token_id=None)
  raw = inside(raw, "text_config", eos_token_id=7, pad_token_id=8)
  config = read(tmp_path, raw)
  assert (config.eos_token_id, config.pad_token_id) == (7, 8)
  config = read(tmp_path, raw | {"eos_token_id": 9, "pad_token_id": 10})
  assert (config.eos_token_id, config.pad_token_id) == (9, 10)
  raw = inside(raw, "text_config", pad_token_id=None)
  config = read(tmp_path, raw | {"eos_token_id": [258, 256]})
  assert (config.eos_token_id, config.pad_token_id) == (258, 258)
  assert config.end_token_ids == (258, 256)
  config_json.write(config, tmp_path, "float32")
  assert config_json.read(tmp_path) == config


def test_tying(tmp_path):
  """The top counts, then the decoder; otherwise the head is its own."""
  raw = nested(tie_word_embeddings=None)
  tied = inside(raw, "text_config", tie_word_embeddings=True)
  assert read(tmp_path, tied).tie_word_embeddings
  top = tied | {"tie_word_embeddings": False}
  assert not read(tmp_path, top).tie_word_embeddings
  neither = inside(raw, "text_config", tie_word_embeddings=None)
  assert not read(tmp_path, neither).tie_word_embeddings


def test_nulls_are_left_out(tmp_path):
  """As Transformers writes what it has no value for."""
  raw = nested()
  raw |= {"quantization_config": None}
  raw["text_config"] |= {"sliding_window": None, "rms_norm_eps": None}
  raw["vision_config"] |= {"in_channels": None}
  assert read(tmp_path, raw) == small_models.small_config()
  raw["text_config"]["num_key_value_heads"] = None
  assert read(tmp_path, raw).text.num_key_value_heads == 4


# Refused.


def changed(family, part, changes):
  """A config with other fields on top, in a part or in "rope"."""
  if part == "rope":
    raw = nested(family)
    rope = raw["text_config"]["rope_parameters"] | changes
    rope = {name: value for name, value in rope.items() if value is not None}
    return inside(raw, "text_config", rope_parameters=rope)
  if part:
    return inside(nested(family), part, **changes)
  return nested(family, **changes)


DECODER, TOWER = "text_config", "vision_config"
FAMILY = "expected model_type 'qwen2_vl' or 'qwen2_5_vl' or 'qwen3_vl', found"
UNSCALED = "expected plain M-RoPE"
# Family, part, changes, what is said of them.
REFUSED = [
  # Other families: those that there are get named.
  *[
    ("qwen2_5_vl", "", {"model_type": name}, f"{FAMILY} {name!r};")
    for name in ("llama", "qwen2_5_vl_text", None)
  ],
  # What isn't computed.
  (
    *("qwen2_vl", "", {"quantization_config": {"bits": 4}}),
    "found a quantised checkpoint; use the unquantised",
  ),
  *[
    ("qwen3_vl", "rope", {"rope_type": kind}, UNSCALED, repr(kind))
    for kind in ("yarn", "linear", "dynamic")
  ],
  (
    *("qwen2_5_vl", "rope", {"rope_type": None, "type": "yarn"}),
    *(UNSCALED, "'yarn'", "aren't computed"),
  ),
  ("qwen2_vl", "rope", {"mrope_section": None}, UNSCALED, "mrope_section"),
  ("qwen2_vl", DECODER, {"rope_parameters": None}, UNSCALED),
  ("qwen3_vl", "rope", {"rope_theta": None}, "missing or mistyped: rope_theta"),
  (
    *("qwen3_vl", DECODER, {"use_sliding_window": True}),
    *("found use_sliding_window", "aren't computed"),
  ),
  (
    *("qwen2_5_vl", DECODER, {"hidden_act": "gelu"}),
    "hidden_act 'silu' in the decoder, found 'gelu'",
  ),
  *[
    (
      *(family, TOWER, {"hidden_act": "relu"}),
      *("hidden_act of the vision tower", "found 'relu'"),
    )
    for family in FAMILIES
  ],
  # Missing. Older families have defaults for a tower, which their files use.
  *[
    (family, DECODER, {name: None}, f"fields of a {family} c", f"'{name}'")
    for family in FAMILIES
    for name in (
      *("vocab_size", "hidden_size", "intermediate_size"),
      *("num_hidden_layers", "num_attention_heads"),
    )
  ],
  *[
    ("qwen3_vl", TOWER, {name: None}, "fields of a qwen3_vl c", f"'{name}'")
    for name in (
      *("depth", "hidden_size", "intermediate_size", "num_heads"),
      "out_hidden_size",
    )
  ],
  *[
    (family, "", {TOWER: tower}, f"the fields of a {family} config")
    for family in ("qwen2_5_vl", "qwen3_vl")
    for tower in ({}, None)
  ],
  # Mistyped.
  ("qwen2_vl", DECODER, {"hidden_size": "32"}, "fields of a qwen2_vl c"),
  ("qwen2_vl", DECODER, {"num_attention_heads": 0}, "fields of a qwen2_vl c"),
  ("qwen2_5_vl", DECODER, {"num_attention_heads": [4]}, "fields of a qwen2_5"),
  ("qwen3_vl", "rope", {"rope_theta": "large"}, "fields of a qwen3_vl c"),
  ("qwen2_vl", TOWER, {"mlp_ratio": "four"}, "fields of a qwen2_vl c"),
  ("qwen3_vl", TOWER, {"num_position_embeddings": "25"}, "a qwen3_vl c"),
  ("qwen2_5_vl", "", {"eos_token_id": []}, "mistyped"),
  ("qwen2_5_vl", "", {"text_config": [1]}, "text_config is [1], not an object"),
  ("qwen2_5_vl", "", {TOWER: [1]}, "vision_config is [1], not an object"),
  *[
    ("qwen2_5_vl", part, {name: value}, f"{name} is {value!r}")
    for part, name, value in [
      ("", "image_token_id", "7"),
      ("", "image_token_id", 1.5),
      ("", "tie_word_embeddings", "yes"),
      (DECODER, "vocab_size", "272"),
      (DECODER, "num_hidden_layers", True),
      (DECODER, "intermediate_size", 3.5),
      (DECODER, "rms_norm_eps", "1e-6"),
      (TOWER, "patch_size", "12"),
      (TOWER, "fullatt_block_indexes", 1),
    ]
  ],
  (
    *("qwen2_5_vl", TOWER, {"fullatt_block_indexes": [1, "2"]}),
    "fullatt_block_indexes is '2'",
  ),
  *[
    ("qwen2_5_vl", "rope", {"mrope_section": section}, "mrope_section is ")
    for section in ([4, 4], "444", 12, [4.0, 2, 2])
  ],
  # What doesn't fit together.
  *[
    (
      *(family, "rope", {"mrope_section": [1, 1, half]}),
      f"adds up to half of head_dim = {2 * half}, found (1, 1, {half})",
    )
    for family, half in (("qwen2_vl", 4), ("qwen2_5_vl", 4), ("qwen3_vl", 6))
  ],
  *[
    (family, TOWER, {name: 48}, "as wide as the decoder, 32, found 48")
    for family, name in (
      ("qwen2_vl", "hidden_size"),
      ("qwen2_5_vl", "out_hidden_size"),
      ("qwen3_vl", "out_hidden_size"),
    )
  ],
  *[
    (
      *("qwen2_5_vl", "", {name: value}),
      f"{name} in a vocabulary of 272, found {value}",
    )
    for name in IDS
    for value in (-1, 272)
  ],
]


@pytest.mark.parametrize("row", REFUSED)
def test_refused(tmp_path, row):
  family, part, changes, *messages = row
  refused(tmp_path, changed(family, part, changes), *messages)


def test_scaled_positions_in_the_flat_form(tmp_path):
  raw = flat(nested("qwen2_vl"))
  raw["rope_scaling"] |= {"type": "yarn", "factor": 4}
  refused(tmp_path, raw, "expected plain M-RoPE", "'yarn'", "aren't computed")


def test_an_uneven_tower(tmp_path):
  """Qwen2-VL writes its inner width as a multiple of the outer one."""
  raw = inside(nested("qwen2_vl"), "vision_config", mlp_ratio=1.5)
  config = read(tmp_path, raw)
  assert config.vision.intermediate_size == 36
  config_json.write(config, tmp_path, "float32")
  assert config_json.read(tmp_path) == config


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


@pytest.mark.parametrize(
  "content", [b"", b"{", b"{'a': 1}", b'{"a": "\xff"}', None]
)
def test_not_json(tmp_path, content):
  """Nor is a folder."""
  file = tmp_path / "config.json"
  file.mkdir() if content is None else file.write_bytes(content)
  with pytest.raises(UserError, match="config.json is not readable"):
    config_json.read(tmp_path)


@pytest.mark.parametrize("raw", [[1], "qwen2_5_vl", 3, None])
def test_not_an_object(tmp_path, raw):
  refused(tmp_path, raw, "expected a JSON object, found ")


def test_long_json_is_cut_short(tmp_path):
  with pytest.raises(UserError) as error:
    read(tmp_path, list(range(10**5)))
  assert len(str(error.value)) < 200 + len(str(tmp_path))


# Several ends of an answer.


def put_tokenizer(path, template, end=None):
  tokens = [{"id": i, "content": t} for t, i in small_models.SPECIALS.items()]
  (path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
  settings = {"eos_token": end} if end else {}
  (path / "tokenizer_config.json").write_text(json.dumps(settings))
  (path / "chat_template.jinja").write_text(template)


@pytest.mark.parametrize(
  "named, generation, template, end, found",
  [
    # Both files count.
    (258, [258, 256], "", None, (258, 256)),
    (258, None, "", None, (258,)),
    (258, 258, "", None, (258,)),
    ([258, 258], 256, "", None, (258, 256)),
    # The one that the template writes closes answers, whatever the order,
    ([256, 258], None, "a<|im_end|>", None, (258, 256)),
    (256, [258, 256], "a<|im_end|>", "<|endoftext|>", (258, 256)),
    # of those that it writes the tokenizer's,
    ([256, 258], None, "<|endoftext|><|im_end|>", "<|im_end|>", (258, 256)),
    # and the tokenizer's where it writes none.
    ([256, 258], None, "", "<|im_end|>", (258, 256)),
    ([256, 258], None, "", {"content": "<|im_end|>"}, (258, 256)),
    ([256, 258], None, "", "<|im_start|>", (256, 258)),
  ],
)
def test_ends(tmp_path, named, generation, template, end, found):
  put_tokenizer(tmp_path, template, end)
  if generation:
    text = json.dumps({"eos_token_id": generation})
    (tmp_path / "generation_config.json").write_text(text)
  raw = nested(eos_token_id=named)
  assert read(tmp_path, raw).end_token_ids == found


def test_a_template_in_another_file(tmp_path):
  raw = nested(eos_token_id=[256, 258])
  put_tokenizer(tmp_path, "")
  (tmp_path / "chat_template.jinja").unlink()
  settings = {"chat_template": "<|im_end|>", "added": "<|endoftext|>"}
  file = tmp_path / "tokenizer_config.json"
  file.write_text(json.dumps(settings))
  assert read(tmp_path, raw).eos_token_id == 258
  (tmp_path / "chat_template.json").write_text(
    json.dumps({"chat_template": "<|endoftext|>"})
  )
  assert read(tmp_path, raw).eos_token_id == 256


@pytest.mark.parametrize(
  "content, message",
  [
    ("{", "generation_config.json is not readable JSON"),
    ('{"eos_token_id": []}', "generation_config.json: eos_token_id is []"),
    ('{"eos_token_id": [true]}', "eos_token_id is [True]"),
    ('{"eos_token_id": "a"}', "eos_token_id is 'a'"),
    ('{"eos_token_id": [258, 999]}', "generation_config.json) in a vocabulary"),
    (json.dumps({"eos_token_id": [7] * 99}), "eos_token_id is [7, 7"),
  ],
)
def test_broken_ends(tmp_path, content, message):
  (tmp_path / "generation_config.json").write_text(content)
  with pytest.raises(UserError) as error:
    read(tmp_path, nested())
  assert message in str(error.value)
  assert str(tmp_path) in str(error.value)


# Positions on top.


def test_positions_on_top(tmp_path):
  """Older names, beside the decoder's part instead of in it."""
  raw = nested()
  rope = raw["text_config"].pop("rope_parameters")
  raw["rope_scaling"] = {
    "type": "mrope",
    "mrope_section": rope["mrope_section"],
  }
  raw["rope_theta"] = rope["rope_theta"]
  assert read(tmp_path, raw) == small_models.small_config()
  raw["rope_scaling"]["type"] = "yarn"
  refused(tmp_path, raw, UNSCALED, "'yarn'")


def test_positions_that_disagree(tmp_path):
  raw = nested() | {"rope_scaling": {"mrope_section": [2, 1, 1]}}
  refused(tmp_path, raw, UNSCALED, "[[2, 1, 1], [1, 1, 2]]")
  raw = nested() | {"rope_scaling": {"type": "yarn", "factor": 2.0}}
  refused(tmp_path, raw, UNSCALED, "'yarn'")


# Hostile files.

DEEP: list = []
for _ in range(50):
  DEEP = [DEEP]
NASTY = [
  *(None, -1, 0, 1, 10**9, 10**400, 1e308, math.nan, math.inf, -0.5, 1e-320),
  *("", "x", "1", [], {}, [1], {"a": 1}, True, False, DEEP, [10**9] * 9),
  *([-1], [math.nan] * 3, ["x"], [[1], [2]], [True, True, True]),
]


def places(raw, *path):
  """Paths of all fields, inside of parts too."""
  for name, value in raw.items():
    yield *path, name
    if isinstance(value, dict):
      yield from places(value, *path, name)


def replaced(raw, path, value):
  name, *rest = path
  return raw | {name: replaced(raw[name], rest, value) if rest else value}


@pytest.mark.parametrize("family", small_models.one_family(FAMILIES))
def test_any_field_may_be_nonsense(tmp_path, family):
  """A configuration or one line, at once, and never anything else.

  What all families have is given the values in turn: a third in each.
  """
  raw, turn = nested(family), list(FAMILIES).index(family)
  common = set.intersection(*({*places(nested(x))} for x in FAMILIES))
  file, accepted = tmp_path / "config.json", 0
  for path in places(raw):
    for value in NASTY[turn :: len(FAMILIES)] if path in common else NASTY:
      file.write_text(json.dumps(replaced(raw, path, value)))
      began = time.perf_counter()
      try:
        config = config_json.read(tmp_path)
      except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 600 + len(str(tmp_path))
        assert str(file) in text
      else:
        accepted += 1
        sizes = [*dataclasses.astuple(config.text)]
        assert all(not isinstance(x, float) or 0 < x < 1e30 for x in sizes)
      assert time.perf_counter() - began < 1, (path, value)
  assert accepted


@pytest.mark.parametrize(
  "family, part, changes, message",
  [
    ("qwen2_vl", DECODER, {"num_hidden_layers": 10**9}, "num_hidden_layers is"),
    ("qwen2_vl", TOWER, {"depth": 0}, "depth is 0, not a whole number of 1"),
    ("qwen2_vl", TOWER, {"mlp_ratio": math.inf}, "mlp_ratio is inf, not"),
    ("qwen2_vl", TOWER, {"embed_dim": -8}, "embed_dim is -8, not"),
    ("qwen3_vl", DECODER, {"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ("qwen3_vl", "rope", {"rope_theta": 0}, "rope_theta is 0, not"),
    ("qwen3_vl", "rope", {"mrope_section": [-1, 3, 4]}, "mrope_section is"),
    ("qwen3_vl", TOWER, {"num_position_embeddings": 24}, "24, not a square"),
    ("qwen3_vl", TOWER, {"deepstack_visual_indexes": [9]}, "blocks 0 to 3"),
    ("qwen3_vl", TOWER, {"deepstack_visual_indexes": [1, 1]}, "each once"),
    ("qwen2_5_vl", DECODER, {"num_key_value_heads": 3}, "not a multiple of"),
    ("qwen2_5_vl", TOWER, {"num_heads": 7}, "not a multiple of its num_heads"),
    ("qwen2_5_vl", TOWER, {"num_heads": 4}, "6 channels"),
    ("qwen2_5_vl", TOWER, {"window_size": 7}, "window_size is 7, less than"),
    ("qwen2_5_vl", TOWER, {"window_size": 0}, "window_size is 0, not a whole"),
    ("qwen2_5_vl", "", {TOWER: []}, "vision_config is [], not an object"),
  ],
)
def test_absurd_numbers(tmp_path, family, part, changes, message):
  refused(tmp_path, changed(family, part, changes), message)


def test_deep_nesting(tmp_path):
  (tmp_path / "config.json").write_text('{"a":' * 10**5)
  with pytest.raises(UserError, match="nested too deeply"):
    config_json.read(tmp_path)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file(tmp_path, kind, linked):
  """It isn't even opened, which would wait for a writer."""
  file = tmp_path / "config.json"
  there = tmp_path / "other" if linked else file
  if kind == "device":
    file.symlink_to("/dev/zero")
  else:
    (os.mkfifo if kind == "pipe" else os.mkdir)(there)
    if linked:
      file.symlink_to(there)
  with pytest.raises(UserError, match="expected a file, found a "):
    config_json.read(tmp_path)


def test_an_adapter(tmp_path):
  """Also beside a whole model, to which others would add it."""
  (tmp_path / "adapter_config.json").write_text("{}")
  for whole in (False, True):
    if whole:
      (tmp_path / "config.json").write_text(json.dumps(nested()))
    with pytest.raises(
      UserError, match="a LoRA adapter; give its base model.s path"
    ):
      config_json.read(tmp_path)
