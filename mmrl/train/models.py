"""Models of a run by name: the policy, and others that its functions read.

An entry of `config.models` is a spec of one of the classes here: where the
model's parameters come from. A function that names `params_NAME` reads the
model NAME; nothing else knows what it is for. Those of `strategies.asking` are
asked for texts instead, by functions that name `ask_NAME`.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
import sys
from typing import Any, Literal

import jax
import ml_collections

from mmrl import build, console, errors, hub
from mmrl.errors import UserError
from mmrl.hub import adapters, alike, config_json, directory, weights
from mmrl.hub.tokens.punctuation import with_punctuation
from mmrl.machines import batches, sharding
from mmrl.machines.sharding import Layout, check_heads
from mmrl.models import config as architecture_lib
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import blocks
from mmrl.prompts.processor import Processor
from mmrl.strategies.asking import Asked, Endpoint, LocalModel
from mmrl.train.state import Beginning, State
from mmrl.types import PyTree

__all__ = ["Average", "Directory", "Endpoint", "Initial", "LocalModel"]
POLICY = "policy"
Type = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Directory:
  """A model of its own, from a directory in the Hugging Face layout.

  Attributes:
    path: the directory, or a hub id.
    dtype: type of matrix products.
    param_dtype: type that parameters are stored in.
    mesh: devices on each axis of a mesh of its own, over all devices of the
      run; the run's mesh if None.
  """

  path: str
  dtype: Type = "float32"
  param_dtype: Type = "float32"
  mesh: Mapping[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Initial:
  """The policy at step 0.

  It takes the memory of what trains: the rest it shares with the policy. Beside
  a policy with a new adapter it takes none: it is the policy without it.
  """


@dataclasses.dataclass(frozen=True)
class Average:
  """An exponential moving average of the policy; begins as the policy.

  Attributes:
    decay: in [0, 1); share of the old average in the new one.
    every: optimiser updates from one new average to the next, at least 1.
    rise_over: updates over which the decay rises to 1, by half a cosine; 0
      keeps it.
  """

  decay: float = 0.999
  every: int = 1
  rise_over: int = 0

  def __post_init__(self):
    if not (0 <= self.decay < 1 and self.every >= 1 and self.rise_over >= 0):
      raise UserError(
        "expected decay in [0, 1), every of at least 1 and rise_over of at"
        f" least 0, found {self.decay}, {self.every} and {self.rise_over}"
      )


@dataclasses.dataclass(frozen=True)
class Model:
  """A model other than the policy.

  Attributes:
    source: where its parameters come from.
    config: the architecture, with its compute type.
    layout: how its parameters are sharded.
  """

  source: Directory | Initial | Average
  config: ModelConfig
  layout: Layout


def read_sources(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Reads the sources of all models but the policy.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  found = {}
  for name, spec in config.models.to_dict().items():
    if name != POLICY:
      where = f"config.models.{name}"
      module = sys.modules[__name__]
      found[name] = build.construct(module, spec, where)
  return found


def asked(config: ml_collections.ConfigDict) -> dict[str, Asked]:
  """Reads the sources of the models that are asked for texts."""
  found = read_sources(config).items()
  return {name: one for name, one in found if isinstance(one, Asked)}


def read_architectures(
  config: ml_collections.ConfigDict,
  read: Callable[[str], ModelConfig] | None = None,
) -> dict[str, ModelConfig]:
  """Reads the architectures of the models that have a directory.

  Args:
    config: of the run.
    read: reads one by its path; from the directory if None.
  """
  read = read or (lambda path: config_json.read(directory.find(path)))
  return {
    name: read(source.path)
    for name, source in read_sources(config).items()
    if isinstance(source, Directory)
  }


def bind(
  config: ml_collections.ConfigDict,
  policy: ModelConfig,
  layout: Layout,
  architectures: Mapping[str, ModelConfig],
) -> dict[str, Model]:
  """Binds all models but the policy to their architectures and meshes.

  Args:
    config: of the run.
    policy: the policy's architecture.
    layout: the run's.
    architectures: from `read_architectures`.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  found = {}
  for name, source in read_sources(config).items():
    if isinstance(source, Asked):
      continue
    if not isinstance(source, Directory):
      found[name] = Model(source, policy, layout)
      continue
    where, architecture = f"config.models.{name}", architectures[name]
    alike.check(policy, architecture, where)
    own = layout
    if source.mesh is not None:
      devices = list(layout.mesh.devices.flat)
      mesh = sharding.make_mesh(dict(source.mesh), devices, f"{where}.mesh")
      own = batches.layout(mesh, config.rollout)
      own = batches.check_group(own, layout.group)
      batches.check_mesh(
        batches.of_run(own.mesh, architecture, config.rollout), f"{where}.mesh"
      )
    check_heads(where, architecture, own)
    architecture = dataclasses.replace(architecture, dtype=source.dtype)
    found[name] = Model(source, architecture, own)
  return found


@console.doing("reading weights of other models")
def load_fixed(
  models: Mapping[str, Model], policy: hub.Model, beginning: Beginning
) -> dict[str, PyTree]:
  """Loads the parameters that stay as they are during a run, by name.

  Args:
    models: of the run.
    policy: of the run.
    beginning: what `Initial` is.

  Raises:
    UserError: if a model can't read the policy's prompts and answers; this is
      checked before its weights are read.
  """
  found = {}
  for name, model in models.items():
    if isinstance(model.source, Initial):
      found[name] = beginning
    elif isinstance(model.source, Directory):
      path = directory.find(model.source.path)
      architecture = config_json.read(path)
      processor = Processor.load(path, architecture)
      alike.check_processors(
        policy.processor, processor, f"config.models.{name}"
      )
      found[name] = weights.load_params(
        path,
        architecture,
        dtype=model.source.param_dtype,
        placement=model.layout.parameter,
      )
  return found


def parameters_by_name(
  state: State, fixed: Mapping[str, PyTree], names: Collection[str]
) -> dict[str, PyTree]:
  """Returns parameters of models, by the names that functions use.

  Args:
    state: holds the policy and the averages.
    fixed: the others, by the models' names.
    names: of functions' data, `params` and `params_MODEL` among them.
  """
  found = {}
  if "params" in names:
    found["params"] = state.params
  for model in (*fixed, *state.averages):
    name = f"params_{model}"
    if name not in names:
      continue
    if model in fixed:
      one = fixed[model]
      found[name] = one.params(state) if isinstance(one, Beginning) else one
    else:
      values = state.averages[model].values
      cast = {k: v.astype(state.trainable[k].dtype) for k, v in values.items()}
      found[name] = parameters.merge(cast, state.frozen)
  return found


def load_policy(
  config: ml_collections.ConfigDict, placement: weights.Placement | None = None
) -> hub.Model:
  """Loads the policy of a config, with its compute type and pixel budget."""
  return add_weights(config, load_processor(config), placement)


def load_processor(config: ml_collections.ConfigDict) -> Processor:
  """Loads the policy's processor, with its compute type and pixel budget."""
  path = directory.find(config.models.policy.path)
  architecture = config_json.read(path)
  processor = with_budget(config, Processor.load(path, architecture))
  found = compute_as(config, architecture)
  with errors.of_field("config.models.policy.attention"):
    found = with_punctuation(found, processor.tokenizer)
  return dataclasses.replace(processor, config=found)


@console.phase("reading weights")
def add_weights(
  config: ml_collections.ConfigDict,
  processor: Processor,
  placement: weights.Placement | None = None,
) -> hub.Model:
  """Loads the policy's weights, given the rest of it.

  A new adapter is a function of the config's seed.
  """
  settings = config.models.policy
  params = weights.load_params(
    directory.find(settings.path),
    processor.config,
    dtype=settings.param_dtype,
    placement=placement,
  )
  if processor.config.lora:
    pairs = load_adapter(config, processor.config, placement)
    params = parameters.merge(parameters.flat(params), pairs)
  return hub.Model(processor.config, params, processor)


def load_adapter(
  config: ml_collections.ConfigDict,
  model: ModelConfig,
  placement: weights.Placement | None = None,
) -> dict[str, jax.Array]:
  """Returns the policy's adapter at step 0, by path: a new one, or PEFT's.

  Args:
    config: of the run.
    model: the policy's architecture, with its adapter.
    placement: see `weights.load_params`.
  """
  if not has_new_adapter(config):
    folder = directory.find(config.models.policy.adapter)
    return adapters.load(folder, model, placement)
  make = functools.partial(parameters.init_adapter, config=model)
  key, where = jax.random.key(config.seed), None
  if placement is not None:
    shapes = jax.eval_shape(make, key)
    where = {path: placement(path, x.shape) for path, x in shapes.items()}
  return jax.jit(make, out_shardings=where)(key)


def has_new_adapter(config: ml_collections.ConfigDict) -> bool:
  """Tells whether a config's policy begins with an adapter that is zero."""
  # The config of an older run has no such field.
  return bool(config.models.policy.get("lora"))


def with_budget(
  config: ml_collections.ConfigDict, processor: Processor
) -> Processor:
  """Returns the processor with a run's settings of pictures and videos."""
  wanted, where = config.models.policy, "config.models.policy"
  side, video = wanted.get("side", 0), wanted.video.to_dict()
  if side and (wanted.max_pixels or video["max_pixels"]):
    raise UserError(
      f"{where}.side: expected 0 beside max_pixels, as all pictures and frames"
      f" have one size then, found {side}; leave one of the two out"
    )
  picture = {"max_pixels": wanted.max_pixels, "side": side}
  return dataclasses.replace(
    processor,
    picture=_changed(processor.picture, picture, where),
    video=_changed(processor.video, video | {"side": side}, f"{where}.video"),
  )


def check_types(settings: ml_collections.ConfigDict, where: str) -> None:
  """Raises UserError for types other than the two that are tested."""
  for field in ("dtype", "param_dtype"):
    if settings[field] not in ("float32", "bfloat16"):
      raise UserError(
        f"{where}.{field}: expected 'float32' or 'bfloat16', found"
        f" {settings[field]!r}"
      )


def compute_as(
  config: ml_collections.ConfigDict, model: ModelConfig
) -> ModelConfig:
  """Returns the policy's architecture: compute type, attention, adapter.

  Of sparse attention, `load_processor` adds which tokens are punctuation.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  wanted, where = config.models.policy, "config.models.policy"
  check_types(wanted, where)
  # The config of an older run has no such field.
  spec, sparse = wanted.get("attention"), None
  if spec:
    sparse = build.construct(blocks, spec.to_dict(), f"{where}.attention")
  model = dataclasses.replace(
    model,
    dtype=wanted.dtype,
    remat=wanted.remat,
    mixed_attention=alike.mixed(model, wanted, where),
    sparse=sparse,
  )
  if not has_new_adapter(config):
    if wanted.get("adapter"):
      with errors.of_field(f"{where}.adapter"):
        model = directory.with_adapter(model, wanted.path, wanted.adapter)
    return model
  spec = wanted.lora.to_dict()
  if wanted.adapter:
    raise UserError(
      f"{where}.lora: expected none beside an adapter, whose rank, alpha and"
      f" layers are its own, found {spec}; leave one of the two out"
    )
  lora = build.construct(
    architecture_lib, {"name": "Lora"} | spec, f"{where}.lora"
  )
  model = dataclasses.replace(model, lora=lora)
  with errors.of_field(f"{where}.lora"):
    parameters.adapted_layers(model)
  return model


def _changed(settings, values: Mapping[str, int | float], where: str):
  """Returns picture or video settings, updated with the non-zero values."""
  for name, value in values.items():
    if value < 0:
      raise UserError(f"{where}.{name}: expected at least 0, found {value}")
  changes = {name: value for name, value in values.items() if value}
  if "max_pixels" in changes:
    low = min(settings.min_pixels, changes["max_pixels"])
    changes["min_pixels"] = low
  if "max_frames" in changes:
    changes["min_frames"] = min(settings.min_frames, changes["max_frames"])
  return dataclasses.replace(settings, **changes)
