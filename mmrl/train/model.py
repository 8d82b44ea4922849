"""Loading of a config's model, with the run's types and pixel budgets."""

from collections.abc import Mapping
import dataclasses

import ml_collections

from mmrl import hub
from mmrl.errors import UserError
from mmrl.hub import weights
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor


def load(
  config: ml_collections.ConfigDict, placement: weights.Placement | None = None
) -> hub.Model:
  """Loads the model of a config, with its compute type and pixel budget."""
  check_types(config.model, "config.model")
  model = hub.load(
    config.model.path, dtype=config.model.param_dtype, placement=placement
  )
  model_config = compute_as(config, model.config)
  processor = with_budget(config, model.processor)
  processor = dataclasses.replace(processor, config=model_config)
  return hub.Model(model_config, model.params, processor)


def with_budget(
  config: ml_collections.ConfigDict, processor: Processor
) -> Processor:
  """Returns the processor with a run's settings of pictures and videos."""
  wanted = config.model
  return dataclasses.replace(
    processor,
    picture=_changed(
      processor.picture, {"max_pixels": wanted.max_pixels}, "config.model"
    ),
    video=_changed(
      processor.video, wanted.video.to_dict(), "config.model.video"
    ),
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
  """Returns the architecture with a run's compute type and `remat`."""
  check_types(config.model, "config.model")
  wanted = config.model
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
