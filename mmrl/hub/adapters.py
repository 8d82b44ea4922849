"""LoRA adapters in PEFT's format, read and written.

A folder has adapter_config.json and adapter_model.safetensors. The config's
`target_modules` says which layers are adapted, the tensors which were: they
must agree, layer for layer, or an adapter would be used in part.
"""

from collections.abc import Mapping
import json
import pathlib
import re
import tempfile
from typing import Any, NamedTuple

from etils import epath
import jax
import numpy as np
import safetensors.numpy

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.hub import adapter_json, config_json, weights
from mmrl.hub import tensors as tensors_lib
from mmrl.models import layers, parameters
from mmrl.models.config import Lora, ModelConfig
from mmrl.models.families import FAMILIES
from mmrl.models.families.family import nested

CONFIG, FILE = config_json.ADAPTER, "adapter_model.safetensors"
_PREFIX = "base_model.model."


class _Module(NamedTuple):
  """Dense layer of the published model.

  Attributes:
    path: of ours.
    layer: its place on axis 0 of a stack, else None.
    shape: of the kernel: (rows, columns).
  """

  path: str
  layer: int | None
  shape: tuple[int, int]


def _modules(config: ModelConfig) -> dict[str, _Module]:
  """Lists the dense layers by the names that PEFT has for them."""
  names, found = FAMILIES[config.family].tensors, {}
  for path, (*stack, rows, columns) in parameters.dense_layers(config).items():
    name = nested(names[path])
    for layer in range(stack[0]) if stack else [None]:
      found[name.format(layer)] = _Module(path, layer, (rows, columns))
  return found


def read(folder: storage.Name, base: ModelConfig, name: str) -> Lora:
  """Reads rank, alpha and layers of an adapter; checks it against its base.

  Args:
    folder: of the adapter.
    base: architecture of the model that it is put on.
    name: of that model, which the adapter's config should name.

  Raises:
    UserError: if it is another model's adapter, or needs something that isn't
      computed here; no tensor has been read then.
  """
  folder = storage.path(folder)
  path = folder / CONFIG
  raw = json_files.read(path, "a LoRA adapter in PEFT's format")
  adapter_json.check(raw, path)
  theirs = raw.get("base_model_name_or_path")
  if theirs and not adapter_json.same_model(str(theirs), name):
    raise UserError(
      f"{path}: expected an adapter of {name}, found one of {theirs}; give that"
      " model's path, or, if they are the same, write it into"
      " base_model_name_or_path"
    )
  modules = _modules(base)
  found = _scan(folder, modules, f"{name} (its base is {theirs or 'unnamed'})")
  _check_targets(raw, modules, found, path)
  targets = sorted({modules[module].path for module in found})
  for target in targets:
    lacking = [
      module
      for module, one in modules.items()
      if one.path == target and module not in found
    ]
    if lacking:
      raise UserError(
        f"{folder}: expected pairs in every layer or in none, found none for"
        f" {len(lacking)} of them: {tensors_lib.some(lacking)}"
      )
  try:
    lora = Lora(
      rank=raw["r"],
      alpha=raw["lora_alpha"],
      targets="|".join(map(re.escape, targets)),
      rs=raw.get("use_rslora") or False,
    )
  except (KeyError, UserError) as error:
    raise UserError(
      f"{path}: expected r and lora_alpha of an adapter, missing or wrong:"
      f" {error}"
    ) from error
  _check_shapes(folder, modules, found, lora.rank, f"{name}, {theirs}")
  return lora


def _scan(
  folder: epath.Path, modules: Mapping[str, _Module], base: str
) -> dict[str, dict[str, str]]:
  """Finds the tensors A and B of each module: keys in the file, by letter."""
  found: dict[str, dict[str, str]] = {}
  strange = []
  nesting = {tensors_lib.canonical(name): name for name in modules}
  with tensors_lib.opened(folder / FILE) as tensors:
    for key in tensors.keys():  # noqa: SIM118 (not a dict)
      parts = re.fullmatch(
        rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", key
      )
      name = nesting.get(tensors_lib.canonical(parts[1])) if parts else None
      if parts is None or name is None or parts[2] in found.get(name, {}):
        strange.append(key)
      else:
        found.setdefault(name, {})[parts[2]] = key
  file = folder / FILE
  if strange:
    raise UserError(
      f"{file}: expected pairs of dense layers of {base}, each once, found"
      f" {len(strange)} other tensors: {tensors_lib.some(strange)}"
    )
  single = [name for name, pair in found.items() if len(pair) < 2]
  if single or not found:
    raise UserError(
      f"{file}: expected lora_A and lora_B of each layer, found"
      f" {'one of them for ' + tensors_lib.some(single) if single else 'none'}"
    )
  return found


def _check_targets(
  raw: Mapping[str, Any],
  modules: Mapping[str, _Module],
  found: Mapping[str, Any],
  path: epath.Path,
) -> None:
  """Checks that the tensors are those of the layers that the config names."""
  targets, excluded = raw.get("target_modules"), raw.get("exclude_modules")
  wanted = {
    name
    for name in modules
    if adapter_json.matches(targets, name)
    and not adapter_json.matches(excluded, name)
  }
  unused = [
    target
    for target in (targets if isinstance(targets, list) else [])
    if not any(adapter_json.matches([target], name) for name in modules)
  ]
  if unused:
    raise UserError(
      f"{path}: expected target_modules to be names of dense layers, found"
      f" {tensors_lib.some(unused)}, which the model doesn't have; take them"
      " out, or use the adapter's own model"
    )
  for what, names in (
    (
      "tensors for the layers that target_modules matches, found none for",
      wanted - set(found),
    ),
    (
      "target_modules to match the layers that have tensors, but not",
      set(found) - wanted,
    ),
  ):
    if names:
      raise UserError(
        f"{path}: expected {what} {tensors_lib.some(sorted(names))}; get the"
        " adapter's files again"
      )


def _check_shapes(
  folder: epath.Path,
  modules: Mapping[str, _Module],
  found: Mapping[str, Mapping[str, str]],
  rank: int,
  base: str,
) -> None:
  """Checks types and shapes of all pairs, which say whose adapter it is."""
  with tensors_lib.opened(folder / FILE) as tensors:
    for name, pair in found.items():
      rows, columns = modules[name].shape
      for letter, shape in (("A", (rank, rows)), ("B", (columns, rank))):
        header = tensors.get_slice(pair[letter])
        there = tuple(header.get_shape())
        if header.get_dtype() not in tensors_lib.STORED:
          raise UserError(
            f"{folder / FILE}: expected type {', '.join(tensors_lib.STORED)},"
            f" found {header.get_dtype()} in {pair[letter]}; use the"
            " unquantised adapter"
          )
        if there != shape:
          raise UserError(
            f"{folder / FILE}: expected an adapter of rank {rank} for {base},"
            f" found {pair[letter]} in shape {there}, not {shape}"
          )


def load(
  folder: storage.Name,
  config: ModelConfig,
  placement: weights.Placement | None = None,
) -> dict[str, jax.Array]:
  """Reads an adapter's parameters, as float32, by path.

  Args:
    folder: of the adapter.
    config: of the model, with what `read` returned.
    placement: see `weights.load_params`.

  Raises:
    UserError: if a number isn't finite.
  """
  folder, modules = storage.path(folder), _modules(config)
  shapes = jax.eval_shape(
    lambda: parameters.init_adapter(jax.random.key(0), config)
  )
  arrays = {k: np.zeros(v.shape, np.float32) for k, v in shapes.items()}
  assert config.lora is not None
  found = _scan(folder, modules, "the model")
  with tensors_lib.opened(folder / FILE) as tensors:
    for name, pair in found.items():
      path, layer, _ = modules[name]
      for letter, ours in zip("AB", layers.LORA, strict=False):
        array = tensors.get_tensor(pair[letter]).astype(np.float32)
        if not np.isfinite(array).all():
          raise UserError(
            f"{folder / FILE}: expected numbers, found NaN or infinity in"
            f" {pair[letter]}; use an adapter from before it diverged"
          )
        whole = arrays[f"{path}/{ours}"]
        whole[... if layer is None else layer] = array.T
  for path in arrays:
    if not parameters.is_pair(path):
      arrays[path][...] = config.lora.scale
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def place(path: str, array: np.ndarray) -> jax.Array:
    where = placement(path, array.shape) if placement else here
    return jax.make_array_from_callback(
      array.shape, where, lambda index: array[index]
    )

  return {path: place(path, array) for path, array in arrays.items()}


def save(
  params: Mapping[str, Any], config: ModelConfig, path: storage.Name, name: str
) -> None:
  """Writes an adapter for PEFT and vLLM.

  Args:
    params: parameters of the model, or of the adapter alone, by path.
    config: of the model.
    path: the folder; the model's own files aren't written.
    name: of the base model, as PEFT is to look for it.

  Raises:
    UserError: if the model has no adapter, the folder holds a model, or it
      can't be written.
  """
  lora, folder = config.lora, storage.path(path)
  if lora is None:
    raise UserError(
      "expected a model with an adapter to write one, found none; leave out"
      " --adapter, and the whole model is written"
    )
  if json_files.is_there(folder / "config.json"):
    raise UserError(
      f"expected to write an adapter to a folder of its own, found a model in"
      f" {folder}; choose another folder"
    )
  adapted = parameters.adapted_layers(config)
  tensors = {}
  for module, (ours, layer, _) in _modules(config).items():
    if ours not in adapted:
      continue
    for letter, leaf in zip("AB", layers.LORA, strict=False):
      array = params[f"{ours}/{leaf}"]
      array = np.asarray(array if layer is None else array[layer], np.float32)
      key = f"{_PREFIX}{module}.lora_{letter}.weight"
      tensors[key] = np.ascontiguousarray(array.T)
  raw = adapter_json.to_json(config, list(adapted), name)
  with tempfile.TemporaryDirectory(prefix="mmrl-") as draft:
    file = pathlib.Path(draft) / FILE
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    storage.write_bytes(folder / FILE, file.read_bytes())
  # Last, so that a folder that has it is complete.
  storage.write_text(folder / CONFIG, json.dumps(raw, indent=2) + "\n")
