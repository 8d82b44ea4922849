"""The runs of `attention_study`, one after the other, and what they say.

  python -m experiments.evidence --output runs/study --seeds 0 1 2
  python -m experiments.evidence --table

The first command makes the runs that are missing, a seed of all arms before the
next one, and writes each one's numbers into docs/evidence/raw as it ends: a
command that was stopped goes on where it was, on another machine, too. Started
twice, as with `taskset -c 0` and `taskset -c 1`, each makes other runs. No run
is left out. `--table` prints the tables of what is there, and draws docs/
evidence/accuracy.png. Each run is evaluated on the held-back pictures as well,
whose table `--held` prints: once, when nothing is left to choose.

Differences are of runs with the same seed, which see the same questions: their
mean over seeds, with Student's 95 % interval. Where that holds 0, none is seen.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import hashlib
import json
import pathlib
import statistics
from typing import Any

from experiments import arguments, attention_study, compare
from mmrl.errors import UserError, nearest

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "evidence"
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}
_SHARE = "gradient/share_"
_COLUMNS = ("accuracy", "attention/region")
_READINGS = (
  *("accuracy/colour", "accuracy/shape", "accuracy/yes/no"),
  *("attention/border", "attention/entropy"),
)
_GOAL = 0.75


def raw(arm: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
  """The file of a run's numbers."""
  return folder / "raw" / f"{arm.replace('@', '-at-')}-{seed}.json"


def digest(arm: str) -> str:
  """Of an arm's config: runs of another one can't stand in one table."""
  text = json.dumps(compare.config_of(_named(arm)).to_dict(), sort_keys=True)
  # The same wherever this folder is.
  text = text.replace(str(pathlib.Path(__file__).resolve().parent), "")
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named(arm: str) -> str:
  return f"attention_study:{arm}"


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
  compare.one(output, _named(arm), seed)
  workdir = compare.workdir_of(output, _named(arm), seed)
  path.parent.mkdir(parents=True, exist_ok=True)
  found = read(workdir, arm, seed) | {"held": _held(workdir, arm, seed)}
  part = path.with_suffix(".part")
  part.write_text(json.dumps(found, indent=1) + "\n")
  part.replace(path)


def _held(workdir: pathlib.Path, arm: str, seed: int) -> dict[str, float]:
  """Numbers of a run's model on the pictures that are held back."""
  from mmrl import evaluate

  config = compare.config_of(_named(arm))
  config.seed = seed
  config.evaluation.benchmarks = {"held": attention_study.held_back()}
  found = evaluate.results(config, str(workdir))["held"].numbers
  return {name: round(number.value, 5) for name, number in found.items()}


def results(folder: pathlib.Path) -> dict[str, dict[int, dict]]:
  """All runs there are, by arm in the study's order, and by seed.

  Raises:
    UserError: if a file isn't of a run of the study as it is.
  """
  found: dict[str, dict[int, dict]] = {arm: {} for arm in attention_study.ARMS}
  for path in sorted((folder / "raw").glob("*")):
    try:
      one = json.loads(path.read_text())
      arm, seed = one["arm"], one["seed"]
      fits = path == raw(arm, seed, folder) and one["config"] == digest(arm)
    except (ValueError, TypeError, KeyError, UserError):
      fits = False
    if not fits:
      raise UserError(
        f"{path}: expected the numbers of a run of this study, as"
        " experiments.evidence writes them; remove it, or make the run again"
      )
    found[arm][seed] = one
  return {arm: runs for arm, runs in found.items() if runs}


def difference(
  runs: Mapping[int, dict],
  base: Mapping[int, dict],
  number: str,
  when: str = "after",
) -> tuple[float, float] | None:
  """Mean difference over common seeds and half its 95 % interval.

  None without a seed in common; the half is infinite with one.
  """
  both = sorted({*runs} & {*base})
  if not both:
    return None
  each = [runs[i][when][number] - base[i][when][number] for i in both]
  mean = statistics.mean(each)
  if len(each) == 1:
    return mean, float("inf")
  student = _STUDENT[min(len(each) - 1, max(_STUDENT))]
  return mean, student * statistics.stdev(each) / len(each) ** 0.5


def table(found: Mapping[str, Mapping[int, dict]], when: str = "after") -> str:
  """Markdown: of each arm the means, ranges and differences to GRPO.

  Args:
    found: from `results`.
    when: "after", or "held" for the pictures that are held back.
  """
  lines = [
    "| arm | seeds | share of the gradient | accuracy | minus GRPO | attention"
    " on the region | minus GRPO |",
    "|---|---|---|---|---|---|---|",
  ]
  base = found.get("grpo", {})
  for arm, runs in found.items():
    cells = [arm, str(len(runs)), _shares(runs)]
    for number in _COLUMNS:
      cells.append(_range([one[when][number] for one in runs.values()]))
      cells.append(_difference(arm, runs, base, number, when))
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def readings(found: Mapping[str, Mapping[int, dict]]) -> str:
  """Markdown: means of what else was read, and the way there."""
  lines = [
    f"| arm | {' | '.join(_READINGS)} | steps to {_GOAL:.0%} |",
    "|---|" + "---|" * (len(_READINGS) + 1),
  ]
  for arm, runs in found.items():
    cells = [
      f"{statistics.mean(one['after'][x] for one in runs.values()):.1%}"
      for x in _READINGS
    ]
    cells.append(", ".join(map(_steps, runs.values())))
    lines.append(f"| {arm} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _steps(run: Mapping[str, Any]) -> str:
  """The first evaluated step with the goal's accuracy; "-" if there is none."""
  curve = {int(k): x for k, x in run["curve"].items()}
  curve[run["steps"]] = run["after"]["accuracy"]
  there = [step for step, x in sorted(curve.items()) if x >= _GOAL]
  return str(there[0]) if there else "-"


def _range(values: Sequence[float]) -> str:
  cell = f"{statistics.mean(values):.1%}"
  if len(values) > 1:
    cell += f" ({min(values):.1%} to {max(values):.1%})"
  return cell


def _difference(arm, runs, base, number: str, when: str) -> str:
  found = None if arm == "grpo" else difference(runs, base, number, when)
  if found is None:
    return ""
  mean, half = found
  if half == float("inf"):
    return f"{100 * mean:+.1f} (one seed)"
  return f"{100 * mean:+.1f} ± {100 * half:.1f}"


def _shares(runs: Mapping[int, dict]) -> str:
  """Mean measured share of what isn't the policy's term."""
  each = [
    sum(value for name, value in one["shares"].items() if name != "policy")
    for one in runs.values()
  ]
  return f"{statistics.mean(each):.2%}" if any(each) else ""


def draw(found: Mapping[str, Mapping[int, dict]], path: pathlib.Path) -> None:
  """Draws accuracy after training: a dot for each run, a line for the mean."""
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.24 * len(found)))
  names = [*found]
  for place, arm in enumerate(names):
    values = [100 * one["after"]["accuracy"] for one in found[arm].values()]
    axes.plot(values, [place] * len(values), "o", ms=4, color="#4477aa")
    axes.plot([statistics.mean(values)] * 2, [place - 0.35, place + 0.35], "k-")
  if "grpo" in found:
    runs = found["grpo"].values()
    values = [100 * one["after"]["accuracy"] for one in runs]
    axes.axvspan(min(values), max(values), color="#dddddd", zorder=0)
  axes.set_yticks(range(len(names)), names, fontsize=8)
  axes.invert_yaxis()
  axes.set_xlabel("accuracy on test pictures after training, %")
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


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
  if flags.table or flags.held:
    found = results(FOLDER)
    if not found:
      raise UserError(
        f"expected runs in {FOLDER / 'raw'}, found none; pass --output"
      )
    if flags.held:
      print(table(found, "held"))
      return
    print(f"{table(found)}\n\n{readings(found)}")
    draw(found, FOLDER / "accuracy.png")
    return
  import jax

  cache = (flags.output / "cache").absolute()
  jax.config.update("jax_compilation_cache_dir", str(cache))
  for seed in flags.seeds:
    for arm in flags.arms:
      with claimed(flags.output, arm, seed) as own:
        if own:
          run(flags.output, arm, seed, FOLDER)


if __name__ == "__main__":
  arguments.run(main)
