"""python -m mmrl.diffusion.sample --model DIR --output grid.png

Draws a grid: the condition, the picture that computing everything gives, the
one that caches give (HGC), and their difference, with the multiplications
(MACs) of each. DIR is `model` of a run of `mmrl.diffusion.train`.
"""

import pathlib

from absl import flags

from mmrl import commands
from mmrl.errors import UserError


def define_flags() -> None:
  """Defines the flags; called when this is main."""
  flags.DEFINE_string("model", None, "Folder of the model.")
  flags.DEFINE_string("output", None, "Picture to write, such as grid.png.")
  flags.DEFINE_integer("count", 4, "Number of pictures, a row each.")
  flags.DEFINE_integer("seed", 0, "Of masks, prompts and noise.")
  flags.DEFINE_string(
    "prompt",
    None,
    "Colour and texture, as 'red rows'; drawn at random if none.",
  )
  flags.DEFINE_integer("steps", 20, "Of sampling.")
  flags.DEFINE_float("weight", 2.0, "Of guidance; 1 is the prompt alone.")
  flags.DEFINE_list(
    "key_control", None, "Steps at which the control branch is computed."
  )
  flags.DEFINE_list("key_encoder", None, "Steps at which the encoder is.")
  flags.DEFINE_float(
    "tau",
    None,
    "Chooses both by the least cosine to the last key step instead.",
  )
  flags.DEFINE_integer("gate", None, "Step from which on there is no guidance.")
  flags.DEFINE_list(
    "inter", None, "Share of steps with the decoder's blocks: of all, or each."
  )
  flags.DEFINE_float("intra", 0.5, "Share of these with their self-attention.")


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl.diffusion import grid
  from mmrl.worlds.palette import check_number

  given = flags.FLAGS
  if pathlib.Path(given.output).suffix != ".png":
    raise UserError(
      f"--output: expected a file that ends in .png, found {given.output!r}"
    )
  check_number("--count", given.count, 1, 256)
  check_number("--steps", given.steps, 1, 1000)
  if given.tau is not None:
    check_number("--tau", given.tau, -1.0, 1.0)
  page = grid.sampled(given)
  try:
    page.save(given.output)
  except OSError as error:
    raise UserError(
      f"expected --output to be a picture file that can be written: {error}"
    ) from error


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=("model", "output"))
