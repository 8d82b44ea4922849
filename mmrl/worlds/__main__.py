"""python -m mmrl.worlds --world scenes [--output sheet.png] [--baselines 400]

Draws a sheet of examples, which a person looks at before anything is trained on
them; prints what can be scored without looking, from so many questions of each
kind; or writes kitchens as files in the forms of the published benchmarks.
"""

import argparse
import pathlib
import sys

from mmrl.errors import UserError
from mmrl.worlds import examples, items, sheet
from mmrl.worlds.kitchens import asking, files, questions
from mmrl.worlds.palette import check_number


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m mmrl.worlds", description=__doc__.split("\n\n")[1]
  )
  parser.add_argument("--world", required=True, help=", ".join(examples.WORLDS))
  parser.add_argument("--split", default="train")
  parser.add_argument("--output", help="file of the sheet, such as sheet.png")
  parser.add_argument("--count", type=int, help="of examples")
  parser.add_argument("--baselines", type=int, help="questions of each kind")
  parser.add_argument("--folder", help="for files of kitchens")
  return parser.parse_args()


def _run(flags: argparse.Namespace) -> None:
  world = examples.world(flags.world, flags.split)
  count = world.count if flags.count is None else flags.count
  check_number("--count", count, 1, 10**6)
  if flags.output:
    suffix = pathlib.Path(flags.output).suffix
    if suffix != ".png":
      raise UserError(
        f"--output: expected a file that ends in .png, found {flags.output!r}"
      )
    panels = [world.panel(flags.split, index) for index in range(count)]
    sheet.draw(panels, columns=world.columns).save(flags.output)
  if flags.baselines is not None:
    check_number("--baselines", flags.baselines, 2, 10**6)
    total = flags.baselines * world.kinds
    asked = [world.asked(flags.split, index) for index in range(total)]
    print(items.table(items.baselines(asked)))
  if flags.folder:
    if flags.world != "kitchens":
      raise UserError(
        f"--folder: expected --world kitchens, found {flags.world!r}; the"
        " others are drawn when they are asked for"
      )
    options = asking.Options(flags.split, questions.KINDS)
    made = [questions.item(options, index) for index in range(count)]
    print("\n".join(files.write(made, options, flags.folder)))
  if not (flags.output or flags.folder or flags.baselines is not None):
    raise UserError(
      "expected --output, --baselines or --folder, found none; name one"
    )


def main() -> None:
  flags = _parse()
  try:
    _run(flags)
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
