"""Weights in safetensors files: names, shards, types, placement, refusals."""

import dataclasses
import itertools
import json
import os
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import small_models

from mmrl.errors import UserError
from mmrl.hub import weights
from mmrl.models import parameters
from mmrl.models.families import FAMILIES

INDEX = "model.safetensors.index.json"
# Splits a small model into several shards.
SHARD = 40_000


def assert_same(one, other):
  """Bit for bit; structure, shapes and types, too."""

  def check(path, x, y):
    name = jax.tree_util.keystr(path)
    x, y = np.asarray(x), np.asarray(y)
    assert (x.dtype, x.shape) == (y.dtype, y.shape), name
    np.testing.assert_array_equal(bits(x), bits(y), err_msg=name)

  jax.tree_util.tree_map_with_path(check, one, other)


def bits(array):
  return array.view(f"u{array.dtype.itemsize}")


def read(path):
  return safetensors.numpy.load_file(path / "model.safetensors")


def write(path, tensors):
  safetensors.numpy.save_file(tensors, path / "model.safetensors")


def write_shards(path, shards):
  """Shards by file name, and their index."""
  weight_map = {}
  for file, tensors in shards.items():
    safetensors.numpy.save_file(tensors, path / file)
    weight_map |= dict.fromkeys(tensors, file)
  index = {"metadata": {}, "weight_map": weight_map}
  (path / INDEX).write_text(json.dumps(index))


def contents(path):
  """What lies in a directory, hidden files included."""
  return {
    str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
    for file in path.rglob("*")
  }


def changed(params, by=1):
  return jax.tree.map(lambda x: x + by, params)


@pytest.fixture(scope="module", params=FAMILIES)
def config(request):
  """Each family, with a head of its own."""
  return small_models.small_config(family=request.param, tied=False)


@pytest.fixture(scope="module")
def params(config):
  return small_models.make_params(config)


# What holds for every model is tested with one.


@pytest.fixture(scope="module")
def one():
  return small_models.small_config()


@pytest.fixture(scope="module")
def one_params(one):
  return small_models.make_params(one)


@pytest.fixture(scope="module")
def one_saved(one, tmp_path_factory):
  """Copied by those who change it."""
  path = tmp_path_factory.mktemp("one") / "model"
  return small_models.write_weights(path, one)


@pytest.fixture(scope="module")
def one_sharded(one, one_params, tmp_path_factory):
  path = tmp_path_factory.mktemp("shards") / "model"
  path.mkdir()
  weights.save_params(one_params, one, path, max_shard_bytes=SHARD)
  return path


# Names and layout.


@pytest.mark.parametrize("tied", [True, False])
def test_saved_as_published(tmp_path, config, params, tied):
  """Names, shapes and values are those of the list written out by hand."""
  if tied:
    config = dataclasses.replace(config, tie_word_embeddings=True)
    text = {k: v for k, v in params["text"].items() if k != "head"}
    params = params | {"text": text}
  weights.save_params(params, config, tmp_path)
  found, wanted = read(tmp_path), small_models.weights(config)
  assert ("lm_head.weight" in found) != tied
  assert set(found) == set(wanted)
  for name, tensor in wanted.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], tensor, err_msg=name)
  assert os.listdir(tmp_path) == ["model.safetensors"]


def flat(name):
  """The inverse of `small_models.nested`."""
  name = name.replace("model.language_model.", "model.")
  return name.replace("model.visual.", "visual.")


@pytest.mark.parametrize("other", [False, True])
def test_loaded_as_published(tmp_path, config, params, other):
  """On the first device, whatever the names: Transformers 4.52 and later nest
  both halves under `model`, which Qwen3-VL was published as; the older families
  were published flat."""
  tensors = small_models.weights(config)
  if other:
    nested = "model.visual.patch_embed.proj.weight" in tensors
    rename = flat if nested else small_models.nested
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    assert set(renamed) & set(tensors) == {"lm_head.weight"}
    tensors = renamed
  write(tmp_path, tensors)
  loaded = weights.load_params(tmp_path, config)
  assert_same(loaded, params)
  first = {jax.devices()[0]}
  assert all(leaf.devices() == first for leaf in jax.tree.leaves(loaded))


def test_a_tied_head_may_be_stored(tmp_path, one, one_params):
  tensors = small_models.weights(one)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  write(tmp_path, tensors)
  assert_same(weights.load_params(tmp_path, one), one_params)


def test_another_head_than_the_tied_one(tmp_path, one):
  """Of other values anywhere, or of another shape, type or file."""
  tensors = small_models.weights(one)
  table = tensors["model.embed_tokens.weight"]
  other = table.copy()
  other[-1, -1] += 1
  for head in (-table, other, table[:-1], table.astype(np.float16)):
    write(tmp_path, tensors | {"lm_head.weight": head})
    refused(tmp_path, one, "tie_word_embeddings true, found another lm_head.w")
  write(tmp_path, tensors | {"lm_head.weight": table.astype(np.int8)})
  refused(tmp_path, one, "I8 in lm_head.weight")
  (tmp_path / "model.safetensors").unlink()
  shards = {
    "a.safetensors": tensors,
    "b.safetensors": {"lm_head.weight": table},
  }
  write_shards(tmp_path, shards)
  weights.load_params(tmp_path, one)
  shards["b.safetensors"]["lm_head.weight"] = other
  write_shards(tmp_path, shards)
  refused(tmp_path, one, "found another lm_head.weight")


def test_a_tied_head_of_a_wider_type(tmp_path, one):
  """The same values are the same head."""
  tensors = small_models.weights(one)
  table = tensors["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
  head = table.astype(np.float32)
  both = {"model.embed_tokens.weight": table, "lm_head.weight": head}
  write(tmp_path, tensors | both)
  weights.load_params(tmp_path, one)


# Names with more levels.


@pytest.mark.parametrize(
  "level", ["base_model.model.", "_orig_mod.", "module.", "module._orig_mod."]
)
def test_a_level_around_the_model(tmp_path, capsys, one, one_params, level):
  tensors = small_models.weights(one)
  write(tmp_path, {level + name: tensor for name, tensor in tensors.items()})
  assert_same(weights.load_params(tmp_path, one), one_params)
  said = capsys.readouterr().out
  assert f"{tmp_path}: weights are read without {level!r}" in said
  write(tmp_path, tensors)
  weights.load_params(tmp_path, one)
  assert not capsys.readouterr().out


def test_a_level_around_the_decoder(tmp_path, config, params):
  """As language_model.model.layers, with the head as language_model.lm_head."""
  tensors = small_models.weights(config)
  tensors = {flat(name): tensor for name, tensor in tensors.items()}
  renamed = {
    name if name.startswith("visual.") else f"language_model.{name}": tensor
    for name, tensor in tensors.items()
  }
  write(tmp_path, renamed)
  assert_same(weights.load_params(tmp_path, config), params)


def test_an_unknown_level_is_named(tmp_path, one):
  tensors = small_models.weights(one)
  write(tmp_path, {"student." + name: t for name, t in tensors.items()})
  refused(
    *(tmp_path, one, f"found {len(tensors)} missing tensors: model."),
    f"; beside {len(tensors)} tensors that the model doesn't have: student.",
  )
  # One that only some have isn't left out.
  name = "model.norm.weight"
  some = {k: v for k, v in tensors.items() if k != name}
  write(tmp_path, some | {"module." + name: tensors[name]})
  refused(tmp_path, one, "found 1 missing tensors", f"have: module.{name};")


def test_tensors_of_an_adapter(tmp_path, one):
  tensors = small_models.weights(one)
  name = "model.layers.0.self_attn.q_proj"
  tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
  tensors[f"{name}.lora_A.weight"] = np.zeros((2, 32), np.float32)
  write(tmp_path, {f"base_model.model.{k}": v for k, v in tensors.items()})
  refused(tmp_path, one, "found a LoRA adapter's", "merge_and_unload")


# Types.


TYPES = {
  "float32": np.float32,
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
}


@pytest.mark.full
@pytest.mark.parametrize("dtype", small_models.first(*reversed(TYPES)))
def test_types(tmp_path, one, dtype):
  """Tensors of all types, even of one parameter: bit for bit those of the file,
  or rounded once. Signed zeros and subnormals are kept."""
  tensors = {}
  kinds = itertools.cycle(TYPES.values())
  for name, tensor in small_models.weights(one).items():
    kind = next(kinds)
    tensors[name] = tensor.astype(kind)
    info = jnp.finfo(kind)
    tensors[name].reshape(-1)[:3] = np.array(
      [0.0, -0.0, info.smallest_subnormal], kind
    )
  write(tmp_path, tensors)
  loaded = weights.load_params(tmp_path, one, dtype=dtype)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(dtype)}
  weights.save_params(loaded, one, tmp_path)
  wanted = {k: v.astype(TYPES[dtype]) for k, v in tensors.items()}
  assert_same(read(tmp_path), wanted)


def test_wider_types(tmp_path, one, one_params):
  """Rounded to what parameters are held in."""
  tensors = small_models.weights(one)
  write(tmp_path, {k: v.astype(np.float64) for k, v in tensors.items()})
  assert_same(weights.load_params(tmp_path, one), one_params)


@pytest.mark.parametrize("value", small_models.first(np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("kind", TYPES)
def test_what_is_no_number(tmp_path, one, kind, value):
  """Named by its tensor, wherever in it."""
  name = "model.layers.1.mlp.up_proj.weight"
  tensors = small_models.weights(one)
  tensors = {k: v.astype(TYPES[kind]) for k, v in tensors.items()}
  tensors[name][-1, -1] = value
  write(tmp_path, tensors)
  for dtype in TYPES:
    with pytest.raises(UserError, match=f"NaN or infinity in {name};") as error:
      weights.load_params(tmp_path, one, dtype=dtype)
    assert str(tmp_path) in str(error.value)


@pytest.mark.full
def test_a_number_above_a_narrower_type(tmp_path, one):
  """The file is right, the type isn't."""
  tensors = small_models.weights(one)
  tensors["model.norm.weight"][3] = -1e5
  write(tmp_path, tensors)
  weights.load_params(tmp_path, one, dtype="bfloat16")
  message = r"float16 can hold, found 100000\.0 in model\.norm\.weight; load"
  with pytest.raises(UserError, match=message):
    weights.load_params(tmp_path, one, dtype="float16")


@pytest.mark.parametrize(
  "dtype, called",
  [
    (np.int8, "I8"),
    (np.uint8, "U8"),
    (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
  ],
)
def test_quantised_weights_are_refused(tmp_path, one, dtype, called):
  name = "model.language_model.layers.1.mlp.up_proj.weight"
  tensors = small_models.weights(one)
  tensors = {small_models.nested(k): v for k, v in tensors.items()}
  write(tmp_path, tensors | {name: tensors[name].astype(dtype)})
  refused(tmp_path, one, "expected weights", f"{called} in {name}; use the")


# Shards.


@pytest.mark.parametrize("most", [1, SHARD])
def test_written_shards(tmp_path, one, one_params, most):
  weights.save_params(one_params, one, tmp_path, max_shard_bytes=most)
  wanted = small_models.weights(one)
  index = json.loads((tmp_path / INDEX).read_text())
  size = sum(tensor.nbytes for tensor in wanted.values())
  assert index["metadata"]["total_size"] == size
  files = sorted(tmp_path.glob("*.safetensors"))
  count = len(files)
  assert [file.name for file in files] == [
    f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)
  ]
  if most == 1:
    assert count == len(wanted)
  else:
    assert size / most < count < len(wanted) / 2
  found = {}
  for file in files:
    part = safetensors.numpy.load_file(file)
    held = sum(tensor.nbytes for tensor in part.values())
    assert held <= most or len(part) == 1
    found |= dict.fromkeys(part, file.name)
    # Transformers refuses a file whose metadata don't name the format.
    with safetensors.safe_open(file, "numpy") as opened:
      assert opened.metadata() == {"format": "pt"}
  assert found == index["weight_map"]
  assert set(found) == set(wanted)
  assert_same(weights.load_params(tmp_path, one), one_params)


def test_published_shards(tmp_path, one, one_params):
  """The layers of one parameter may lie in several files, in any order."""
  tensors = sorted(small_models.weights(one).items())
  shards = {f"{i}.safetensors": dict(tensors[i::3]) for i in range(3)}
  write_shards(tmp_path, shards)
  assert_same(weights.load_params(tmp_path, one), one_params)


# Placement.


@pytest.fixture(scope="module")
def mesh():
  return Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))


@pytest.mark.parametrize(
  "spec",
  small_models.first(
    # Both along one; every axis that divides; the last axis.
    *((None, ("a", "b")), ("a", "b", "b"), (None, None, "b"))
  ),
)
def test_placement(one_saved, one, one_params, mesh, spec):
  """The arrays lie as asked, whole layers and parts of them."""
  asked = {}

  def placement(name, shape):
    """The axes of the spec that divide the shape's, each name once."""
    axes, used = [], set()
    for axis, size in zip(spec, shape, strict=False):
      names = (axis,) if isinstance(axis, str) else axis or ()
      count = np.prod([mesh.shape[n] for n in names], dtype=int)
      fits = size % count == 0 and not used & set(names)
      axes.append(axis if fits else None)
      used |= set(names) if fits else set()
    asked[name] = shape, NamedSharding(mesh, PartitionSpec(*axes))
    return asked[name][1]

  loaded = weights.load_params(one_saved, one, placement=placement)
  leaves = {
    parameters.path_name(key): leaf
    for key, leaf in jax.tree_util.tree_flatten_with_path(loaded)[0]
  }
  assert asked.keys() == leaves.keys()
  spread = 0
  for name, leaf in leaves.items():
    shape, where = asked[name]
    assert leaf.shape == shape
    assert leaf.sharding.is_equivalent_to(where, leaf.ndim), name
    assert leaf.committed
    assert len(leaf.addressable_shards) == 8
    spread += not leaf.sharding.is_fully_replicated
  assert spread > len(leaves) / 4
  assert_same(loaded, one_params)


# Refusals.


def refused(path, config, *messages):
  """One line that has all of `messages`, before anything is placed."""

  def placement(name, shape):
    raise AssertionError(f"{name} was to be placed")

  with pytest.raises(UserError) as error:
    weights.load_params(path, config, placement=placement)
  text = str(error.value)
  assert str(path) in text
  assert "\n" not in text
  for message in messages:
    assert message in text


# Tensors in place of the model's, None taken out, and what is said of them.
REFUSED = [
  # By the names that all files are compared by.
  (
    {
      "model.layers.1.self_attn.o_proj.weight": None,
      "visual.blocks.0.norm1.weight": None,
    },
    "found 2 missing tensors: model.layers.1.self_attn.o_proj.weight,"
    " visual.blocks.0.norm1.weight;",
  ),
  # A tied model's weights aren't those of an untied one.
  ({"lm_head.weight": None}, "1 missing tensors: lm_head.weight;"),
  (
    {"model.layers.9.mlp.up_proj.weight": np.zeros(2)},
    "1 tensors that the model doesn't have: model.layers.9.mlp.up_proj.weight;"
    " expected",
  ),
  # Only the decoder's own head is a head.
  (
    {"model.lm_head.weight": np.zeros((272, 32), np.float32)},
    "doesn't have: model.lm_head.weight;",
  ),
  (
    {
      "model.norm.weight": np.ones(31, np.float32),
      "visual.blocks.0.attn.proj.bias": np.ones(5, np.float32),
      # Transposed, and flat as a kernel of ours.
      "model.layers.0.mlp.up_proj.weight": np.ones((32, 48), np.float32),
      "visual.patch_embed.proj.weight": np.ones((24, 96), np.float32),
      "model.layers.2.input_layernorm.weight": np.array(1, np.float32),
    },
    "found 5 misshaped tensors",
    "model.norm.weight is (31,) in the file, (32,) in the model",
    "visual.blocks.0.attn.proj.bias is (5,) in the file, (24,) in the model",
    "up_proj.weight is (32, 48) in the file, (48, 32) in the model",
    "proj.weight is (24, 96) in the file, (24, 3, 2, 4, 4) in the model",
    "layers.2.input_layernorm.weight is () in the file, (32,) in the model",
  ),
  # Names of both conventions.
  (
    {"model.language_model.norm.weight": np.ones(32, np.float32)},
    *("expected each tensor once", "in model.safetensors"),
  ),
]


@pytest.mark.parametrize("row", REFUSED)
def test_refused(tmp_path, row):
  changes, *messages = row
  untied = small_models.small_config(tied=False)
  tensors = small_models.weights(untied) | changes
  write(tmp_path, {k: v for k, v in tensors.items() if v is not None})
  refused(tmp_path, untied, *messages)


def test_nested_names_are_said_flat(tmp_path):
  config = small_models.small_config(family="qwen3_vl")
  tensors = small_models.weights(config)
  del tensors["model.visual.blocks.0.norm1.weight"]
  write(tmp_path, tensors)
  refused(tmp_path, config, "1 missing tensors: visual.blocks.0.norm1.weight;")


def test_many_names_are_cut_short(tmp_path, one):
  write(tmp_path, {})
  with pytest.raises(UserError) as error:
    weights.load_params(tmp_path, one)
  text = str(error.value)
  assert f"found {len(small_models.weights(one))} missing tensors" in text
  assert ", ...; expected" in text
  assert len(text) < 800


@pytest.mark.parametrize(
  "content",
  [
    None,
    lambda whole: b"",
    lambda whole: b"garbage" * 9,
    lambda whole: whole[:50],
    lambda whole: whole[:-1],
  ],
  ids=["missing", "empty", "garbage", "cut in the header", "cut at the end"],
)
def test_unreadable_file(tmp_path, one_saved, one, content):
  file = tmp_path / "model.safetensors"
  if content is not None:
    file.write_bytes(content((one_saved / file.name).read_bytes()))
  refused(tmp_path, one, f"expected safetensors weights at {file}")


def test_a_shard_cut_short(tmp_path, one_sharded, one):
  """Though it is the last, nothing of the others has been placed."""
  path = shutil.copytree(one_sharded, tmp_path / "copy")
  file = max(path.glob("*.safetensors"))
  file.write_bytes(file.read_bytes()[:-1])
  refused(path, one, f"expected safetensors weights at {file}")


def test_a_missing_shard(tmp_path, one_sharded, one):
  path = shutil.copytree(one_sharded, tmp_path / "copy")
  file = sorted(path.glob("*.safetensors"))[1]
  file.unlink()
  refused(path, one, f"names 1 files that don't exist: {file.name};")


def test_a_tensor_in_no_shard(tmp_path, one):
  """The index may say what it likes; the files count."""
  tensors = small_models.weights(one)
  norm = tensors.pop("model.norm.weight")
  write_shards(tmp_path, {"a.safetensors": tensors})
  index = json.loads((tmp_path / INDEX).read_text())
  index["weight_map"]["model.norm.weight"] = "a.safetensors"
  (tmp_path / INDEX).write_text(json.dumps(index))
  safetensors.numpy.save_file({"x": norm}, tmp_path / "b.safetensors")
  refused(tmp_path, one, "1 missing tensors: model.norm.weight;")


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "is not readable JSON"),
    ("[1]", "expected a JSON object, found [1]"),
    ("{}", "to files, found None"),
    ('{"weight_map": ["a"]}', "to files, found ['a']"),
    ('{"weight_map": {"a": 3}}', "to files, found {'a': 3}"),
    ('{"weight_map": {"a": null}}', "to files, found {'a': None}"),
    (
      '{"weight_map": {"x": "model.safetensors", "y": "other.safetensors"}}',
      "names 1 files that don't exist: other.safetensors;",
    ),
  ],
)
def test_broken_index(tmp_path, one_saved, one, text, message):
  """Refused, though the weights lie whole beside it."""
  path = shutil.copytree(one_saved, tmp_path / "copy")
  (path / INDEX).write_text(text)
  refused(path, one, str(path / INDEX), message)


@pytest.mark.parametrize("form", [small_models.nested, flat])
def test_a_tensor_twice(tmp_path, one, form):
  """Also under the names of both conventions."""
  tensors = small_models.weights(one)
  twice = form("visual.merger.mlp.2.bias")
  bias = {twice: tensors["visual.merger.mlp.2.bias"]}
  write_shards(tmp_path, {"a.safetensors": tensors, "b.safetensors": bias})
  # A file twice in the index is one file.
  index = json.loads((tmp_path / INDEX).read_text())
  index["weight_map"] |= {"x": "a.safetensors", "y": "b.safetensors"}
  (tmp_path / INDEX).write_text(json.dumps(index))
  file = tmp_path / "b.safetensors"
  refused(
    tmp_path, one, f"{file}: expected each tensor once, found {twice} in a.safe"
  )


# Which files.


@pytest.mark.parametrize(
  "files, messages",
  [
    ([], ["found none; download"]),
    (["notes.txt"], ["found none; download"]),
    (["pytorch_model.bin", "b.pt"], ["found b.pt, pytorch_model.bin; convert"]),
    (["model-q4.gguf"], ["found model-q4.gguf; convert"]),
    (["tuned.safetensors"], ["found tuned.safetensors; rename the file"]),
    (
      [f"model-{i:05}-of-00009.safetensors" for i in range(1, 8)],
      ["found model-00001-of-00009.safetensors, ", f", ...; add {INDEX}"],
    ),
  ],
)
def test_other_files(tmp_path, one, files, messages):
  """Named, with what to do about them."""
  for name in files:
    (tmp_path / name).touch()
  file = tmp_path / "model.safetensors"
  refused(tmp_path, one, f"expected safetensors weights at {file}", *messages)


def test_a_pointer_of_git_lfs(tmp_path, one):
  text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
  (tmp_path / "model.safetensors").write_text(text)
  refused(tmp_path, one, "found a pointer of Git LFS", "git lfs pull")


def test_one_file_and_an_index_of_others(tmp_path, one_sharded, one_saved, one):
  path = shutil.copytree(one_sharded, tmp_path / "copy")
  shutil.copy(one_saved / "model.safetensors", path)
  messages = ("found model.safetensors and an", INDEX, "remove the older")
  refused(path, one, *messages)
  # As little is known without the index.
  (path / INDEX).unlink()
  refused(path, one, "model.safetensors and the shards", "remove the older")
  # Shards that aren't complete are no model.
  min(path.glob("model-*-of-*")).unlink()
  weights.load_params(path, one)


def test_an_index_of_the_one_file(tmp_path, one, one_params):
  write_shards(tmp_path, {"model.safetensors": small_models.weights(one)})
  assert_same(weights.load_params(tmp_path, one), one_params)


@pytest.mark.parametrize("name", ["../a.safetensors", "/a", "", "b\\\\c"])
def test_an_index_of_files_elsewhere(tmp_path, one, name):
  (tmp_path / INDEX).write_text(f'{{"weight_map": {{"x": "{name}"}}}}')
  refused(tmp_path, one, "expected names of files beside it, found")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_weights_that_are_no_file(tmp_path, one, kind):
  """They aren't opened, which could wait for ever."""
  file = tmp_path / "model.safetensors"
  if kind == "device":
    file.symlink_to("/dev/zero")
  else:
    (os.mkfifo if kind == "pipe" else os.mkdir)(file)
  refused(tmp_path, one, f"{file} is not readable: expected a file, found a ")


# Saving over older weights.


@pytest.fixture(params=["one_saved", "one_sharded"])
def path(request, tmp_path):
  """A copy of older weights."""
  old = request.getfixturevalue(request.param)
  return shutil.copytree(old, tmp_path / "copy")


@pytest.mark.full
@pytest.mark.parametrize("most", [4 * SHARD, 10**9])
def test_saving_over_weights(path, one_sharded, one, one_params, most):
  """What belonged to the older weights goes, what else lies there stays."""
  for name in ("README.md", "model_ema.safetensors"):
    (path / name).write_text("mine")
  others = {"README.md", "model_ema.safetensors", "config.json"}
  others &= set(os.listdir(path))
  params = changed(one_params)
  weights.save_params(params, one, path, max_shard_bytes=most)
  wanted = {"model.safetensors"}
  if most < 10**9:
    files = json.loads((path / INDEX).read_text())["weight_map"].values()
    wanted = {INDEX, *files}
    assert 2 < len(wanted) < len(os.listdir(one_sharded))
  assert set(os.listdir(path)) == wanted | others
  assert (path / "model_ema.safetensors").read_text() == "mine"
  stored = {}
  for file in wanted - {INDEX}:
    stored |= safetensors.numpy.load_file(path / file)
  assert_same(stored, changed(small_models.weights(one)))


def test_saving_over_shards_of_other_names(tmp_path, one, one_params):
  """Their index must not outlive the file that replaces them."""
  write_shards(tmp_path, {"old.safetensors": small_models.weights(one)})
  params = changed(one_params)
  weights.save_params(params, one, tmp_path)
  assert_same(weights.load_params(tmp_path, one), params)


@pytest.mark.parametrize(
  "most, fails_at, error",
  [(10**9, 1, OSError("disk full")), (SHARD, 3, KeyboardInterrupt())],
)
def test_interrupted_save(
  path, monkeypatch, one, one_params, most, fails_at, error
):
  """The old weights stay as they were, and nothing else."""
  before = contents(path)
  save_file, calls = safetensors.numpy.save_file, []

  def failing(tensors, file, metadata=None):
    calls.append(file)
    if len(calls) < fails_at:
      return save_file(tensors, file, metadata)
    with open(file, "wb") as half:
      half.write(b"half of it")
    raise error

  monkeypatch.setattr(safetensors.numpy, "save_file", failing)
  with pytest.raises(type(error)):
    weights.save_params(changed(one_params), one, path, max_shard_bytes=most)
  assert len(calls) == fails_at
  assert contents(path) == before


@pytest.mark.full
def test_interrupted_between_shards(tmp_path, monkeypatch, one_sharded, one):
  """Old and new shards together are refused, not mixed."""
  path = shutil.copytree(one_sharded, tmp_path / "copy")
  replace, calls = os.replace, []

  def failing(*names):
    calls.append(names)
    if len(calls) == 2:
      raise OSError("disk full")
    replace(*names)

  monkeypatch.setattr(os, "replace", failing)
  params = changed(weights.load_params(path, one))
  with pytest.raises(OSError, match="disk full"):
    weights.save_params(params, one, path, max_shard_bytes=SHARD)
  refused(path, one, "expected safetensors weights at")
  monkeypatch.undo()
  weights.save_params(params, one, path, max_shard_bytes=SHARD)
  assert_same(weights.load_params(path, one), params)


@pytest.mark.parametrize("dtype", ["int8", "float99", "float64"])
def test_type_of_parameters(one_saved, one, dtype):
  with pytest.raises(UserError, match=f"float16 or bfloat16, found '{dtype}'"):
    weights.load_params(one_saved, one, dtype=dtype)


@pytest.mark.parametrize("mask, mode", [(0o077, 0o600), (0o022, 0o644)])
def test_who_may_read_the_files(tmp_path, one, one_params, mask, mode):
  """As the user wants it; temporary files, which they were, are private."""
  before = os.umask(mask)
  try:
    weights.save_params(one_params, one, tmp_path, max_shard_bytes=SHARD)
  finally:
    os.umask(before)
  for file in tmp_path.iterdir():
    assert file.stat().st_mode & 0o777 == mode, file.name
