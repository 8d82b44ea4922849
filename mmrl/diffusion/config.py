"""Every field of a run of `mmrl.diffusion.train`, its default and meaning.

The comments beside the fields are what `--help-config` prints.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the config of a small model of shapes."""
  return ml_collections.ConfigDict(
    {
      "seed": 0,  # of parameters, pictures and noise
      # Sizes of the U-Net and of its control branch.
      "model": {
        "size": 16,  # side of pictures, in pixels
        "patch": 2,  # side of the squares of pixels seen as one place
        "channels": (24, 48),  # of each level
        "attention": (False, True),  # whether a level attends
        # Of a block of the encoder; the decoder's have one more.
        "layers": 1,
        "heads": 4,  # of an attention
        "groups": 8,  # of a norm
        "text_width": 32,  # channels of a word
        "condition_width": 16,  # of the condition, before the branch's own
      },
      # Updates of the parameters.
      "train": {
        "steps": 3000,  # updates
        "batch": 32,  # pictures of an update, drawn anew
        "dropped": 0.1,  # share of pictures without a prompt, for guidance
        "rate": 2e-3,  # the highest learning rate
        "warmup": 100,  # step at which it is reached
        "decay": 3000,  # step at which it is 0 again, by a cosine
        "clip_norm": 1.0,  # the largest norm of a gradient
        # Decay of the average of parameters, which is the model.
        "average": 0.995,
      },
      "every": 20,  # steps between two lines of metrics.jsonl
      # What a stopped run goes on from.
      "checkpoint": {
        "every": 200,  # steps between two, a multiple of `config.every`
        "keep": 1,  # number of the newest that stay
      },
      # Folder of compiled programs; "" keeps none.
      "compilation_cache": "~/.cache/mmrl/programs",
    }
  )
