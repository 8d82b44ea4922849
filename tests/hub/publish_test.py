"""What is pushed to the hub, and what is refused, by a stub of its client."""

import json
import types

import huggingface_hub
from huggingface_hub import errors as hub_errors
import pytest
import yaml

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.hub import publish

NAME = "someone/model"


class Hub:
  """Stands for the hub: repositories by name, each with its files."""

  def __init__(self):
    self.repositories, self.calls, self.fails = {}, [], {}

  def __call__(self):
    return self

  def _reach(self, method):
    self.calls.append(method)
    if method in self.fails:
      raise self.fails[method]

  def whoami(self):
    self._reach("whoami")
    return {"name": "someone"}

  def add(self, name, files=(), private=False, **card):
    self.repositories[name] = types.SimpleNamespace(
      private=private,
      siblings=[types.SimpleNamespace(rfilename=file) for file in files],
      card_data=huggingface_hub.ModelCardData(**card) if card else None,
    )

  def model_info(self, name):
    self._reach("model_info")
    if name not in self.repositories:
      found = hub_errors.RepositoryNotFoundError
      raise found.__new__(found)
    return self.repositories[name]

  def create_repo(self, name, *, private, exist_ok):
    self._reach("create_repo")
    assert exist_ok
    if name not in self.repositories:
      self.add(name, private=private)
    return f"https://hub/{name}"

  def upload_folder(
    self, *, repo_id, folder_path, commit_message, delete_patterns
  ):
    self._reach("upload_folder")
    found = {one.rfilename for one in self.repositories[repo_id].siblings}
    new = {path.name: path.read_bytes() for path in folder_path.iterdir()}
    self.pushed, self.message = new, commit_message
    kept = (found - {*delete_patterns}) | {*new}
    self.add(repo_id, sorted(kept), self.repositories[repo_id].private)


@pytest.fixture
def hub(monkeypatch):
  found = Hub()
  monkeypatch.setattr(huggingface_hub, "HfApi", found)
  monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
  return found


@pytest.fixture
def folder(tmp_path):
  made = tmp_path / "made"
  made.mkdir()
  (made / "config.json").write_text("{}")
  (made / "model.safetensors").write_text("weights")
  return made


def card(**changes):
  config = config_lib.get_config()
  config.models.policy.path = "owner/base@main"
  config.data.train = {"name": "Files", "path": "/home/someone/data/a.jsonl"}
  config = changes.pop("config", config)
  return publish.Card(
    **{
      "step": 40,
      "best": "",
      "config": config.to_dict(),
      "base": "owner/base",
      "numbers": {
        "test/accuracy": (0.25, 0.75),
        "test/format": (0.5, None),
      },
      "adapter": False,
    }
    | changes
  )


def parts(text):
  """Metadata and page of a card."""
  if isinstance(text, bytes):
    text = text.decode()
  empty, metadata, page = text.split("---\n", 2)
  assert not empty
  return yaml.safe_load(metadata), page


def test_what_is_pushed(hub, folder):
  hub.add("owner/base", license="other", license_name="research")
  publish.check_ready(NAME, private=True)
  address = publish.push(folder, NAME, card(), private=True)
  assert address == f"https://hub/{NAME}"
  assert hub.repositories[NAME].private
  assert {*hub.pushed} == {"README.md", "config.json", "model.safetensors"}
  assert "40" in hub.message
  metadata, page = parts(hub.pushed["README.md"])
  assert metadata == {
    "base_model": "owner/base",
    "base_model_relation": "finetune",
    "library_name": "transformers",
    "license": "other",
    "license_name": "research",
    "pipeline_tag": "image-text-to-text",
    "tags": ["mmrl", "multimodal", "reinforcement-learning"],
  }
  for text in (
    "step 40 of 100, seed 0",
    "| test/accuracy | 0.25 | 0.75 |",
    "| test/format | 0.5 | – |",
    "The licence is that of [owner/base](https://hf.co/owner/base): research.",
    '"path": "a.jsonl"',
    f"--model {NAME} --image",
    "python -m mmrl.train",
  ):
    assert text in page, text
  assert "/home" not in page and "hf_secret" not in page


def test_the_config_of_a_card_runs_again(hub, folder):
  """Its two blocks, written to the files that it names."""
  config = config_lib.get_config()
  text = publish.write(card(config=config, base=""), NAME, {})
  blocks = text.split("```")
  (folder / "config.json").write_text(blocks[1].removeprefix("json\n"))
  (folder / "config.py").write_text(blocks[3].removeprefix("python\n"))
  space = {"__file__": str(folder / "config.py")}
  exec((folder / "config.py").read_text(), space)
  found = space["get_config"]()
  config_lib.check_fields(found)
  config.trackers = {}
  assert json.loads(found.to_json()) == json.loads(config.to_json())


def test_the_card_of_an_adapter(hub, folder):
  config = config_lib.get_config()
  config.data.train = {"name": "Files", "path": "hub:owner/data@train"}
  config.rollout = {**config.rollout.to_dict(), "name": "given"}
  written = publish.write(
    card(adapter=True, best="test/accuracy", config=config), NAME, {}
  )
  metadata, page = parts(written)
  assert metadata["library_name"] == "peft"
  assert metadata["base_model_relation"] == "adapter"
  assert metadata["datasets"] == ["owner/data"]
  assert metadata["tags"] == ["mmrl", "multimodal", "lora"]
  assert "license" not in metadata
  assert "its files don't say" in page and "best by test/accuracy" in page
  assert f"--model owner/base --adapter {NAME} --image" in page


@pytest.mark.parametrize("known", [True, False])
def test_the_licence_of_a_directory(hub, folder, tmp_path, known):
  base = tmp_path / "base"
  base.mkdir()
  if known:
    (base / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
  config = config_lib.get_config()
  config.models.policy.path = str(base)
  publish.push(folder, NAME, card(config=config, base=""), private=False)
  metadata, page = parts(hub.pushed["README.md"])
  assert metadata.get("license") == ("mit" if known else None)
  assert "base_model" not in metadata and str(tmp_path) not in page


def test_the_model_that_ships(hub, folder):
  publish.push(
    folder, NAME, card(config=config_lib.get_config(), base=""), private=False
  )
  assert parts(hub.pushed["README.md"])[0]["license"] == "apache-2.0"


def test_a_push_replaces_an_earlier_one(hub, folder):
  """Shards that aren't there any more go; what is somebody else's is kept."""
  shard = "model-00001-of-00002.safetensors"
  old = [".gitattributes", "config.json", shard, "model.safetensors.index.json"]
  hub.add(NAME, old)
  publish.push(folder, NAME, card(base=""), private=False)
  files = {one.rfilename for one in hub.repositories[NAME].siblings}
  assert files == {
    *(".gitattributes", "README.md", "config.json", "model.safetensors")
  }
  hub.add(NAME, ["README.md", "paper.pdf"])
  with pytest.raises(UserError, match="1 other files in .*'paper.pdf' first"):
    publish.push(folder, NAME, card(base=""), private=False)
  assert hub.calls.count("upload_folder") == 1


@pytest.mark.parametrize(
  "name", ["model", "a/b/c", "someone/", "some one/x", "a/b@main", "x/..", ""]
)
def test_a_name_that_is_none(hub, name):
  with pytest.raises(UserError, match="expected --push=USER/NAME") as error:
    publish.check_ready(name, private=False)
  assert "\n" not in str(error.value) and not hub.calls


def test_no_token(hub, monkeypatch):
  monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
  with pytest.raises(UserError, match="token .* found none; run hf auth login"):
    publish.check_ready(NAME, private=False)
  assert not hub.calls


def test_a_public_repository_does_not_become_private(hub):
  hub.add(NAME)
  publish.check_ready(NAME, private=False)
  with pytest.raises(UserError, match="--private .* which is public"):
    publish.check_ready(NAME, private=True)


@pytest.mark.parametrize(
  "method", ["whoami", "model_info", "create_repo", "upload_folder"]
)
def test_what_the_hub_refuses_is_one_line(hub, folder, method):
  hub.fails[method] = OSError("403 Forbidden:\nno rights")
  with pytest.raises(
    UserError, match="found: 403 Forbidden: no rights; see to the network"
  ) as error:
    publish.check_ready(NAME, private=False)
    publish.push(folder, NAME, card(), private=False)
  assert "\n" not in str(error.value) and NAME in str(error.value)
