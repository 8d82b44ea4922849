"""python -m mmrl.evaluate --config FILE.py[:ARGUMENT] --workdir DIR

Evaluates the model that a run has trained.
"""

import dataclasses

import ml_collections

from mmrl import commands
from mmrl.config import check_fields
from mmrl.errors import UserError


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Evaluates `workdir/model` on the config's benchmarks; prints JSON.

  Args:
    config: sets the benchmarks and the sizes of a batch.
    workdir: of a finished run.

  Raises:
    UserError: if the run hasn't written a model, or there is no benchmark.
  """
  # Imported late: a mistyped flag is answered at once, and `commands.run` forks
  # (`machines.watch`) before JAX and what it brings are there.
  from mmrl import json_files, storage
  from mmrl.benchmarks import runner
  from mmrl.train import run as run_lib

  check_fields(config)
  if not config.evaluation.benchmarks:
    raise UserError(
      "config.evaluation.benchmarks: expected at least one, found none"
    )
  path = storage.path(workdir) / "model"
  # `hub.save` writes config.json last, so the model is complete.
  if not (path / "config.json").exists():
    raise UserError(
      f"expected a trained model at {path}, found none; let python -m"
      " mmrl.train finish with this --workdir first"
    )
  with config.unlocked():
    config.models.policy.path = str(path)
    # They are merged into it.
    config.models.policy.lora = {}
    config.models.policy.adapter = ""
  built = run_lib.build_run(config, workdir=workdir)
  found = runner.evaluate_run(built, built.params)
  raw = {name: dataclasses.asdict(result) for name, result in found.items()}
  for result in raw.values():
    del result["shown"]
  print(json_files.text(raw))


def main() -> None:
  run(commands.CONFIG.value, commands.given(commands.WORKDIR))


if __name__ == "__main__":
  commands.run(main)
