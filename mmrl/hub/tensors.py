"""Tensors of a model directory: names, files and headers, checked.

The safetensors library maps files by name, so from a store (`gs://`) they are
copied to the folder for temporary files (TMPDIR), one at a time.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os

from etils import epath
import jax
import safetensors

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# As safetensors itself allows.
_MOST_HEADER = 100_000_000
# What files may hold.
_STORED = ("F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Parameter that one tensor of a checkpoint is read into.

  Attributes:
    leaf: path of the parameter.
    layer: its place on axis 0 of a stacked parameter, else None.
    shape: in the file.
  """

  leaf: str
  layer: int | None
  shape: tuple[int, ...]


def _file_shape(leaf: str, shape: tuple[int, ...], config: ModelConfig):
  """Returns the shape of a parameter in the file.

  Kernels are stored transposed, and the patch embedding as a 3D filter.
  """
  if leaf == "vision/patch_embed/kernel":
    tower = config.vision
    side = tower.patch_size
    return shape[1], tower.in_channels, tower.temporal_patch_size, side, side
  return shape[::-1] if leaf.endswith("/kernel") else shape


def of_model(config: ModelConfig) -> dict[str, Tensor]:
  """Lists every tensor of a model by the name under which it is published."""
  names = FAMILIES[config.family].tensors
  tensors = {}
  leaves = jax.tree_util.tree_flatten_with_path(parameters.shapes(config))[0]
  for path, leaf in leaves:
    ours = parameters.path_name(path)
    module, kind = ours.rsplit("/", 1)
    name = names[module] + (".bias" if kind == "bias" else ".weight")
    if "{}" not in name:
      shape = _file_shape(ours, leaf.shape, config)
      tensors[name] = Tensor(ours, None, shape)
      continue
    shape = _file_shape(ours, leaf.shape[1:], config)
    for layer in range(leaf.shape[0]):
      tensors[name.format(layer)] = Tensor(ours, layer, shape)
  return tensors


def canonical(name: str) -> str:
  """Removes from a tensor's name the levels that only some checkpoints have."""
  name = name.replace("model.language_model.", "model.", 1)
  return name.replace("model.visual.", "visual.", 1)


@dataclasses.dataclass(frozen=True)
class Found:
  """A tensor that a file holds."""

  file: epath.Path
  key: str
  shape: tuple[int, ...]
  dtype: str


def files(path: epath.Path) -> list[epath.Path]:
  index = path / INDEX
  if not index.exists():
    return [path / FILE]
  names = json_files.read(index, "an index of weights").get("weight_map")
  if not isinstance(names, dict) or not all(
    isinstance(name, str) for name in names.values()
  ):
    raise UserError(
      f"{index}: expected a weight_map from tensors to files, found"
      f" {names!s:.80}; download the model's files again"
    )
  files = [path / name for name in sorted(set(names.values()))]
  there = storage.names(path)
  missing = [f.name for f in files if f.name not in there]
  if missing:
    raise UserError(
      f"{index} names {len(missing)} files that don't exist:"
      f" {', '.join(missing[:8])}; download the model's files again"
    )
  return files


@contextlib.contextmanager
def opened(file: epath.Path):
  with contextlib.ExitStack() as stack:
    try:
      folder = stack.enter_context(storage.local(file.parent, [file.name]))
      name = os.fspath(folder / file.name)
      tensors = stack.enter_context(safetensors.safe_open(name, "numpy"))
    except (OSError, safetensors.SafetensorError) as error:
      raise _unreadable(file, error) from error
    yield tensors


def _unreadable(file: epath.Path, error: Exception) -> UserError:
  return UserError(
    f"expected safetensors weights at {file}: {error}; download the model's"
    " files again"
  )


def _headers(file: epath.Path) -> dict[str, tuple[tuple[int, ...], str]]:
  """Reads shape and type of every tensor of a file."""
  if not storage.is_remote(file):
    with opened(file) as tensors:
      found = {}
      for key in tensors.keys():  # noqa: SIM118 (not a dict)
        header = tensors.get_slice(key)
        found[key] = tuple(header.get_shape()), header.get_dtype()
      return found
  # The file itself is copied when its tensors are read.
  try:
    with file.open("rb") as stream:
      # By its type in etils it may be text.
      size = int.from_bytes(stream.read(8), "little")  # type: ignore[arg-type]
      if not 0 < size <= _MOST_HEADER:
        raise ValueError("its header has no sensible size")
      raw = json.loads(stream.read(size))
    raw.pop("__metadata__", None)
    return {k: (tuple(v["shape"]), v["dtype"]) for k, v in raw.items()}
  except Exception as error:  # The store's client raises any kind.
    raise _unreadable(file, error) from error


def scan(files: list[epath.Path]) -> dict[str, Found]:
  """Finds every tensor of the files, by canonical name, from their headers."""
  found: dict[str, Found] = {}
  for file in files:
    for key, (shape, dtype) in _headers(file).items():
      name = canonical(key)
      if name in found:
        raise UserError(
          f"{file}: expected each tensor once, found {key} in"
          f" {found[name].file.name}, too"
        )
      found[name] = Found(file, key, shape, dtype)
  return found


def check(
  path: epath.Path,
  wanted: Mapping[str, Tensor],
  found: Mapping[str, Found],
  tied: bool,
) -> None:
  # A tied head may be stored all the same; it is the embedding table.
  extra = set(found) - set(wanted) - ({"lm_head.weight"} if tied else set())
  _refuse(path, "missing tensors", sorted(set(wanted) - set(found)))
  _refuse(path, "tensors that the model doesn't have", sorted(extra))
  for name in wanted:
    here = found[name]
    if here.dtype not in _STORED:
      raise UserError(
        f"{here.file}: expected weights of type {', '.join(_STORED)}, found"
        f" {here.dtype} in {here.key}; use the unquantised model"
      )
  misshaped = [
    f"{found[name].key} is {found[name].shape} in the file, {tensor.shape} in"
    " the model"
    for name, tensor in wanted.items()
    if found[name].shape != tensor.shape
  ]
  _refuse(path, "misshaped tensors", misshaped)


def _refuse(path: epath.Path, what: str, names: list[str]) -> None:
  if names:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise UserError(
      f"{path}: found {len(names)} {what}: {shown}; expected exactly the"
      " tensors of its config.json"
    )
