"""Models of a run by name: the policy, and others that its functions read.

An entry of `config.models` is a spec of one of the classes here: where the
model's parameters come from. A function that names `params_NAME` reads the
model NAME; nothing else knows what it is for.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import sys
from typing import Any, Literal

import ml_collections

from mmrl import build, hub
from mmrl.errors import UserError
from mmrl.hub import config_json, directory, weights
from mmrl.machines import sharding
from mmrl.machines.sharding import Layout
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor
from mmrl.train.state import State
from mmrl.types import PyTree

__all__ = ["Average", "Directory", "Initial"]
POLICY = "policy"
Type = Literal["float32", "bfloat16"]

# Must be equal, as both models read the same ids and grid of visual tokens.
_SHARED = (
  "family",
  "image_token_id",
  "video_token_id",
  "vision_start_token_id",
  "vision_end_token_id",
  "eos_token_id",
)
_SHARED_VISION = (
  "patch_size",
  "temporal_patch_size",
  "spatial_merge_size",
  "in_channels",
  "window_size",
  "tokens_per_second",
)


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
  """The policy at step 0."""


@dataclasses.dataclass(frozen=True)
class Average:
  """An exponential moving average of the policy; begins as the policy.

  Attributes:
    decay: in [0, 1); share of the old average in the new one.
    every: optimiser updates from one new average to the next, at least 1.
  """

  decay: float = 0.999
  every: int = 1

  def __post_init__(self):
    if not 0 <= self.decay < 1 or self.every < 1:
      raise UserError(
        f"expected decay in [0, 1) and every of at least 1, found {self.decay}"
        f" and {self.every}"
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
    if not isinstance(source, Directory):
      found[name] = Model(source, policy, layout)
      continue
    where, architecture = f"config.models.{name}", architectures[name]
    _check_alike(policy, architecture, where)
    own = layout
    if source.mesh is not None:
      devices = list(layout.mesh.devices.flat)
      own = Layout(
        sharding.make_mesh(dict(source.mesh), devices, f"{where}.mesh")
      )
      if config.rollout.prompts % own.shards:
        raise UserError(
          f"{where}.mesh: expected data x fsdp to divide rollout.prompts,"
          f" {config.rollout.prompts}, found {own.shards}"
        )
    check_heads(where, architecture, own)
    architecture = dataclasses.replace(architecture, dtype=source.dtype)
    found[name] = Model(source, architecture, own)
  return found


def check_heads(where: str, model: ModelConfig, layout: Layout) -> None:
  """Checks that a mesh's axis `tensor` divides a model's heads.

  Raises:
    UserError: naming the field of the config.
  """
  tensor = layout.mesh.shape["tensor"]
  for name in ("num_attention_heads", "num_key_value_heads"):
    heads = getattr(model.text, name)
    if heads % tensor:
      raise UserError(
        f"{where}.mesh.tensor: expected a divisor of the model's {name},"
        f" {heads}, found {tensor}"
      )


def _check_alike(policy: ModelConfig, other: ModelConfig, where: str) -> None:
  """Checks that a model can read the policy's prompts and answers.

  Depth, heads, width, padded vocabulary and pad id may differ: published models
  of one family disagree on the pad id.
  """
  pairs: list[tuple[str, Any, Any]]
  pairs = [(name, policy, other) for name in _SHARED]
  pairs += [(name, policy.vision, other.vision) for name in _SHARED_VISION]
  for name, one, two in pairs:
    if getattr(one, name) != getattr(two, name):
      raise UserError(
        f"{where}.path: expected a model with the policy's tokenizer and grid"
        f" of visual tokens, found {name} {getattr(two, name)} where the policy"
        f" has {getattr(one, name)}; choose one of its family"
      )


def _check_processors(policy: Processor, other: Processor, where: str) -> None:
  if policy.tokenizer.get_vocab() != other.tokenizer.get_vocab():
    raise UserError(
      f"{where}.path: expected the policy's tokenizer, found another"
      " vocabulary; choose a model of its family"
    )
  for name in ("mean", "std"):
    one, two = (getattr(p.picture, name) for p in (policy, other))
    if tuple(one) != tuple(two):
      raise UserError(
        f"{where}.path: expected pictures normalised as the policy's, found"
        f" {name} {tuple(two)}, not {tuple(one)}"
      )


def load_fixed(
  models: Mapping[str, Model], policy: hub.Model
) -> dict[str, PyTree]:
  """Loads the parameters that stay as they are during a run, by name.

  Raises:
    UserError: if a model can't read the policy's prompts and answers; this is
      checked before its weights are read.
  """
  found = {}
  for name, model in models.items():
    if isinstance(model.source, Initial):
      found[name] = policy.params
    elif isinstance(model.source, Directory):
      path = directory.find(model.source.path)
      architecture = config_json.read(path)
      processor = Processor.load(path, architecture)
      _check_processors(policy.processor, processor, f"config.models.{name}")
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
      found[name] = fixed[model]
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
  return dataclasses.replace(processor, config=compute_as(config, architecture))


def add_weights(
  config: ml_collections.ConfigDict,
  processor: Processor,
  placement: weights.Placement | None = None,
) -> hub.Model:
  """Loads the policy's weights, given the rest of it."""
  settings = config.models.policy
  params = weights.load_params(
    directory.find(settings.path),
    processor.config,
    dtype=settings.param_dtype,
    placement=placement,
  )
  return hub.Model(processor.config, params, processor)


def with_budget(
  config: ml_collections.ConfigDict, processor: Processor
) -> Processor:
  """Returns the processor with a run's settings of pictures and videos."""
  wanted, where = config.models.policy, "config.models.policy"
  return dataclasses.replace(
    processor,
    picture=_changed(
      processor.picture, {"max_pixels": wanted.max_pixels}, where
    ),
    video=_changed(processor.video, wanted.video.to_dict(), f"{where}.video"),
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
  """Returns the policy's architecture with its compute type and `remat`."""
  wanted = config.models.policy
  check_types(wanted, "config.models.policy")
  return dataclasses.replace(model, dtype=wanted.dtype, remat=wanted.remat)


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
