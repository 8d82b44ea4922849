"""python -m mmrl.worlds --world scenes [--output sheet.png] [--baselines 400]

Draws a sheet of examples, which a person looks at before anything is trained on
them; prints what can be scored without looking, from so many questions of each
kind; or writes kitchens as files in the forms of the published benchmarks.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from mmrl import commands
from mmrl.errors import UserError
from mmrl.worlds import examples, items, sheet
from mmrl.worlds.kitchens import asking, files, questions
from mmrl.worlds.palette import check_number


def define_flags() -> None:
  """Defines the command-line flags of `mmrl.worlds`; called when it is main."""
  flags.DEFINE_string("world", None, f"One of {', '.join(examples.WORLDS)}.")
  flags.DEFINE_string("split", "train", "Split that the examples are of.")
  flags.DEFINE_string("output", None, "File of the sheet, such as sheet.png.")
  flags.DEFINE_integer(
    "count", None, "Number of examples; as fit if not given."
  )
  flags.DEFINE_integer("baselines", None, "Questions of each kind.")
  flags.DEFINE_string("folder", None, "Folder for files of kitchens.")


def run(given: Any) -> None:
  """Does what the flags ask for.

  Args:
    given: has the values of flags as attributes.

  Raises:
    UserError: naming the flag that is wrong.
    OSError: if a file can't be written.
  """
  world = examples.world(given.world, given.split)
  count = world.count if given.count is None else given.count
  check_number("--count", count, 1, 10**6)
  if given.output:
    suffix = pathlib.Path(given.output).suffix
    if suffix != ".png":
      raise UserError(
        f"--output: expected a file that ends in .png, found {given.output!r}"
      )
    panels = [world.panel(given.split, index) for index in range(count)]
    sheet.draw(panels, columns=world.columns).save(given.output)
  if given.baselines is not None:
    check_number("--baselines", given.baselines, 2, 10**6)
    total = given.baselines * world.kinds
    asked = [world.asked(given.split, index) for index in range(total)]
    print(items.table(items.baselines(asked)))
  if given.folder:
    if given.world != "kitchens":
      raise UserError(
        f"--folder: expected --world kitchens, found {given.world!r}; the"
        " others are drawn when they are asked for"
      )
    options = asking.Options(given.split, questions.KINDS)
    made = [questions.item(options, index) for index in range(count)]
    print("\n".join(files.write(made, options, given.folder)))
  if not (given.output or given.folder or given.baselines is not None):
    raise UserError(
      "expected --output, --baselines or --folder, found none; name one"
    )


def main() -> None:
  commands.parse(__doc__, required=("world",))
  try:
    run(flags.FLAGS)
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  define_flags()
  main()
