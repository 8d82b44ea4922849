"""Runs the stages of a recipe one after the other, and goes on where it was.

  python -m experiments.stages --config FILE.py[:argument] --workdir W

FILE.py has `get_stages`, from names to configs in order. A stage is a run in
W/NAME; it starts from the model that the one before has written. As with any
run, one that is done changes nothing, and one that was stopped goes on from its
newest checkpoint.
"""

from collections.abc import Mapping
import importlib.util
import os
import pathlib
import sys

import ml_collections

from experiments import arguments
from mmrl import commands
from mmrl.errors import UserError
from mmrl.machines import signals


def stages_of(recipe: str) -> dict[str, ml_collections.ConfigDict]:
  """The stages of `FILE.py:argument`.

  Raises:
    UserError: if there is no such file, or it has no stages.
  """
  name, *argument = recipe.split(":", 1)
  path = pathlib.Path(name)
  if not path.is_file():
    raise UserError(
      f"--config: expected a file with get_stages, found no {name}"
    )
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise UserError(f"--config: expected a file FILE.py, found {name}")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_stages"):
    raise UserError(
      f"--config: expected {name} with get_stages, found none; a file with"
      " get_config is for python -m mmrl.train"
    )
  try:
    return dict(module.get_stages(*argument))
  except ValueError as error:
    raise UserError(f"--config: {error}") from error


def run(
  stages: Mapping[str, ml_collections.ConfigDict],
  workdir: str | os.PathLike[str],
) -> None:
  """Runs the stages; those that are done say so and change nothing.

  Raises:
    UserError: naming the stage that failed, or whose model is gone.
  """
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import storage
  from mmrl.train import loop

  before = None
  for name, config in stages.items():
    path = storage.path(workdir) / name
    if before is not None:
      if not before.exists():
        raise UserError(
          f"stage {name!r}: expected the model of the stage before in {before},"
          f" found none; remove {before.parent} to train it again"
        )
      config.models.policy.path = str(before)
    try:
      print(f"{path}:", flush=True)
      loop.train(config, str(path))
    except UserError as error:
      raise UserError(
        f"stage {name!r} failed: {error}. Later ones weren't begun; the same"
        " command goes on here"
      ) from error
    before = path / "model"


def main() -> None:
  """Runs the stages; a user's mistake is one line and status 2."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--config", required=True, help="FILE.py or FILE.py:arg")
  parser.add_argument("--workdir", required=True, help="of all stages")
  flags = parser.parse()
  commands.keep_freed_memory()
  try:
    run(stages_of(flags.config), flags.workdir)
  except signals.Preempted as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(signals.RESTART)


if __name__ == "__main__":
  arguments.run(main)
