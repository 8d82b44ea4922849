"""Every field of a run of `mmrl.diffusion.train`, its default and meaning."""

import ml_collections

from mmrl import config as config_lib
from mmrl.diffusion import shapes
from mmrl.diffusion.unet import UNetConfig
from mmrl.errors import UserError, of_field
from mmrl.worlds.palette import check_number


def get_config() -> ml_collections.ConfigDict:
  """Returns the config of a small model of shapes."""
  return ml_collections.ConfigDict(
    {
      # Of parameters, pictures and noise.
      "seed": 0,
      "model": {
        # Side of pictures, and of the squares of pixels seen as one place.
        "size": 16,
        "patch": 2,
        # Of each level: channels, and whether it attends.
        "channels": (24, 48),
        "attention": (False, True),
        # Of a block of the encoder; the decoder's have one more.
        "layers": 1,
        "heads": 4,
        "groups": 8,
        # Channels of a word, and of the condition before the branch.
        "text_width": 32,
        "condition_width": 16,
      },
      "train": {
        # Of that many pictures each, drawn anew.
        "steps": 3000,
        "batch": 32,
        # Share of pictures without a prompt, which guidance needs.
        "dropped": 0.1,
        # Highest learning rate, reached after so many steps, and the step at
        # which it is 0: by a cosine.
        "rate": 2e-3,
        "warmup": 100,
        "decay": 3000,
        "clip_norm": 1.0,
        # Of the average of parameters that samples are of.
        "average": 0.995,
      },
      # Steps between two lines of metrics.jsonl.
      "every": 20,
      # Steps between checkpoints, a multiple of `every`, and how many are kept.
      "checkpoint": {"every": 200, "keep": 1},
      # Folder of compiled programs; "" keeps none.
      "compilation_cache": "~/.cache/mmrl/programs",
    }
  )


def check(config: ml_collections.ConfigDict) -> UNetConfig:
  """Checks all fields, and returns the model's sizes.

  Raises:
    UserError: naming the field that is wrong, is missing or isn't one.
  """
  config_lib.check_table(config.to_dict(), get_config().to_dict(), "")
  train = config.train
  for name, low, high in (
    *(("steps", 1, 10**7), ("batch", 1, 10**5), ("warmup", 0, 10**7)),
    *(("decay", 1, 10**7), ("dropped", 0.0, 1.0), ("rate", 1e-9, 1.0)),
    *(("clip_norm", 1e-9, 1e9), ("average", 0.0, 1.0)),
  ):
    check_number(f"config.train.{name}", train[name], low, high)
  check_number("config.every", config.every, 1, 10**7)
  check_number("config.checkpoint.keep", config.checkpoint.keep, 1, 10**7)
  for name, steps in (
    ("checkpoint.every", config.checkpoint.every),
    ("train.steps", train.steps),
  ):
    if steps < 1 or steps % config.every:
      raise UserError(
        f"config.{name}: expected a multiple of config.every, {config.every},"
        f" found {steps}"
      )
  if train.decay <= train.warmup:
    raise UserError(
      f"config.train.decay: expected more than config.train.warmup,"
      f" {train.warmup}, found {train.decay}"
    )
  with of_field("config"):
    return model_config(config.model.to_dict())


def model_config(fields: dict) -> UNetConfig:
  """Makes the sizes of the model of shapes from fields of a config."""
  lists = {
    k: tuple(v) for k, v in fields.items() if isinstance(v, list | tuple)
  }
  return UNetConfig(**(fields | lists), words=len(shapes.WORDS))
