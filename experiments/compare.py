"""Configs beside each other on easy-VQA over several seeds. Prints a table.

  python -m experiments.compare --output runs/compare
  python -m experiments.compare --output runs/compare --seeds 0 1 2 \\
    --arms quickstart:grpo opad:runlocal,kd opad:runlocal

An arm is a config of this folder and its argument. The columns are `--numbers`
of the benchmarks, before and after. A second table has, where both were asked
the same questions, how many only the first arm or only another one gets right
after training, and the p-value of McNemar's exact test. Every run leaves its
own working directory; a stopped comparison goes on where it was. Takes about
four minutes a run on two CPU cores.
"""

from collections.abc import Sequence
import json
import pathlib
import re
import statistics

import ml_collections

from experiments import arguments
from mmrl import config_file
from mmrl.errors import UserError, nearest


def config_of(arm: str) -> ml_collections.ConfigDict:
  """The config of an arm, `file:argument` as on the command line.

  Raises:
    UserError: if there is no such file here, or it has no such argument.
  """
  name, colon, argument = arm.partition(":")
  folder = pathlib.Path(__file__).parent
  if not re.fullmatch(r"\w+", name) or not (folder / f"{name}.py").exists():
    there = sorted(path.stem for path in folder.glob("*.py"))
    raise UserError(
      f"--arms: expected a config of {folder} and its argument, found"
      f" {arm!r}{nearest(name, there)}"
    )
  return config_file.load(f"{folder / name}.py{colon}{argument}")


def check(arms: Sequence[str], numbers: Sequence[str]) -> None:
  """Refuses what would fail only after minutes.

  Raises:
    UserError: naming an arm that isn't there, or a benchmark that one lacks.
  """
  for arm in arms:
    benchmarks = config_of(arm).evaluation.benchmarks
    for name in numbers:
      benchmark, slash, number = name.partition("/")
      if benchmark not in benchmarks or not (slash and number):
        raise UserError(
          f"--numbers: expected BENCHMARK/NUMBER of {arm}, whose benchmarks are"
          f" {', '.join(benchmarks) or 'none'}; found"
          f" {name!r}{nearest(benchmark, benchmarks)}"
        )


def workdir_of(output: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
  """Where the run of an arm is."""
  return output / f"{re.sub(r'[:,/@]+', '-', arm)}-{seed}"


def one(output: pathlib.Path, arm: str, seed: int) -> dict:
  """The summary of a run, made unless it is there."""
  workdir = workdir_of(output, arm, seed)
  summary = workdir / "summary.json"
  if not summary.exists():
    # Imported late, so that a mistyped flag is answered at once.
    from mmrl.train import loop

    config = config_of(arm)
    config.seed = seed
    print(f"{workdir}:", flush=True)
    loop.train(config, str(workdir))
  return json.loads(summary.read_text())


def table(
  results: dict[str, list[dict]],
  numbers: Sequence[str],
  intervals: bool = False,
) -> str:
  """Markdown: of each arm the mean and range over seeds.

  Args:
    results: summaries of each arm, one per seed.
    numbers: as `test/accuracy`, number `accuracy` of benchmark `test`.
    intervals: whether ranges are from the least to the greatest end of the
      runs' 95% bootstrap intervals over items, instead of values.
  """
  low, high = ("low", "high") if intervals else ("value", "value")
  columns = [(name, when) for name in numbers for when in ("before", "after")]
  seeds = len(next(iter(results.values())))
  ends = "ends of the 95 % intervals" if intervals else "least to most"
  of = f"mean ({ends}) of {seeds} seeds" if seeds > 1 else "one seed"
  lines = [
    f"| {of} | {' | '.join(map(' '.join, columns))} |",
    "|---|" + "---|" * len(columns),
  ]
  for arm, summaries in results.items():
    cells = [arm]
    for name, when in columns:
      benchmark, _, number = name.partition("/")
      found = [summary["benchmarks"][benchmark][when] for summary in summaries]
      if any(number not in one for one in found):
        raise UserError(
          f"--numbers: expected one of {', '.join(found[0])} of benchmark"
          f" {benchmark}, found {number!r}{nearest(number, found[0])}"
        )
      values = [one[number]["value"] for one in found]
      cell = f"{statistics.mean(values):.1%}"
      least = min(one[number][low] for one in found)
      most = max(one[number][high] for one in found)
      if least < most:
        cell += f" ({least:.1%} to {most:.1%})"
      cells.append(cell)
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _asked(arm: str, benchmark: str) -> dict:
  """What a benchmark of an arm asks, whatever the prompt says around it."""
  spec = config_of(arm).evaluation.benchmarks[benchmark].to_dict()
  data = {k: x for k, x in spec.get("data", {}).items() if k != "prompt"}
  return {k: x for k, x in spec.items() if k != "scores"} | {"data": data}


def paired_table(
  output: pathlib.Path,
  arms: Sequence[str],
  seeds: Sequence[int],
  numbers: Sequence[str],
) -> str:
  """Markdown: the first arm beside each other one, item by item.

  Args:
    output: directory of the runs.
    arms: the arms.
    seeds: of each arm's runs.
    numbers: as `table` has them; those of scores that aren't 0 or 1, of parts
      of the items, or of other questions are left out.

  Returns:
    "" if there is nothing to set beside each other.
  """
  from mmrl.benchmarks import results

  lines = []
  for other in arms[1:]:
    for name in numbers:
      benchmark, _, number = name.partition("/")
      if _asked(arms[0], benchmark) != _asked(other, benchmark):
        continue
      for seed in seeds:
        one, two = (
          results.load(workdir_of(output, arm, seed) / "after.json")[benchmark]
          for arm in (arms[0], other)
        )
        if found := results.paired(one, two).get(number):
          cells = [other, str(seed), name, found.first, found.second]
          lines.append(f"| {' | '.join(map(str, cells))} | {found.p:.2g} |")
  head = f"| beside {arms[0]} | seed | number | only {arms[0]} right | only"
  head += " this one right | p |\n|---|---|---|---|---|---|\n"
  return head + "\n".join(lines) if lines else ""


def main() -> None:
  """Runs what is missing and prints the tables."""
  parser = arguments.Parser(__doc__)
  parser.add_output("directory of the runs")
  parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each arm's runs"
  )
  parser.add_argument(
    "--arms",
    nargs="+",
    default=["quickstart:grpo", "quickstart:ral"],
    help="configs of this folder, each with its argument",
  )
  parser.add_argument(
    "--numbers",
    nargs="+",
    default=["test/accuracy", "test/attention/region"],
    help="columns: number of a benchmark",
  )
  parser.add_argument(
    "--intervals",
    action="store_true",
    help="ranges are of the runs' 95%% intervals over items, not of their"
    " values",
  )
  flags = parser.parse()
  check(flags.arms, flags.numbers)
  import jax

  output = flags.output
  # All runs of an arm are one program: it is compiled once.
  cache = (output / "cache").absolute()
  jax.config.update("jax_compilation_cache_dir", str(cache))
  results = {
    arm: [one(output, arm, seed) for seed in flags.seeds] for arm in flags.arms
  }
  print(table(results, flags.numbers, flags.intervals))
  if found := paired_table(output, flags.arms, flags.seeds, flags.numbers):
    print(f"\n{found}")


if __name__ == "__main__":
  arguments.run(main)
