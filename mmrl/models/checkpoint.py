"""Model directories in the Hugging Face layout, read and written."""

import dataclasses
import pathlib
import re

import huggingface_hub
import jax

from mmrl.errors import UserError
from mmrl.models import config_json, weights
from mmrl.models.config import ModelConfig
from mmrl.models.processor import Processor
from mmrl.types import PyTree

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")


@dataclasses.dataclass(frozen=True)
class Model:
  """What makes a model directory.

  Attributes:
    config: the architecture.
    params: the parameters.
    processor: tokenizer, chat template, picture and video settings.
  """

  config: ModelConfig
  params: PyTree
  processor: Processor


def load(
  path: str | pathlib.Path,
  *,
  dtype: str = "float32",
  placement: weights.Placement | None = None,
) -> Model:
  """Loads a model.

  Nothing in a model directory is run: there is no `trust_remote_code`.

  Args:
    path: directory in the Hugging Face layout with config.json, safetensors
      (one file, or shards and their index), tokenizer.json, a chat template
      and preprocessor_config.json; or a hub id "owner/name", of which
      "owner/name@revision" pins a commit, branch or tag; or "tiny", the model
      that ships with the library.
    dtype: type the parameters are held in.
    placement: see `weights.load_params`.

  Returns:
    The model; computation is float32 until `config.dtype` says otherwise.

  Raises:
    UserError: saying which file or tensor is wrong.
  """
  path = find(path)
  config = config_json.read(path)
  processor = Processor.load(path, config)
  params = weights.load_params(path, config, dtype=dtype, placement=placement)
  return Model(config, params, processor)


def find(path: str | pathlib.Path) -> pathlib.Path:
  """The directory of a model: see `load`. Downloads a hub id's files.

  They are kept in the cache of huggingface_hub, which is all that is needed
  where the hub can't be reached. The folder found there is named by the
  commit, so that a run can write down what "main" was.
  """
  name = str(path)
  if name == "tiny":
    return tiny_path()
  directory = pathlib.Path(path)
  if directory.is_dir():
    return directory
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
  return pathlib.Path(found)


def tiny_path() -> pathlib.Path:
  """Where the small model that ships with the library lies."""
  return pathlib.Path(__file__).parent / "tiny"


def save(
  model: Model,
  path: str | pathlib.Path,
  *,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a model directory that Transformers, vLLM and `load` read.

  Args:
    model: the model.
    path: the directory; older weights in it stay whole until the new ones
      are.
    max_shard_bytes: see `weights.save_params`.
  """
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  weights.save_params(
    model.params, model.config, path, max_shard_bytes=max_shard_bytes
  )
  dtype = str(jax.tree.leaves(model.params)[0].dtype)
  config_json.write(model.config, path, dtype)
  model.processor.save(path)
