"""Parameters from and to safetensors files in the Hugging Face layout.

Reading goes file by file and tensor by tensor, straight to where each
parameter will live: of the host's memory it takes one file (mapped) and one
tensor, whatever the size of the model. Nothing is placed before the names,
types and shapes of all tensors in all files have been checked.

The library maps files by name, so from a store (`gs://`) they are copied to
the folder for temporary files (TMPDIR), one at a time.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import tempfile

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
import numpy as np
import safetensors
import safetensors.numpy

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES
from mmrl.types import PyTree

# (path of a leaf as "a/b/c", its shape) -> where it lives.
Placement = Callable[[str, tuple[int, ...]], Sharding]

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = "model-{:05}-of-{:05}.safetensors"
# As safetensors itself allows.
_MOST_HEADER = 100_000_000
# What files may hold, and parameters may be held in.
_STORED = ("F32", "F16", "BF16")
_DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Where one tensor of a checkpoint goes.

  Attributes:
    leaf: path of the parameter.
    layer: its place on axis 0 of a stacked parameter, else None.
    shape: in the file.
  """

  leaf: str
  layer: int | None
  shape: tuple[int, ...]


def _file_shape(leaf: str, shape: tuple[int, ...], config: ModelConfig):
  """Kernels are stored transposed, and the patch embedding as a 3D filter."""
  if leaf == "vision/patch_embed/kernel":
    tower = config.vision
    side = tower.patch_size
    return shape[1], tower.in_channels, tower.temporal_patch_size, side, side
  return shape[::-1] if leaf.endswith("/kernel") else shape


def _tensors(config: ModelConfig) -> dict[str, _Tensor]:
  """Every tensor of a model by the name under which it is published."""
  names = FAMILIES[config.family].tensors
  tensors = {}
  leaves = jax.tree_util.tree_flatten_with_path(parameters.shapes(config))[0]
  for path, leaf in leaves:
    ours = parameters.path_name(path)
    module, kind = ours.rsplit("/", 1)
    name = names[module] + (".bias" if kind == "bias" else ".weight")
    if "{}" not in name:
      shape = _file_shape(ours, leaf.shape, config)
      tensors[name] = _Tensor(ours, None, shape)
      continue
    shape = _file_shape(ours, leaf.shape[1:], config)
    for layer in range(leaf.shape[0]):
      tensors[name.format(layer)] = _Tensor(ours, layer, shape)
  return tensors


def canonical(name: str) -> str:
  """A tensor's name without the levels that only some checkpoints have."""
  name = name.replace("model.language_model.", "model.", 1)
  return name.replace("model.visual.", "visual.", 1)


@dataclasses.dataclass(frozen=True)
class _Found:
  """A tensor that a file holds."""

  file: epath.Path
  key: str
  shape: tuple[int, ...]
  dtype: str


def _files(path: epath.Path) -> list[epath.Path]:
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
def _open(file: epath.Path):
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
  """Shape and type of every tensor of a file."""
  if not storage.is_remote(file):
    with _open(file) as tensors:
      found = {}
      for key in tensors.keys():  # noqa: SIM118 (not a dict)
        header = tensors.get_slice(key)
        found[key] = tuple(header.get_shape()), header.get_dtype()
      return found
  # The file itself is copied when its tensors are read.
  try:
    with file.open("rb") as stream:
      # etils says that it may be text.
      size = int.from_bytes(stream.read(8), "little")  # type: ignore[arg-type]
      if not 0 < size <= _MOST_HEADER:
        raise ValueError("its header has no sensible size")
      raw = json.loads(stream.read(size))
    raw.pop("__metadata__", None)
    return {k: (tuple(v["shape"]), v["dtype"]) for k, v in raw.items()}
  except Exception as error:  # The store's client raises any kind.
    raise _unreadable(file, error) from error


def _scan(files: list[epath.Path]) -> dict[str, _Found]:
  """Every tensor of the files, by canonical name; reads only the headers."""
  found: dict[str, _Found] = {}
  for file in files:
    for key, (shape, dtype) in _headers(file).items():
      name = canonical(key)
      if name in found:
        raise UserError(
          f"{file}: expected each tensor once, found {key} in"
          f" {found[name].file.name}, too"
        )
      found[name] = _Found(file, key, shape, dtype)
  return found


def _check(
  path: epath.Path,
  wanted: Mapping[str, _Tensor],
  found: Mapping[str, _Found],
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


def load_params(
  path: storage.Name,
  config: ModelConfig,
  *,
  dtype: str = "float32",
  placement: Placement | None = None,
) -> PyTree:
  """Reads the weights of a model directory.

  Args:
    path: directory with model.safetensors, or with shards and their index;
      tensors are named as the hub names them, or nested under `model`.
    config: its architecture.
    dtype: type the parameters are held in.
    placement: where each parameter lives; the first device if None. A process
      reads only the parts that its own devices hold.

  Raises:
    UserError: if a file is missing, tensors are missing, extra, of the wrong
      shape or not floating point, or `dtype` isn't. Nothing has been placed
      then.
  """
  path = storage.path(path)
  if dtype not in _DTYPES:
    raise UserError(
      f"expected parameters of type {' or '.join(_DTYPES)}, found {dtype!r}"
    )
  files = _files(path)
  wanted = {canonical(name): t for name, t in _tensors(config).items()}
  found = _scan(files)
  _check(path, wanted, found, config.tie_word_embeddings)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(
    parameters.shapes(config)
  )
  target = jnp.dtype(dtype)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = {parameters.path_name(p): leaf.shape for p, leaf in leaves}
  where = {
    ours: placement(ours, shape) if placement else here
    for ours, shape in shapes.items()
  }
  placed: dict[str, jax.Array] = {}
  for file in files:
    with _open(file) as tensors:
      for name, tensor in wanted.items():
        if found[name].file != file:
          continue
        ours = tensor.leaf
        read = functools.partial(
          _read, tensors.get_slice(found[name].key), tensor, target
        )
        shape = shapes[ours]
        if tensor.layer is None:
          placed[ours] = _place(shape, where[ours], read)
          continue
        layer = _place(shape[1:], _of_layer(where[ours], len(shape)), read)
        if ours not in placed:
          placed[ours] = _zeros(shape, target, where[ours])()
        put = _put(where[ours])
        # Waited for, or the host would hold the tensors still to be put.
        placed[ours] = put(placed[ours], layer, tensor.layer)
        placed[ours].block_until_ready()
  return jax.tree_util.tree_unflatten(
    treedef, [placed[ours] for ours in shapes]
  )


def _read(stored, tensor: _Tensor, dtype, index: tuple[slice, ...]):
  """The part `index` of a parameter (or a layer of it), from its tensor."""
  if len(tensor.shape) == 5:  # the patch embedding
    array = stored[...].reshape(tensor.shape[0], -1).T[index]
  elif tensor.leaf.endswith("/kernel"):
    array = stored[index[::-1]].T
  else:
    array = stored[index]
  return np.ascontiguousarray(array, dtype=dtype)


def _place(shape: tuple[int, ...], where: Sharding, read) -> jax.Array:
  def part(index):
    return read(
      tuple(
        slice(*axis.indices(size)[:2])
        for axis, size in zip(index, shape, strict=True)
      )
    )

  return jax.make_array_from_callback(shape, where, part)


def _of_layer(where: Sharding, axes: int) -> Sharding:
  """The placement of one layer of a stacked parameter."""
  if not isinstance(where, NamedSharding):
    return where
  spec = [*where.spec, *[None] * (axes - len(where.spec))]
  return NamedSharding(where.mesh, PartitionSpec(*spec[1:]))


@functools.cache
def _zeros(shape, dtype, where: Sharding):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)


@functools.cache
def _put(where: Sharding):
  """Writes one layer into a stacked parameter, in place."""

  def put(stacked, layer, index):
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)

  return jax.jit(put, donate_argnums=0, out_shardings=where)


def save_params(
  params: PyTree,
  config: ModelConfig,
  path: storage.Name,
  *,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes parameters under the names that the hub uses.

  Files are written under temporary names first, so a save that is interrupted
  while it writes leaves the older weights. Only while whole new shards take
  the place of older ones is there no index, and `load_params` refuses. In a
  store shards take their places one by one, as each of them is written.

  Args:
    params: the parameters; their type is kept.
    config: their architecture.
    path: the directory.
    max_shard_bytes: size above which there are several files and an index.
  """
  path = storage.path(path)
  leaves = {
    parameters.path_name(p): leaf
    for p, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  shards = list(_shards(leaves, config, max_shard_bytes))
  names = [
    _SHARD.format(i + 1, len(shards)) if len(shards) > 1 else FILE
    for i in range(len(shards))
  ]
  for left in path.glob(".saving-*"):  # by a process that was killed
    left.rmtree()
  remote = storage.is_remote(path)
  parent = None if remote else path
  with tempfile.TemporaryDirectory(dir=parent, prefix=".saving-") as name:
    folder = pathlib.Path(name)
    for file, shard in zip(names, shards, strict=True):
      arrays = {
        key: _to_file(leaves[tensor.leaf], tensor)
        for key, tensor in shard.items()
      }
      safetensors.numpy.save_file(arrays, folder / file, {"format": "pt"})
      if remote:
        if file != FILE:
          (path / INDEX).unlink(missing_ok=True)
        storage.move(folder / file, path / file)
    weight_map = {
      key: file
      for file, shard in zip(names, shards, strict=True)
      for key in shard
    }
    size = sum(leaf.nbytes for leaf in leaves.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    waiting = [] if remote else names
    if any((path / file).exists() for file in waiting if file != FILE):
      (path / INDEX).unlink(missing_ok=True)
    for file in [*waiting, INDEX]:
      # safetensors lets nobody else read; this is as open as other files.
      os.chmod(folder / file, (folder / INDEX).stat().st_mode)
      storage.move(folder / file, path / file)
  if len(names) == 1:
    (path / INDEX).unlink()
  for stale in [path / FILE, *path.glob("model-*-of-*.safetensors")]:
    if stale.name not in names:
      stale.unlink(missing_ok=True)


def _shards(
  leaves: Mapping[str, jax.Array], config: ModelConfig, most: int
) -> Iterator[dict[str, _Tensor]]:
  """Tensors in order, as many a file as it may hold."""
  shard: dict[str, _Tensor] = {}
  size = 0
  for name, tensor in _tensors(config).items():
    itemsize = leaves[tensor.leaf].dtype.itemsize
    bytes_ = int(np.prod(tensor.shape)) * itemsize
    if shard and size + bytes_ > most:
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += bytes_
  yield shard


def _to_file(leaf: jax.Array, tensor: _Tensor) -> np.ndarray:
  array = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
  if tensor.leaf.endswith("/kernel"):
    array = array.T.reshape(tensor.shape)
  return np.ascontiguousarray(array)
