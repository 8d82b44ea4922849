"""The Hugging Face directory layout, read and written."""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mmrl.errors import UserError
from mmrl.models import config as config_lib
from mmrl.models import vlm
from mmrl.models.config import ModelConfig
from mmrl.models.processor import Processor
from mmrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class Model:
  """What `load` returns: the three things that make a model directory."""

  config: ModelConfig
  params: PyTree
  processor: Processor


# Our names on the left, Hugging Face's on the right; "{}" is the layer. The
# leaf names follow a rule: kernel, scale and embedding are "weight", and
# kernels are transposed.
_TOP = {
  "vision/patch_embed": "visual.patch_embed.proj",
  "vision/merger/norm": "visual.merger.ln_q",
  "vision/merger/fc1": "visual.merger.mlp.0",
  "vision/merger/fc2": "visual.merger.mlp.2",
  "text/embed": "model.embed_tokens",
  "text/norm": "model.norm",
  "text/head": "lm_head",
}
_STACKED = {
  "vision/blocks": (
    "visual.blocks.{}",
    {
      "norm1": "norm1",
      "norm2": "norm2",
      "qkv": "attn.qkv",
      "proj": "attn.proj",
      "mlp/gate": "mlp.gate_proj",
      "mlp/up": "mlp.up_proj",
      "mlp/down": "mlp.down_proj",
    },
  ),
  "text/layers": (
    "model.layers.{}",
    {
      "input_norm": "input_layernorm",
      "mlp_norm": "post_attention_layernorm",
      "q": "self_attn.q_proj",
      "k": "self_attn.k_proj",
      "v": "self_attn.v_proj",
      "o": "self_attn.o_proj",
      "mlp/gate": "mlp.gate_proj",
      "mlp/up": "mlp.up_proj",
      "mlp/down": "mlp.down_proj",
    },
  ),
}


def _hf_name(path: str) -> tuple[str, bool]:
  """Hugging Face name of one of our leaves, and whether layers are stacked."""
  module, leaf = path.rsplit("/", 1)
  suffix = ".bias" if leaf == "bias" else ".weight"
  for root, (template, names) in _STACKED.items():
    if module.startswith(root + "/"):
      return f"{template}.{names[module[len(root) + 1 :]]}{suffix}", True
  return _TOP[module] + suffix, False


def _canonical(name: str) -> str:
  """Newer checkpoints nest both halves under `model`."""
  name = name.replace("model.language_model.", "model.", 1)
  return name.replace("model.visual.", "visual.", 1)


def path_name(path) -> str:
  """A pytree path as `a/b/c`."""
  return "/".join(str(key.key) for key in path)


def abstract_params(config: ModelConfig) -> PyTree:
  """Shapes of the parameters, without allocating any."""
  return jax.eval_shape(lambda: vlm.init(jax.random.key(0), config))


def _to_hf_array(path: str, array: np.ndarray, config: ModelConfig):
  if path.endswith("/kernel"):
    array = array.T
  if path.startswith("vision/patch_embed"):
    vision = config.vision
    size = vision.patch_size
    array = array.reshape(
      -1, vision.in_channels, vision.temporal_patch_size, size, size
    )
  return np.ascontiguousarray(array)


def _from_hf_array(path: str, array: np.ndarray) -> np.ndarray:
  if path.startswith("vision/patch_embed"):
    array = array.reshape(array.shape[0], -1)
  return array.T if path.endswith("/kernel") else array


def _open_tensors(path: pathlib.Path, stack) -> dict[str, Callable]:
  """Canonical tensor name -> function that reads it, over all files."""
  index = path / "model.safetensors.index.json"
  names = ["model.safetensors"]
  if index.exists():
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
  tensors = {}
  for name in names:
    try:
      file = stack.enter_context(safetensors.safe_open(path / name, "numpy"))
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(
        f"expected safetensors weights at {path / name}: {error}; download"
        " the model's files again"
      ) from error
    for key in file.keys():  # noqa: SIM118 (not a dict)
      tensors[_canonical(key)] = lambda file=file, key=key: file.get_tensor(key)
  return tensors


def load_params(
  path: str | pathlib.Path, config: ModelConfig, *, dtype: str = "float32"
) -> PyTree:
  """Reads the weights of a model directory.

  Args:
    path: the directory.
    config: its architecture.
    dtype: type the parameters are held in.

  Raises:
    UserError: if a file is missing, or tensors are missing, extra or of the
      wrong shape: both sides are listed.
  """
  path = pathlib.Path(path)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(
    abstract_params(config)
  )
  with contextlib.ExitStack() as stack:
    tensors = _open_tensors(path, stack)
    wanted: dict[str, list[str]] = {}
    for leaf_path, leaf in leaves:
      name, stacked = _hf_name(path_name(leaf_path))
      count = leaf.shape[0] if stacked else 1
      wanted[path_name(leaf_path)] = [name.format(i) for i in range(count)]
    named = {name for names in wanted.values() for name in names}
    # A tied head may be stored all the same; it is the embedding table.
    extra = set(tensors) - named
    extra -= {"lm_head.weight"} if config.tie_word_embeddings else set()
    _refuse(path, "missing tensors", sorted(named - set(tensors)))
    _refuse(path, "tensors that the model doesn't have", sorted(extra))
    loaded, misshaped = [], []
    for leaf_path, leaf in leaves:
      ours = path_name(leaf_path)
      arrays = []
      for name in wanted[ours]:
        array = _from_hf_array(ours, tensors[name]())
        shape = leaf.shape[1:] if _hf_name(ours)[1] else leaf.shape
        if array.shape != shape:
          misshaped.append(
            f"{name} is {array.shape} in the file, {shape} in the model"
          )
        arrays.append(array)
      if not misshaped:
        stacked = np.stack(arrays) if _hf_name(ours)[1] else arrays[0]
        loaded.append(jnp.asarray(stacked, dtype))
    _refuse(path, "misshaped tensors", misshaped)
  return jax.tree_util.tree_unflatten(treedef, loaded)


def _refuse(path: pathlib.Path, what: str, names: list[str]) -> None:
  if names:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise UserError(
      f"{path}: found {len(names)} {what}: {shown}; expected exactly the"
      " tensors of its config.json"
    )


def load(path: str | pathlib.Path, *, dtype: str = "float32") -> Model:
  """Loads a model directory in the Hugging Face layout.

  Args:
    path: directory with config.json, model.safetensors (or shards and their
      index), tokenizer.json, a chat template and preprocessor_config.json.
      The name "tiny" is the model that ships with the library.
    dtype: type the parameters are held in.

  Returns:
    The model; computation is float32 until `config.dtype` says otherwise.

  Raises:
    UserError: saying which file or tensor is wrong.
  """
  path = tiny_path() if str(path) == "tiny" else pathlib.Path(path)
  if not path.is_dir():
    raise UserError(
      f"expected a model directory, found none at {path}; pass a directory in"
      " the Hugging Face layout, or 'tiny'"
    )
  config = config_lib.from_hf(path)
  processor = Processor.load(path, config)
  return Model(config, load_params(path, config, dtype=dtype), processor)


def tiny_path() -> pathlib.Path:
  """Where the small model that ships with the library lies."""
  return pathlib.Path(__file__).parent / "tiny"


def save(model: Model, path: str | pathlib.Path) -> None:
  """Writes a model directory that Transformers, vLLM and `load` read.

  Weights are written to a temporary file first, so that an interrupted save
  leaves the old ones whole.
  """
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  tensors = {}
  leaves, _ = jax.tree_util.tree_flatten_with_path(model.params)
  for leaf_path, leaf in leaves:
    ours, array = path_name(leaf_path), np.asarray(leaf)
    name, stacked = _hf_name(ours)
    for i, part in enumerate(array if stacked else [array]):
      tensors[name.format(i)] = _to_hf_array(ours, part, model.config)
  dtype = str(np.asarray(leaves[0][1]).dtype)
  with tempfile.NamedTemporaryFile(dir=path, delete=False) as file:
    file.write(safetensors.numpy.save(tensors, {"format": "pt"}))
  os.chmod(file.name, 0o644)
  os.replace(file.name, path / "model.safetensors")
  # The index of shards that were there before would hide the new file.
  (path / "model.safetensors.index.json").unlink(missing_ok=True)
  raw = json.dumps(config_lib.to_hf(model.config, dtype), indent=2) + "\n"
  (path / "config.json").write_text(raw)
  model.processor.save(path)
