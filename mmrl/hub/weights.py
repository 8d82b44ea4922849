"""Parameters from and to safetensors files in the Hugging Face layout.

Reading goes file by file and tensor by tensor, straight to where each
parameter is placed. It takes the host memory of one file (mapped) and one
tensor, whatever the size of the model. Nothing is placed before the names,
types and shapes of all tensors in all files have been checked.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
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
import safetensors.numpy

from mmrl import storage
from mmrl.errors import UserError
from mmrl.hub import tensors as tensors_lib
from mmrl.hub.tensors import FILE, INDEX, Found, Tensor, canonical
from mmrl.models import layers, parameters
from mmrl.models.config import ModelConfig
from mmrl.types import PyTree

# (path of a leaf as "a/b/c", its shape) -> where it is placed.
Placement = Callable[[str, tuple[int, ...]], Sharding]

_SHARD = "model-{:05}-of-{:05}.safetensors"
# What parameters may be held in.
_DTYPES = ("float32", "float16", "bfloat16")
# Values that are compared at once.
_COMPARED = 2**20


def load_params(
  path: storage.Name,
  config: ModelConfig,
  *,
  dtype: str = "float32",
  placement: Placement | None = None,
  paths: Collection[str] | None = None,
) -> PyTree:
  """Reads the weights of a model directory, without those of an adapter.

  Args:
    path: directory with model.safetensors, or with shards and their index;
      tensors are named as the hub names them, or nested under `model`.
    config: its architecture.
    dtype: type of the parameters.
    placement: where each parameter is placed; the first device if None. A
      process reads only the parts that its own devices hold.
    paths: of the parameters to read; all if None. Files are checked whole.

  Raises:
    UserError: if a file is missing, tensors are missing, extra, of the wrong
      shape or not floating point, a tied head is another one, or `dtype` isn't
      known: nothing has been placed then. Or if a weight is NaN or infinite.
  """
  path = storage.path(path)
  if dtype not in _DTYPES:
    raise UserError(
      f"expected parameters of type {' or '.join(_DTYPES)}, found {dtype!r}"
    )
  files = tensors_lib.files(path)
  wanted = {
    canonical(name): t for name, t in tensors_lib.of_model(config).items()
  }
  found = tensors_lib.scan(files)
  tensors_lib.check(path, wanted, found, config.tie_word_embeddings)
  if config.tie_word_embeddings and tensors_lib.HEAD in found:
    _check_tied(found[tensors_lib.HEAD], found[tensors_lib.TABLE], path)
  base = parameters.shapes(parameters.without_adapter(config))
  target = jnp.dtype(dtype)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = {ours: leaf.shape for ours, leaf in parameters.flat(base).items()}
  if paths is not None:
    shapes = {ours: shape for ours, shape in shapes.items() if ours in paths}
  where = {
    ours: placement(ours, shape) if placement else here
    for ours, shape in shapes.items()
  }
  placed: dict[str, jax.Array] = {}
  for file in files:
    with tensors_lib.opened(file) as tensors:
      for name, tensor in wanted.items():
        ours = tensor.leaf
        if found[name].file != file or ours not in shapes:
          continue
        read = functools.partial(
          _read, tensors.get_slice(found[name].key), tensor, target, found[name]
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
  return parameters.merge(placed)


def _check_tied(head: Found, table: Found, path: epath.Path) -> None:
  """Refuses a stored head that isn't the embedding table, to which it is tied.

  Raises:
    UserError: if they differ.
  """
  equal = head.shape == table.shape
  if equal:
    with (
      tensors_lib.opened(head.file) as of_head,
      tensors_lib.opened(table.file) as of_table,
    ):
      one, other = of_head.get_slice(head.key), of_table.get_slice(table.key)
      count = head.shape[0]
      rows = max(1, _COMPARED // head.shape[1])
      spans = [slice(i, min(i + rows, count)) for i in range(0, count, rows)]
      equal = all(
        np.array_equal(
          one[span].astype(np.float64),
          other[span].astype(np.float64),
          equal_nan=True,
        )
        for span in spans
      )
  if not equal:
    raise UserError(
      f"{path}: expected the head to be the embedding table, as config.json"
      f" has tie_word_embeddings true, found another {head.key}; set"
      " tie_word_embeddings to false there to use it, or remove it"
    )


def _check_finite(array: np.ndarray, found: Found, read: np.ndarray) -> None:
  """Refuses NaNs and infinities, which would make every answer nonsense.

  Raises:
    UserError: if a value isn't finite, or doesn't fit the type.
  """
  # Their exponents are all ones; on bits, as bfloat16 is slow otherwise.
  bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
  ones = np.array(np.inf, array.dtype).reshape(1).view(bits.dtype)
  for start in range(0, bits.size, _COMPARED):
    if ((bits[start : start + _COMPARED] & ones) == ones).any():
      break
  else:
    return
  if np.isfinite(read.astype(np.float64)).all():
    raise UserError(
      f"{found.file}: expected weights that {array.dtype} can hold, found"
      f" {np.abs(read).max()} in {found.key}; load the model in another type"
    )
  raise UserError(
    f"{found.file}: expected numbers, found NaN or infinity in {found.key};"
    " use weights from before the training that diverged"
  )


def _read(
  stored, tensor: Tensor, dtype, found: Found, index: tuple[slice, ...]
):
  """Reads the part `index` of a parameter, or of one layer, from its tensor."""
  if len(tensor.shape) == 5:  # the patch embedding
    array = stored[...].reshape(tensor.shape[0], -1).T[index]
  elif tensor.leaf.endswith("/kernel"):
    array = stored[index[::-1]].T
  else:
    array = stored[index]
  with np.errstate(over="ignore"):
    cast = np.ascontiguousarray(array, dtype=dtype)
  _check_finite(cast, found, array)
  return cast


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
  """Returns the placement of one layer of a stacked parameter."""
  if not isinstance(where, NamedSharding):
    return where
  spec = [*where.spec, *[None] * (axes - len(where.spec))]
  return NamedSharding(where.mesh, PartitionSpec(*spec[1:]))


@functools.cache
def _zeros(shape, dtype, where: Sharding):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)


@functools.cache
def _put(where: Sharding):
  """Compiles the writing of one layer into a stacked parameter, in place."""

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

  An adapter is merged, one tensor at a time.

  Files are written under temporary names first, so a save that is interrupted
  while it writes leaves the older weights. Only while complete new shards
  replace older ones is there no index, and `load_params` refuses. In a store
  shards are replaced one by one, as each of them is written.

  Args:
    params: the parameters; their type is kept.
    config: their architecture.
    path: the directory.
    max_shard_bytes: size of a file above which there are several and an index.
  """
  path = storage.path(path)
  leaves = parameters.flat(params)
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
      arrays = {key: _to_file(leaves, tensor) for key, tensor in shard.items()}
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
    size = sum(
      leaf.nbytes
      for ours, leaf in leaves.items()
      if not parameters.is_of_adapter(ours)
    )
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    waiting = [] if remote else names
    if any((path / file).exists() for file in waiting if file != FILE):
      (path / INDEX).unlink(missing_ok=True)
    for file in [*waiting, INDEX]:
      # safetensors lets nobody else read; this is as open as other files.
      os.chmod(folder / file, (folder / INDEX).stat().st_mode)
      storage.move(folder / file, path / file)
  # Before the index goes, which says that they don't count.
  for stale in [
    path / FILE,
    *path.glob("model-*-of-*.safetensors"),
  ]:
    if stale.name not in names:
      stale.unlink(missing_ok=True)
  if len(names) == 1:
    (path / INDEX).unlink()


def _shards(
  leaves: Mapping[str, jax.Array], config: ModelConfig, most: int
) -> Iterator[dict[str, Tensor]]:
  """Packs tensors into files, in order, as many as a file may hold."""
  shard: dict[str, Tensor] = {}
  size = 0
  for name, tensor in tensors_lib.of_model(config).items():
    itemsize = leaves[tensor.leaf].dtype.itemsize
    bytes_ = int(np.prod(tensor.shape)) * itemsize
    if shard and size + bytes_ > most:
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += bytes_
  yield shard


def _to_file(leaves: Mapping[str, jax.Array], tensor: Tensor) -> np.ndarray:
  """Returns the array of a file, in which an adapter is merged."""

  def read(path: str) -> np.ndarray:
    leaf = leaves[path]
    return np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])

  array = read(tensor.leaf)
  module = tensor.leaf.rpartition("/")[0]
  if tensor.leaf.endswith("/kernel"):
    if f"{module}/{layers.LORA[0]}" in leaves:
      a, b, scale = (read(f"{module}/{name}") for name in layers.LORA)
      change = scale * (a.astype(np.float32) @ b.astype(np.float32))
      array = (array.astype(np.float32) + change).astype(array.dtype)
    array = array.T.reshape(tensor.shape)
  return np.ascontiguousarray(array)
