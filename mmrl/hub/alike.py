"""Whether a model can read the prompts and answers of another one."""

from typing import Any

from mmrl.errors import UserError
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor

# Must be equal, as both models read the same ids and grid of visual tokens.
_SHARED = (
  "family",
  "image_token_id",
  "video_token_id",
  "vision_start_token_id",
  "vision_end_token_id",
  "eos_token_id",
  "latent",
)
_SHARED_VISION = (
  "patch_size",
  "temporal_patch_size",
  "spatial_merge_size",
  "in_channels",
  "window_size",
  "tokens_per_second",
)


def check(policy: ModelConfig, other: ModelConfig, where: str) -> None:
  """Checks that a model can read the policy's prompts and answers.

  Depth, heads, width, padded vocabulary and pad id may differ: published models
  of one family disagree on the pad id.

  Raises:
    UserError: naming the field of the config.
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


def mixed(model: ModelConfig, wanted: Any, where: str) -> bool:
  """Returns whether visual tokens of a picture see each other both ways.

  Args:
    model: as its files say.
    wanted: `config.models.policy`; that of an older run has no such field.
    where: its name.

  Raises:
    UserError: if the model was trained so, and the run doesn't say so.
  """
  found = bool(wanted.get("mixed_attention", False))
  if model.mixed_attention and not found:
    raise UserError(
      f"{where}.mixed_attention: expected True, as the model in {wanted.path}"
      " was trained so, found False"
    )
  return found


def check_processors(policy: Processor, other: Processor, where: str) -> None:
  """Checks that two models have the same tokens and the same pictures.

  Raises:
    UserError: naming the field of the config.
  """
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
