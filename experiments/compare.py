"""Configs beside each other on easy-VQA over several seeds. Prints a table.

  python -m experiments.compare --output runs/compare
  python -m experiments.compare --output runs/compare --seeds 0 1 2 \\
    --arms quickstart:grpo opad:runlocal,kd opad:runlocal

An arm is a config of this folder and its argument. The columns are `--numbers`
of the benchmarks, before and after. Every run leaves its own
working directory; a stopped comparison goes on where it was. Takes about four
minutes a run on two CPU cores.
"""

import argparse
from collections.abc import Sequence
import importlib
import json
import pathlib
import re
import statistics

import jax
import ml_collections

from mmrl.train import loop


def config_of(arm: str) -> ml_collections.ConfigDict:
  """The config of an arm, `file:argument` as on the command line."""
  name, *argument = arm.split(":", 1)
  module = importlib.import_module(f"experiments.{name}")
  return module.get_config(*argument)


def one(output: pathlib.Path, arm: str, seed: int) -> dict:
  """The summary of a run, made unless it is there."""
  name = re.sub(r"[:,/]+", "-", arm)
  workdir = output / f"{name}-{seed}"
  summary = workdir / "summary.json"
  if not summary.exists():
    config = config_of(arm)
    config.seed = seed
    print(f"{workdir}:", flush=True)
    loop.train(config, str(workdir))
  return json.loads(summary.read_text())


def table(results: dict[str, list[dict]], numbers: Sequence[str]) -> str:
  """Markdown: of each arm the mean and range over seeds.

  Args:
    results: summaries of each arm, one per seed.
    numbers: as `test/accuracy`, number `accuracy` of benchmark `test`.
  """
  columns = [(name, when) for name in numbers for when in ("before", "after")]
  seeds = len(next(iter(results.values())))
  of = f"mean (least to most) of {seeds} seeds" if seeds > 1 else "one seed"
  lines = [
    f"| {of} | {' | '.join(map(' '.join, columns))} |",
    "|---|" + "---|" * len(columns),
  ]
  for arm, summaries in results.items():
    cells = [arm]
    for name, when in columns:
      benchmark, _, number = name.partition("/")
      values = [
        summary["benchmarks"][benchmark][when][number]["value"]
        for summary in summaries
      ]
      cell = f"{statistics.mean(values):.1%}"
      if min(values) < max(values):
        cell += f" ({min(values):.1%} to {max(values):.1%})"
      cells.append(cell)
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--output", required=True, help="directory of the runs")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument(
    "--arms", nargs="+", default=["quickstart:grpo", "quickstart:ral"]
  )
  parser.add_argument(
    "--numbers", nargs="+", default=["test/accuracy", "test/attention/region"]
  )
  flags = parser.parse_args()
  output = pathlib.Path(flags.output)
  # All runs of an arm are one program: it is compiled once.
  cache = (output / "cache").absolute()
  jax.config.update("jax_compilation_cache_dir", str(cache))
  results = {
    arm: [one(output, arm, seed) for seed in flags.seeds] for arm in flags.arms
  }
  print(table(results, flags.numbers))


if __name__ == "__main__":
  main()
