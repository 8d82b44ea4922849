"""Loading and checks of the teacher that the student is distilled from."""

import dataclasses
from typing import Any

import ml_collections

from mmrl import hub
from mmrl.errors import UserError
from mmrl.hub import config_json, directory, weights
from mmrl.machines.sharding import Layout
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor
from mmrl.train import model as model_lib

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


def check(student: ModelConfig, teacher: ModelConfig) -> None:
  """Checks that a teacher can read the student's prompts and answers.

  Depth, heads, width, padded vocabulary and pad id may differ: published models
  of one family disagree on the pad id.

  Raises:
    UserError: naming what differs.
  """
  pairs: list[tuple[str, Any, Any]]
  pairs = [(name, student, teacher) for name in _SHARED]
  pairs += [(name, student.vision, teacher.vision) for name in _SHARED_VISION]
  for name, one, other in pairs:
    if getattr(one, name) != getattr(other, name):
      raise UserError(
        "config.teacher.path: expected a teacher with the student's tokenizer"
        f" and grid of visual tokens, found {name} {getattr(other, name)} where"
        f" the student has {getattr(one, name)}; choose one of its family"
      )


def _check_processors(student: Processor, teacher: Processor) -> None:
  if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
    raise UserError(
      "config.teacher.path: expected the student's tokenizer, found another"
      " vocabulary; choose a teacher of its family"
    )
  for name in ("mean", "std"):
    one, other = (getattr(p.picture, name) for p in (student, teacher))
    if tuple(one) != tuple(other):
      raise UserError(
        f"config.teacher.path: expected pictures normalised as the student's,"
        f" found {name} {tuple(other)}, not {tuple(one)}"
      )


def architecture(
  config: ml_collections.ConfigDict, teacher: ModelConfig
) -> ModelConfig:
  """Returns the teacher's architecture with its compute type."""
  model_lib.check_types(config.teacher, "config.teacher")
  return dataclasses.replace(teacher, dtype=config.teacher.dtype)


def load(
  config: ml_collections.ConfigDict, student: hub.Model, layout: Layout
) -> hub.Model:
  """Loads the teacher of a config, with its parameters on its own mesh.

  Raises:
    UserError: if it can't read the student's prompts and answers; this is
      checked before any weights are read.
  """
  path = directory.find(config.teacher.path)
  found = config_json.read(path)
  model = architecture(config, found)
  check(student.config, found)
  processor = Processor.load(path, found)
  _check_processors(student.processor, processor)
  params = weights.load_params(
    path,
    found,
    dtype=config.teacher.param_dtype,
    placement=layout.parameter,
  )
  return hub.Model(model, params, processor)
