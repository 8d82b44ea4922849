"""Model directories: found, loaded, saved, and refused by name."""

import dataclasses
import json
import os
import runpy
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
import transformers

from mmrl import hub
from mmrl.errors import UserError
from mmrl.hub import directory as directory_lib
from mmrl.models import parameters


@pytest.fixture(scope="module")
def model():
  return small_models.make_model(small_models.small_config())


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
  """A saved model; tests that change it copy it first."""
  path = tmp_path_factory.mktemp("model") / "saved"
  hub.save(model, path)
  return path


@pytest.fixture
def changed(directory, tmp_path):
  return shutil.copytree(directory, tmp_path / "copy")


def edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_same(one, other):
  """Values and types."""

  def check(x, y):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)

  jax.tree.map(check, one, other)


# Saved and loaded.


@pytest.mark.full
@pytest.mark.parametrize(
  "family, tied, dtype",
  [
    ("qwen3_vl", False, "float16"),
    pytest.param("qwen2_vl", True, "bfloat16", marks=pytest.mark.full),
  ],
)
def test_round_trip(tmp_path, family, tied, dtype):
  model = small_models.make_model(
    small_models.small_config(family=family, tied=tied)
  )
  # NumPy's casts: old processors' programs have none to float16.
  params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), model.params)
  params = jax.tree.map(jnp.asarray, params)
  model = dataclasses.replace(model, params=params)
  hub.save(model, tmp_path)
  raw = json.loads((tmp_path / "config.json").read_text())
  assert raw["dtype"] == dtype
  assert_loaded(hub.load(tmp_path, dtype=dtype), model)


def assert_loaded(loaded, model):
  """Whole, and as it was saved."""
  assert_same(loaded.params, model.params)
  assert loaded.config == model.config
  assert loaded.processor.config == model.config
  assert loaded.processor.picture == model.processor.picture
  assert loaded.processor.video == model.processor.video
  chats = small_models.mixed()
  assert_same(loaded.processor(chats), model.processor(chats))


def test_saving_what_was_loaded_writes_the_same_bytes(
  directory, model, tmp_path
):
  loaded = hub.load(directory)
  assert_loaded(loaded, model)
  hub.save(loaded, tmp_path)
  names = set(os.listdir(directory))
  assert names == {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
  }
  assert set(os.listdir(tmp_path)) == names
  # Where Transformers notes that it has read a tokenizer from a directory.
  for name in names - {"tokenizer_config.json"}:
    one, other = (path / name for path in (directory, tmp_path))
    assert one.read_bytes() == other.read_bytes(), name


def test_saving_makes_the_directory(model, tmp_path):
  path = tmp_path / "a" / "new" / "one"
  hub.save(model, str(path), max_shard_bytes=40_000)
  assert len(list(path.glob("model-*-of-*.safetensors"))) > 2


@pytest.mark.full
def test_saving_over_a_model(changed):
  """Nothing of the older one, of another family here, is left."""
  before = set(os.listdir(changed))
  config = small_models.small_config(family="qwen3_vl", tied=False)
  model = small_models.make_model(config)
  hub.save(model, changed)
  assert set(os.listdir(changed)) == before
  loaded = hub.load(changed)
  assert loaded.config == config
  assert_same(loaded.params, model.params)


def test_several_ends_are_saved(model, tmp_path):
  """For whatever reads them next, the one that closes answers first."""
  config = dataclasses.replace(model.config, other_end_token_ids=(256, 65))
  processor = dataclasses.replace(model.processor, config=config)
  hub.save(hub.Model(config, model.params, processor), tmp_path)
  settings = json.loads((tmp_path / "generation_config.json").read_text())
  assert settings == {"eos_token_id": [258, 256, 65], "pad_token_id": 256}
  raw = json.loads((tmp_path / "config.json").read_text())
  assert raw["eos_token_id"] == raw["text_config"]["eos_token_id"]
  assert raw["eos_token_id"] == [258, 256, 65]
  loaded = hub.load(tmp_path)
  assert loaded.config == config
  theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
  assert theirs.eos_token_id == [258, 256, 65]
  hub.save(model, tmp_path)
  assert hub.load(tmp_path).config == model.config


def test_placement_is_handed_on(directory):
  class Placed(Exception):
    pass

  def placement(name, shape):
    raise Placed(name)

  with pytest.raises(Placed):
    hub.load(directory, placement=placement)


def test_the_shipped_model_loads():
  model = hub.load("tiny", dtype="bfloat16")
  leaves = jax.tree.leaves(model.params)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in leaves)
  assert sum(leaf.size for leaf in leaves) < 1e6
  wanted = parameters.shapes(model.config)
  assert jax.tree.map(jnp.shape, model.params) == jax.tree.map(
    jnp.shape, wanted
  )
  prompt = model.processor(small_models.conversations())
  assert prompt.tokens.max() < model.config.text.vocab_size


# Refused.


@pytest.mark.parametrize(
  "name, message",
  [
    ("config.json", "config.json, found no file"),
    ("tokenizer.json", "found no tokenizer.json"),
    ("chat_template.jinja", "expected a chat template in"),
    ("preprocessor_config.json", "preprocessor_config.json, found no file"),
    ("model.safetensors", "expected safetensors weights at"),
  ],
)
def test_missing_files(changed, name, message):
  """Nor is a pickle read, which runs code: it is no weights."""
  (changed / name).rename(changed / "pytorch_model.bin")
  with pytest.raises(UserError, match=message) as error:
    hub.load(changed)
  assert str(changed) in str(error.value)


@pytest.mark.parametrize(
  "name, content",
  [
    ("config.json", "{"),
    ("preprocessor_config.json", "{"),
    ("tokenizer.json", ""),
    ("tokenizer.json", "{"),
    ("tokenizer.json", '{"version": "1.0"}'),
    ("tokenizer_config.json", "{"),
    ("tokenizer_config.json", '{"model_max_length": "x"}'),
    ("tokenizer_config.json", '{"unk_token": ""}'),
    ("tokenizer_config.json", '{"eos_token": 5}'),
  ],
)
def test_broken_files(changed, name, content):
  (changed / name).write_text(content)
  with pytest.raises(UserError) as error:
    hub.load(changed)
  assert str(changed) in str(error.value)


def test_tokenizer_of_a_larger_model(changed):
  raw = json.loads((changed / "config.json").read_text())
  ids = dict.fromkeys(small_models.IDS, 7)
  text = raw["text_config"] | {"vocab_size": 200}
  edit(changed / "config.json", text_config=text, **ids)
  (changed / "generation_config.json").unlink()
  message = "tokenizer has 263 entries, the model only 200; they don't belong"
  with pytest.raises(UserError, match=message):
    hub.load(changed)


def test_weights_of_another_model(changed):
  """Of another family, another depth, or with another head."""
  file = changed / "config.json"
  raw = json.loads(file.read_text())
  edit(file, text_config=raw["text_config"] | {"num_hidden_layers": 2})
  with pytest.raises(UserError, match=r"have: model\.layers\.2\.input_layer"):
    hub.load(changed)
  file.write_text(json.dumps(raw | {"tie_word_embeddings": False}))
  with pytest.raises(UserError, match=r"missing tensors: lm_head\.weight;"):
    hub.load(changed)


# No code of a directory is run.

# Leaves a file where it is imported.
CODE = "import pathlib\npathlib.Path({!r}).touch()\n"


def test_no_code_is_run(changed, model, tmp_path):
  ran = tmp_path / "ran"
  kinds = ("Config", "Model", "Tokenizer", "Processor")
  classes = "".join(f"class X{kind}: pass\n" for kind in kinds)
  (changed / "x.py").write_text(CODE.format(str(ran)) + classes)
  edits = {
    "config.json": {
      "architectures": ["XModel"],
      "auto_map": {
        "AutoConfig": "x.XConfig",
        "AutoModel": "x.XModel",
        "AutoModelForCausalLM": "x.XModel",
      },
    },
    "tokenizer_config.json": {
      "tokenizer_class": "XTokenizer",
      "auto_map": {"AutoTokenizer": ["x.XTokenizer", "x.XTokenizer"]},
      "trust_remote_code": True,
    },
    "preprocessor_config.json": {
      "processor_class": "XProcessor",
      "image_processor_type": "XProcessor",
      "auto_map": {
        "AutoProcessor": "x.XProcessor",
        "AutoImageProcessor": "x.XProcessor",
      },
    },
  }
  edits["video_preprocessor_config.json"] = edits["preprocessor_config.json"]
  for name, changes in edits.items():
    edit(changed / name, **changes)
  loaded = hub.load(changed)
  assert_same(loaded.params, model.params)
  chats = small_models.conversations()
  assert_same(loaded.processor(chats), model.processor(chats))
  assert not ran.exists()
  # It would have left its mark.
  runpy.run_path(str(changed / "x.py"))
  assert ran.exists()


# Found.

COMMITS = {"main": "1" * 40, "other": "2" * 40, "v1.0": "3" * 40}


def put_snapshot(cache, name, revision, files):
  """Files of a repository as huggingface_hub lays them out."""
  root = cache / f"models--{name.replace('/', '--')}"
  commit = COMMITS[revision]
  snapshot = root / "snapshots" / commit
  for folder in (root / "refs", root / "blobs", snapshot):
    folder.mkdir(parents=True, exist_ok=True)
  (root / "refs" / revision).write_text(commit)
  for file in files:
    blob = root / "blobs" / f"{commit[0]}{file.name}"
    shutil.copy(file, blob)
    (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
  return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache of the hub, which can't be reached."""
  path = tmp_path / "hub"
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  return path


def test_a_hub_id_is_found_in_the_cache(cache, directory, model):
  """All that is needed where the hub can't be reached."""
  files = list(directory.iterdir())
  snapshot = put_snapshot(cache, "owner/name", "main", files)
  assert directory_lib.find("owner/name") == snapshot
  assert_same(hub.load("owner/name").params, model.params)


def test_a_revision_is_found_in_the_cache(cache):
  """A branch, a tag or a commit; the folder is named by the commit."""
  paths = {
    revision: put_snapshot(cache, "owner/a.name-x_1", revision, [])
    for revision in COMMITS
  }
  assert directory_lib.find("owner/a.name-x_1").name == COMMITS["main"]
  for revision, path in paths.items():
    for pinned in (revision, COMMITS[revision]):
      found = directory_lib.find(f"owner/a.name-x_1@{pinned}")
      assert found == path
      assert found.name == COMMITS[revision]
  refs = path.parents[1] / "refs" / "pr"
  refs.mkdir()
  (refs / "7").write_text(COMMITS["v1.0"])
  assert directory_lib.find("owner/a.name-x_1@pr/7") == paths["v1.0"]


@pytest.mark.parametrize(
  "name",
  [
    "owner/other",
    "owner/name@other",
    "owner/name@1111111",
    "owner/name@" + "9" * 40,
    "owner/na--me",
  ],
)
def test_a_hub_id_that_is_not_in_the_cache(cache, name):
  """One line that names it."""
  put_snapshot(cache, "owner/name", "main", [])
  with pytest.raises(
    UserError, match=f"couldn't get {name} from the hub:"
  ) as e:
    hub.load(name)
  assert f"found no directory {name} and" in str(e.value)
  assert "\n" not in str(e.value)


def test_a_directory_comes_before_a_hub_id(tmp_path, cache, monkeypatch):
  put_snapshot(cache, "owner/name", "main", [])
  path = tmp_path / "owner" / "name"
  path.mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  for name in ("owner/name", path):
    assert directory_lib.find(name).resolve() == path.resolve()


@pytest.mark.parametrize(
  "name",
  ["nowhere", "a/b/c", "/a/b", "../a", "a/b@", "a b/c", "hf://a/b", "./file"],
)
def test_missing_directory(tmp_path, monkeypatch, name):
  """What can't be a hub id isn't looked for there; a file is no directory."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").touch()

  def download(*args, **kwargs):
    raise AssertionError(f"was to download {args}")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  with pytest.raises(UserError) as error:
    hub.load(name)
  message = f"expected a model directory, found none at {name}; pass a"
  assert str(error.value).startswith(message)
  assert "Qwen/Qwen2.5-VL-3B-Instruct" in str(error.value)


def test_only_what_is_read_is_downloaded(cache, monkeypatch):
  """Neither pickles nor code."""
  asked = {}

  def download(repository, **options):
    asked.update(options, repository=repository)
    return str(cache)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert directory_lib.find("owner/name@v1.0") == cache
  assert (asked["repository"], asked["revision"]) == ("owner/name", "v1.0")
  files = [
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "chat_template.jinja",
    "tokenizer.json",
    "merges.txt",
    "pytorch_model.bin",
    "modeling_x.py",
    "optimizer.pt",
  ]
  kept = huggingface_hub.utils.filter_repo_objects(
    files, allow_patterns=asked["allow_patterns"]
  )
  assert list(kept) == files[:5]


@pytest.mark.parametrize(
  "error", [RuntimeError("proxy: 403\nForbidden"), OSError("no route")]
)
def test_a_hub_that_cannot_be_reached(monkeypatch, error):
  """Whatever its HTTP client raises; in one line."""

  def download(*args, **kwargs):
    raise error

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  with pytest.raises(UserError, match="couldn't get owner/name .*: ") as found:
    directory_lib.find("owner/name")
  assert "\n" not in str(found.value)
  assert str(error).split()[0] in str(found.value)


def test_a_template_file_without_a_template(changed):
  (changed / "chat_template.jinja").unlink()
  (changed / "chat_template.json").write_text("{}")
  with pytest.raises(UserError, match="expected a chat template in"):
    hub.load(changed)


@pytest.mark.parametrize("content", ['{"chat_template": 5}', '["x"]'])
def test_a_template_that_is_no_text(changed, content):
  (changed / "chat_template.jinja").unlink()
  (changed / "chat_template.json").write_text(content)
  with pytest.raises(UserError, match=r"chat_template\.json: expected a ") as e:
    hub.load(changed)
  assert str(changed) in str(e.value)


def test_a_failing_template_is_named_by_its_file(changed):
  (changed / "chat_template.jinja").write_text("{{ 1 / 0 }}")
  processor = hub.load(changed).processor
  with pytest.raises(UserError, match=r"copy/chat_template\.jinja to write"):
    processor(small_models.conversations())


@pytest.mark.parametrize(
  "name", ["tokenizer.json", "chat_template.jinja", "added_tokens.json"]
)
def test_pipes_are_not_opened(changed, name):
  """Where they would wait for a writer."""
  (changed / name).unlink(missing_ok=True)
  os.mkfifo(changed / name)
  with pytest.raises(UserError, match=f"{name} is not readable: expected a fi"):
    hub.load(changed)


def test_an_adapter_is_not_written_over(model, tmp_path):
  """The folder would still be an adapter's."""
  (tmp_path / "adapter_config.json").write_text("{}")
  with pytest.raises(UserError, match="found a LoRA adapter in .*; choose"):
    hub.save(model, tmp_path)
  assert os.listdir(tmp_path) == ["adapter_config.json"]
