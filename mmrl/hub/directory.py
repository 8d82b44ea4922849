"""Model directories in the Hugging Face layout, read and written."""

import dataclasses
import pathlib
import re

from etils import epath
import huggingface_hub

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.hub import adapters, config_json, weights
from mmrl.hub.tokens import ending
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor
from mmrl.types import PyTree

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")


@dataclasses.dataclass(frozen=True)
class Model:
  """Contents of a model directory.

  Attributes:
    config: the architecture.
    params: the parameters.
    processor: tokenizer, chat template, picture and video settings.
  """

  config: ModelConfig
  params: PyTree
  processor: Processor


def load(
  path: storage.Name,
  *,
  dtype: str = "float32",
  placement: weights.Placement | None = None,
  adapter: storage.Name | None = None,
) -> Model:
  """Loads a model from a directory, the hub or the library.

  Nothing in a model directory is run: there is no `trust_remote_code`.

  Args:
    path: directory (local, or gs://) in the Hugging Face layout with
      config.json, safetensors (one file, or shards and their index),
      tokenizer.json, a chat template and preprocessor_config.json; or a hub
      id "owner/name", of which "owner/name@revision" pins a commit, branch or
      tag; or "tiny", the model that ships with the library.
    dtype: type of the parameters.
    placement: see `weights.load_params`.
    adapter: directory, or hub id, of a LoRA adapter of this model in PEFT's
      format; its pairs stand beside the kernels, in float32.

  Returns:
    The model; computation is float32 unless `config.dtype` is changed.

  Raises:
    UserError: naming the file or tensor that is wrong.
  """
  name, path = str(path), find(path)
  config = config_json.read(path)
  if adapter is not None:
    config = with_adapter(config, name, adapter)
  processor = Processor.load(path, config)
  params = weights.load_params(path, config, dtype=dtype, placement=placement)
  if adapter is not None:
    pairs = adapters.load(find(adapter), config, placement)
    params = parameters.merge(parameters.flat(params), pairs)
  return Model(config, params, processor)


def with_adapter(
  base: ModelConfig, name: str, adapter: storage.Name
) -> ModelConfig:
  """Returns the architecture of a model with an adapter; see `load`.

  Args:
    base: architecture of the model, whose directory or hub id is `name`.
    name: see there.
    adapter: see `load`.

  Raises:
    UserError: if it isn't an adapter of that model, or can't be computed.
  """
  lora = adapters.read(find(adapter), base, name)
  return dataclasses.replace(base, lora=lora)


def find(path: storage.Name) -> epath.Path:
  """Finds the directory of a model, see `load`; downloads a hub id's files.

  They are kept in the cache of huggingface_hub, which is all that is needed
  where the hub can't be reached. The folder there is named by the commit, so
  that a run can record what "main" was.
  """
  name = str(path)
  if name == "tiny":
    return tiny_path()
  try:
    if storage.is_place(name) and storage.is_dir(name):
      return storage.path(name)
  except OSError as error:
    raise UserError(
      f"expected a model directory, couldn't reach {path}: {error}"
    ) from error
  if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", name):
    raise UserError(
      f"expected a model directory, found none at {path}; pass a directory in"
      " the Hugging Face layout, 'tiny', or a hub id such as"
      " Qwen/Qwen2.5-VL-3B-Instruct"
    )
  repository, _, revision = name.partition("@")
  try:
    found = huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=_HUB_FILES
    )
  except Exception as error:  # Those of its HTTP client are of any kind.
    reason = " ".join(str(error).split())
    raise UserError(
      f"expected a model directory or a hub id, found no directory {path} and"
      f" couldn't get {name} from the hub: {reason:.200}; download it where"
      " there is a network, and pass its folder"
    ) from error
  return storage.path(found)


def published_name(path: storage.Name) -> str:
  """Returns the name by which others find a model: a hub id, or its folder."""
  name = str(path)
  if name != "tiny" and not storage.is_dir(name):
    return name.partition("@")[0]
  found = find(name)
  return str(found if storage.is_remote(found) else found.absolute())


def public_config(name: str) -> ModelConfig | None:
  """Reads a published model's architecture by its hub id, without the hub.

  Returns None if its config.json isn't among those that ship with the library.
  """
  stem = name.partition("@")[0].split("/")[-1].lower().removesuffix("-instruct")
  folder = pathlib.Path(__file__).parent / "public"
  folder /= re.sub("[.-]", "_", stem)
  return config_json.read(folder) if folder.is_dir() else None


def tiny_path() -> epath.Path:
  """Returns the directory of the small model that ships with the library."""
  return storage.path(pathlib.Path(__file__).parent / "tiny")


def is_tiny(config: ModelConfig) -> bool:
  """Tells whether a model is the one that ships with the library.

  One that was trained from it is, too: its sizes are the same.
  """
  tiny = config_json.read(tiny_path())
  return (config.text, config.vision) == (tiny.text, tiny.vision)


def save(
  model: Model,
  path: storage.Name,
  *,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a model directory that Transformers, vLLM and `load` read.

  An adapter is merged: W + scale A B, rounded to the type of W.

  Args:
    model: the model.
    path: the directory (local, or gs://); older weights in it stay complete
      until the new ones are.
    max_shard_bytes: see `weights.save_params`.

  Raises:
    UserError: if it can't be written.
  """
  path = storage.path(path)
  if json_files.is_there(path / adapters.CONFIG):
    raise UserError(
      f"expected to write a model to a folder of its own, found a LoRA adapter"
      f" in {path}; choose another folder"
    )
  try:
    with storage.errors(path):
      path.mkdir(parents=True, exist_ok=True)
      weights.save_params(
        model.params, model.config, path, max_shard_bytes=max_shard_bytes
      )
  except OSError as error:
    raise UserError(
      f"expected to write a model to {path}: {error}; make it writable or free"
      " some space"
    ) from error
  dtype = str(model.params["text"]["norm"]["scale"].dtype)
  model.processor.save(path)
  config = model.config
  ending.write(config.end_token_ids, config.pad_token_id, path)
  # Last, so that a directory that has it is complete.
  config_json.write(config, path, dtype)
