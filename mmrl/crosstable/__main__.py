"""python -m mmrl.crosstable RUN_A RUN_B [--output DIR]

Tells what two models' texts change from what their weights do: texts that A and
B write are each read by the weights of A and of B (teacher forcing).

RUN_A and RUN_B are working directories of runs, or model directories. What is
asked is a benchmark of A's config, of B's if A has none, or of --config. It
prints for each of four numbers a table of two by two, and how much of the
change from A to B is in the texts, how much in the weights: see
docs/evaluation.md.
"""

import dataclasses
from typing import Any

from absl import flags

from mmrl import commands
from mmrl.errors import UserError


def define_flags() -> None:
  """Defines the flags; called when this is main."""
  flags.DEFINE_integer(
    "questions",
    200,
    "How many, spread evenly over the benchmark; 0 for all.",
    lower_bound=0,
  )
  flags.DEFINE_integer(
    "answers", 1, "Texts of each model to each question.", lower_bound=1
  )
  flags.DEFINE_integer("seed", 0, "Of the texts.")
  flags.DEFINE_float(
    "temperature",
    1.0,
    "That texts are sampled and scored at; 0 is greedy, scored at 1.",
    lower_bound=0,
  )
  flags.DEFINE_string(
    "benchmark", "", "Of config.evaluation.benchmarks; the first if not given."
  )
  flags.DEFINE_string(
    "output", "", "Folder for crosstable.json and crosstable.md."
  )


def _make_folder(name: str) -> None:
  """Makes the folder of --output, before what takes long."""
  from mmrl import storage

  try:
    with storage.errors(name):
      storage.path(name).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"--output: expected a folder to write to, found {name}:"
      f" {error.strerror or error}"
    ) from error


def main(first: str, second: str) -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import json_files, storage
  from mmrl.config import check_fields
  from mmrl.crosstable import effects, sides, table

  given = flags.FLAGS
  names = [field.name for field in dataclasses.fields(table.Settings)]
  options: dict[str, Any] = {name: given[name].value for name in names}
  settings = table.Settings(**options)
  if commands.CONFIG.value is not None:
    check_fields(commands.CONFIG.value)
  if given.output:
    _make_folder(given.output)
  found = table.make(
    sides.find(first), sides.find(second), commands.CONFIG.value, settings
  )
  text = (
    f"A: {found.a}\nB: {found.b}\n{found.asked} questions of"
    f" {found.settings.benchmark}, {settings.answers} of each model's texts to"
    f" each\n\n{effects.markdown(list(found.metrics.values()))}"
  )
  if given.output:
    folder = storage.path(given.output)
    raw = dataclasses.asdict(found)
    raw["metrics"] = {
      name: {
        "questions": one.questions,
        "cells": {k: vars(x) for k, x in one.cells.items()},
        "effects": {k: vars(x) for k, x in one.effects.items()},
      }
      for name, one in found.metrics.items()
    }
    storage.write_text(folder / "crosstable.json", json_files.text(raw) + "\n")
    storage.write_text(folder / "crosstable.md", text)
  print(text, end="")


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=(), also=("config",), places=("RUN_A", "RUN_B"))
