"""Tensors of a model directory: names, files and headers, checked.

The safetensors library maps files by name, so from a store (`gs://`) they are
copied to the folder for temporary files (TMPDIR), one at a time.
"""

from collections.abc import Collection, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import re

from etils import epath
import safetensors

from mmrl import json_files, storage
from mmrl.errors import UserError, say
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_NUMBERED = r"-\d+-of-(\d+)\.safetensors$"
# As safetensors itself allows.
_MOST_HEADER = 100_000_000
# What files may hold.
STORED = ("F64", "F32", "F16", "BF16")
# Levels that other programs put around a whole model, as they save it.
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")
# Weights of other formats, which aren't read.
_OTHERS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5")
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Parameter that one stored tensor is read into.

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
  """Lists every tensor of a model by the name under which it is published.

  Those of an adapter aren't among them.
  """
  names = FAMILIES[config.family].tensors
  tensors = {}
  base = parameters.shapes(parameters.without_adapter(config))
  for ours, leaf in parameters.flat(base).items():
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
  """Removes from a tensor's name the levels that only some directories have."""
  name = name.removeprefix("language_model.")
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
  """Finds the files that hold a model's weights.

  Raises:
    UserError: if there are none, or more than one model's.
  """
  index, there = path / INDEX, storage.names(path)
  if INDEX not in there:
    _check_alone(path, there)
    return [path / FILE]
  names = json_files.read(index, "an index of weights").get("weight_map")
  if not isinstance(names, dict) or not all(
    isinstance(name, str) for name in names.values()
  ):
    raise UserError(
      f"{index}: expected a weight_map from tensors to files, found"
      f" {names!s:.80}; download the model's files again"
    )
  strays = [n for n in names.values() if not n or "/" in n or "\\" in n]
  if strays:
    raise UserError(
      f"{index}: expected names of files beside it, found {strays[0]!r:.80};"
      " download the model's files again"
    )
  files = [path / name for name in sorted(set(names.values()))]
  missing = [f.name for f in files if f.name not in there]
  if missing:
    raise UserError(
      f"{index} names {len(missing)} files that don't exist:"
      f" {', '.join(missing[:8]):.400}; download the model's files again"
    )
  if FILE in there and path / FILE not in files:
    raise UserError(
      f"{path}: expected one model's weights, found {FILE} and an {INDEX} of"
      f" {len(files)} other files; remove the older of the two"
    )
  return files


def _check_alone(path: epath.Path, there: Collection[str]) -> None:
  """Refuses a folder without an index whose weights aren't FILE alone."""
  shards = sorted(n for n in there if re.search(_NUMBERED, n))
  last = {int(m[1]) for n in shards if (m := re.search(_NUMBERED, n))}
  if FILE in there:
    if shards and last == {len(shards)}:
      raise UserError(
        f"{path}: expected one model's weights, found {FILE} and the shards"
        f" {shards[0]} to {shards[-1]}; remove the older of the two"
      )
    return
  advice = "download the model's files again"
  others = sorted(n for n in there if n.endswith(_OTHERS))
  found = sorted(n for n in there if n.endswith(".safetensors"))
  if shards:
    advice = f"add {INDEX}, which says what belongs together"
  elif found:
    advice = f"rename the file of the whole model to {FILE}"
  elif others:
    found = others
    advice = (
      "convert them with Transformers (save_pretrained), as pickles and"
      " formats of other programs aren't read"
    )
  listed = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
  raise UserError(
    f"expected safetensors weights at {path / FILE}, found"
    f" {listed[:400] or 'none'}; {advice}"
  )


@contextlib.contextmanager
def opened(file: epath.Path):
  with contextlib.ExitStack() as stack:
    try:
      json_files.check_regular(file)
      folder = stack.enter_context(storage.local(file.parent, [file.name]))
      name = os.fspath(folder / file.name)
      tensors = stack.enter_context(safetensors.safe_open(name, "numpy"))
    except UserError:
      raise
    except (OSError, safetensors.SafetensorError) as error:
      raise _unreadable(file, error) from error
    yield tensors


def _unreadable(file: epath.Path, error: Exception) -> UserError:
  if not storage.is_remote(file) and file.exists():
    with file.open("rb") as stream:
      # By its type in etils it may be text.
      if stream.read(len(_POINTER)) == _POINTER:  # type: ignore[comparison-overlap]
        return UserError(
          f"expected safetensors weights at {file}, found a pointer of Git LFS"
          " to them; run git lfs pull in the folder"
        )
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
  """Finds every tensor of the files, by canonical name, from their headers.

  A level that a program put around the whole model is left out, and said.
  """
  headers = {file: _headers(file) for file in files}
  keys = [key for header in headers.values() for key in header]
  wrapper = _wrapper(keys)
  if wrapper:
    where = files[0].parent
    say(f"{where}: weights are read without {wrapper!r} before their names")
  found: dict[str, Found] = {}
  for file, header in headers.items():
    for key, (shape, dtype) in header.items():
      name = canonical(key.removeprefix(wrapper))
      if name in found:
        raise UserError(
          f"{file}: expected each tensor once, found {key} in"
          f" {found[name].file.name}, too"
        )
      found[name] = Found(file, key, shape, dtype)
  return found


def _wrapper(keys: Sequence[str]) -> str:
  """Returns the levels of `_WRAPPERS` before all names, or an empty text."""
  found = ""
  while keys:
    for level in _WRAPPERS:
      if all(key.startswith(found + level) for key in keys):
        found += level
        break
    else:
      break
  return found


def check(
  path: epath.Path,
  wanted: Mapping[str, Tensor],
  found: Mapping[str, Found],
  tied: bool,
) -> None:
  """Checks names, types and shapes of all tensors.

  Raises:
    UserError: naming those that are missing, too many, or of another kind.
  """
  # A tied head may be stored all the same; see `weights.load_params`.
  extra = sorted(set(found) - set(wanted) - ({HEAD} if tied else set()))
  missing = sorted(set(wanted) - set(found))
  if any(".lora_" in found[name].key for name in extra):
    raise UserError(
      f"{path}: expected a whole model, found a LoRA adapter's, such as"
      f" {found[extra[0]].key:.200}; merge it into its base model (PEFT:"
      " merge_and_unload) and save that"
    )
  more = "tensors that the model doesn't have"
  if missing and extra:
    beside = f"; beside {len(extra)} {more}: {some(extra)}"
    _refuse(path, "missing tensors", missing, beside)
  _refuse(path, "missing tensors", missing)
  _refuse(path, more, extra)
  for name in {*wanted, HEAD} & set(found):
    here = found[name]
    if here.dtype not in STORED:
      raise UserError(
        f"{here.file}: expected weights of type {', '.join(STORED)}, found"
        f" {here.dtype} in {here.key}; use the unquantised model"
      )
  misshaped = [
    f"{found[name].key} is {found[name].shape} in the file, {tensor.shape} in"
    " the model"
    for name, tensor in wanted.items()
    if found[name].shape != tensor.shape
  ]
  _refuse(path, "misshaped tensors", misshaped)


def some(names: Sequence[str], most: int = 3) -> str:
  """Lists the first of many names for a message."""
  shown = [f"{name:.200}" for name in names[:most]]
  return ", ".join(shown + ["..."] * (len(names) > most))


def _refuse(
  path: epath.Path, what: str, names: list[str], beside: str = ""
) -> None:
  if names:
    raise UserError(
      f"{path}: found {len(names)} {what}: {some(names, 8)}{beside}; expected"
      " exactly the tensors of its config.json"
    )
