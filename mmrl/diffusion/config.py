"""Every field of a run of `mmrl.diffusion.train`, its default and meaning.

The comments beside the fields are what `--help-config` prints.
"""

import ml_collections


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
