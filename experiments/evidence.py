"""The runs of `attention_study`, one after the other, and what they say.

  python -m experiments.evidence --output runs/study --seeds 0 1 2
  python -m experiments.evidence --output runs/study --cross
  python -m experiments.evidence --table

The first command makes the runs that are missing, a seed of all arms before the
next one, and writes each one's numbers into docs/evidence/raw as it ends: a
command that was stopped goes on where it was, on another machine, too. Started
twice, as with `taskset -c 0` and `taskset -c 1`, each makes other runs. No run
is left out. The second one writes into docs/evidence/cross what the texts of
each run's model and what its weights differ from those of GRPO's with the same
seed (`python -m mmrl.crosstable`): of runs whose models are there. `--table`
prints the tables of what is there, and draws docs/evidence/runs.png. Each
run is evaluated on the held-back pictures as well, whose table `--held` prints:
once, when nothing is left to choose.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import json
import pathlib
import statistics
from typing import Any

from experiments import arguments, attention_study, compare
from experiments import evidence_tables as tables
from experiments.evidence_tables import FOLDER, cross, digest, raw
from mmrl.errors import UserError, nearest

_SHARE = "gradient/share_"


def read(workdir: pathlib.Path, arm: str, seed: int) -> dict:
  """What the table reads of a finished run."""
  summary = json.loads((workdir / "summary.json").read_text())
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  found = summary["benchmarks"]["test"]
  shares: dict[str, list[float]] = {}
  for name, value in ((k, v) for row in rows for k, v in row.items()):
    if name.startswith(_SHARE):
      shares.setdefault(name.removeprefix(_SHARE), []).append(value)
  return {
    "arm": arm,
    "seed": seed,
    "config": digest(arm),
    "steps": summary["steps"],
    "seconds": round(summary["wall_seconds"]),
    "items": found["items"],
    **{
      when: {name: round(x["value"], 5) for name, x in found[when].items()}
      for when in ("before", "after")
    },
    "curve": {
      row["step"]: round(row["test/accuracy"], 5)
      for row in rows
      if "test/accuracy" in row
    },
    "shares": {k: round(statistics.mean(v), 6) for k, v in shares.items()},
  }


@contextlib.contextmanager
def claimed(output: pathlib.Path, arm: str, seed: int) -> Iterator[bool]:
  """Tells whether a run is this command's; while it is, it is no other's."""
  folder = output / "claims"
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / f"{arm}-{seed}", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
    else:
      yield True


def run(
  output: pathlib.Path, arm: str, seed: int, folder: pathlib.Path
) -> None:
  """Makes a run and its file, unless that is there.

  Raises:
    UserError: if it is there, of another config.
  """
  path = raw(arm, seed, folder)
  if path.exists():
    found = json.loads(path.read_text())["config"]
    if found != digest(arm):
      raise UserError(
        f"{path}: expected a run of this config of {arm}, found one of another;"
        " remove the file to make the run again"
      )
    return
  compare.one(output, tables.named(arm), seed)
  workdir = compare.workdir_of(output, tables.named(arm), seed)
  found = read(workdir, arm, seed) | {"held": _held(workdir, arm, seed)}
  _write(path, found)


def _write(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(".part")
  part.write_text(json.dumps(found, indent=1) + "\n")
  part.replace(path)


def run_cross(
  output: pathlib.Path, arm: str, seed: int, folder: pathlib.Path
) -> None:
  """Makes the file of a run's differences from GRPO's, unless it is there.

  Nothing is done where one of both runs isn't over: its model isn't there.
  """
  path = cross(arm, seed, folder)
  pair = [
    compare.workdir_of(output, tables.named(x), seed) for x in ("grpo", arm)
  ]
  over = all(raw(x, seed, folder).exists() for x in ("grpo", arm))
  if path.exists() or not (over and all(one.is_dir() for one in pair)):
    return
  from mmrl.crosstable import sides
  from mmrl.crosstable import table as table_lib

  a, b = (sides.find(str(one)) for one in pair)
  found = table_lib.make(a, b, None, table_lib.Settings(questions=400))
  effects = {
    name: {k: (x.value, x.low, x.high) for k, x in metric.effects.items()}
    for name, metric in found.metrics.items()
  }
  known = {"arm": arm, "seed": seed, "config": digest(arm)}
  _write(path, known | {"questions": found.asked, "effects": effects})


def _held(workdir: pathlib.Path, arm: str, seed: int) -> dict[str, float]:
  """Numbers of a run's model on the pictures that are held back."""
  from mmrl import evaluate

  config = compare.config_of(tables.named(arm))
  config.seed = seed
  config.evaluation.benchmarks = {"held": attention_study.held_back()}
  found = evaluate.results(config, str(workdir))["held"].numbers
  return {name: round(number.value, 5) for name, number in found.items()}


def check_arms(arms: Sequence[str]) -> None:
  """Refuses what is no arm of the study.

  Raises:
    UserError: naming it.
  """
  for arm in arms:
    if arm not in attention_study.ARMS:
      raise UserError(
        f"--arms: expected some of {', '.join(attention_study.ARMS)}, found"
        f" {arm!r}{nearest(arm, attention_study.ARMS)}"
      )


def main() -> None:
  """Makes what is missing, or the table of what is there."""
  parser = arguments.Parser(__doc__)
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--output", type=arguments.output_folder, help="directory of the runs"
  )
  what.add_argument(
    "--table", action="store_true", help="prints the tables and draws the plot"
  )
  what.add_argument(
    "--held", action="store_true", help="prints that of held-back pictures"
  )
  parser.add_argument(
    "--cross",
    action="store_true",
    help="compares the models of --output that are there with GRPO's",
  )
  parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each arm's runs"
  )
  parser.add_argument(
    "--arms",
    nargs="+",
    default=[*attention_study.ARMS],
    help="of experiments/attention_study.py; all by default",
  )
  flags = parser.parse()
  check_arms(flags.arms)
  if flags.cross and not flags.output:
    raise UserError("--cross: expected --output with it, found none")
  if flags.table or flags.held:
    found = tables.results(FOLDER)
    if not found:
      raise UserError(
        f"expected runs in {FOLDER / 'raw'}, found none; pass --output"
      )
    if flags.held:
      print(tables.table(found, "held"))
      return
    print(f"{tables.table(found)}\n\n{tables.readings(found)}")
    if others := tables.results(FOLDER, cross):
      print(f"\n{tables.crossed(others)}")
    tables.draw(found, FOLDER / "runs.png")
    return
  import jax

  cache = (flags.output / "cache").absolute()
  jax.config.update("jax_compilation_cache_dir", str(cache))
  for seed in flags.seeds:
    for arm in flags.arms:
      with claimed(flags.output, arm, seed) as own:
        if own and not flags.cross:
          run(flags.output, arm, seed, FOLDER)
        elif own and arm != "grpo":
          run_cross(flags.output, arm, seed, FOLDER)


if __name__ == "__main__":
  arguments.run(main)
