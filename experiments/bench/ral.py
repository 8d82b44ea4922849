"""RAL's step against GRPO's, wall time. Prints one JSON line per shape.

  python -m experiments.bench.ral

The quick start's own two configs, and a random tiny model with prompts of
`--words` words, about 2,000 tokens. Both methods go in turn, step by step, from
the same start; medians. Shares of the gradient, a measurement that a run may
leave out, are not measured.
"""

import argparse
from concurrent import futures
import json
import pathlib
import statistics
import tempfile

import jax

from experiments import quickstart
from experiments.bench import random_model, step
from mmrl import commands, hub
from mmrl import config as config_lib
from mmrl.train import loop
from mmrl.train import run as run_lib


def compare(configs, steps: int, warmup: int) -> dict[str, float]:
  """Median times of steps of two configs that are run in turn."""
  runs = {name: run_lib.build_run(c) for name, c in configs.items()}
  states = {name: run.initial_state() for name, run in runs.items()}
  questions = {name: loop.read_questions(run) for name, run in runs.items()}
  found = {f"{name}_{part}": [] for name in runs for part in ("step", "update")}
  with futures.ThreadPoolExecutor() as pool:
    for number in range(1, steps + 1):
      for name, run in runs.items():
        states[name], row, _ = step.one_step(
          run, states[name], questions[name], number, pool
        )
        if number > warmup:
          found[f"{name}_step"].append(row["step"])
          found[f"{name}_update"].append(row["update"])
  medians = {f"{k}_s": statistics.median(v) for k, v in found.items()}
  for part in ("step", "update"):
    medians[f"{part}_ratio"] = (
      medians[f"ral_{part}_s"] / medians[f"grpo_{part}_s"]
    )
  return {k: round(v, 4) for k, v in medians.items()}


def quick_start():
  """The quick start's two configs."""
  configs = {
    "grpo": quickstart.get_config("grpo"),
    "ral": quickstart.get_config(),
  }
  for config in configs.values():
    config.shares.every = 0
  return configs


def long_prompts(flags: argparse.Namespace, folder: pathlib.Path):
  """Both methods on long questions."""
  model = random_model.build(flags)
  hub.save(model, folder / "model")
  path = step.write_questions(folder, flags)
  configs = {}
  for name, weight in (("grpo", 0.0), ("ral", 1.0)):
    flags.ral = weight
    config = step.build_config(flags, str(folder / "model"), path)
    config.frozen = config_lib.get_config().frozen
    config.data.lengths = (step.prompt_length(model.processor, path),)
    configs[name] = config
  return configs


def main() -> None:
  """Runs both shapes and prints a line for each."""
  parser = step.make_parser(__doc__)
  parser.set_defaults(
    words=930, prompts=2, minibatches=2, new_tokens=128, steps=7, warmup=2
  )
  parser.add_argument("--shapes", default="quickstart,long")
  flags = parser.parse_args()
  commands.keep_freed_memory()
  with tempfile.TemporaryDirectory() as name:
    for shape in flags.shapes.split(","):
      configs = (
        quick_start()
        if shape == "quickstart"
        else long_prompts(flags, pathlib.Path(name))
      )
      lengths = configs["ral"].data.lengths
      line = {"bench": "ral", "shape": shape, "prompt_length": lengths[0]}
      line |= compare(configs, flags.steps, flags.warmup)
      print(json.dumps(line | {"versions": {"jax": jax.__version__}}))


if __name__ == "__main__":
  main()
