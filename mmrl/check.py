"""python -m mmrl.check --config FILE.py[:ARGUMENT] [--output FILE]

Opens every picture and video of a run, and measures every prompt and answer.
"""

import os

from absl import flags

from mmrl import commands


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import storage
  from mmrl.train import run as run_lib
  from mmrl.train import walk

  folder = storage.path(commands.WORKDIR.value or os.curdir)
  output = flags.FLAGS.output or folder / run_lib.CHECKED
  prepared = run_lib.prepare(commands.CONFIG.value)
  walk.check(prepared)
  run_lib.check(prepared, output)
  print("all questions can be used, but for those that the run leaves out")


def define_flags() -> None:
  """Defines the command-line flags of `mmrl.check`; called when it is main."""
  flags.DEFINE_string(
    "output",
    None,
    "File that lists what can't be used; check.jsonl in --workdir, or here.",
  )


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=("config",), also=("workdir",))
