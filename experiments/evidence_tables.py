"""What the runs of `attention_study` say: files of numbers, and tables.

`python -m experiments.evidence` makes the files and prints the tables.

Differences are of runs with the same seed, which see the same questions: their
mean over seeds, with Student's 95 % interval. Where that holds 0, none is seen.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
import pathlib
import statistics
from typing import Any

from experiments import attention_study, compare
from mmrl.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "evidence"
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}
_COLUMNS = ("accuracy", "attention/region")
_READINGS = (
  *("accuracy/colour", "accuracy/shape", "accuracy/yes/no"),
  *("attention/border", "attention/entropy"),
)
_GOAL = 0.75
# Of `mmrl.crosstable`, each by texts and by weights.
_CROSSED = {
  "right": "ln p of the right answer",
  "region_share": "attention on the region",
}
_OF = ("texts", "weights")


def raw(arm: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
  """The file of a run's numbers."""
  return folder / "raw" / f"{arm.replace('@', '-at-')}-{seed}.json"


def cross(arm: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
  """The file of a run's differences from GRPO's."""
  return folder / "cross" / raw(arm, seed, folder).name


def digest(arm: str) -> str:
  """Of an arm's config: runs of another one can't stand in one table."""
  text = json.dumps(compare.config_of(named(arm)).to_dict(), sort_keys=True)
  # The same wherever this folder is.
  text = text.replace(str(pathlib.Path(__file__).resolve().parent), "")
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def named(arm: str) -> str:
  return f"attention_study:{arm}"


def results(
  folder: pathlib.Path,
  file_of: Callable[[str, int, pathlib.Path], pathlib.Path] = raw,
) -> dict[str, dict[int, dict]]:
  """All runs there are, by arm in the study's order, and by seed.

  Args:
    folder: docs/evidence.
    file_of: `raw`, or `cross`.

  Raises:
    UserError: if a file isn't of a run of the study as it is.
  """
  found: dict[str, dict[int, dict]] = {arm: {} for arm in attention_study.ARMS}
  for path in sorted(file_of("grpo", 0, folder).parent.glob("*")):
    try:
      one = json.loads(path.read_text())
      arm, seed = one["arm"], one["seed"]
      fits = path == file_of(arm, seed, folder) and one["config"] == digest(arm)
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


def crossed(found: Mapping[str, Mapping[int, dict]]) -> str:
  """Markdown: what texts and weights change, from GRPO to an arm.

  Args:
    found: from `results(folder, cross)`.
  """
  titles = [f"{x}: {of}" for x in _CROSSED.values() for of in _OF]
  lines = [
    f"| minus GRPO | seeds | {' | '.join(titles)} |",
    "|---|" + "---|" * (len(titles) + 1),
  ]
  for arm, runs in found.items():
    cells = [arm, str(len(runs))]
    for name in _CROSSED:
      for of in _OF:
        each = [one["effects"][name][of][0] for one in runs.values()]
        cells.append(_range(each, "{:+.3f}"))
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _steps(run: Mapping[str, Any]) -> str:
  """The first evaluated step with the goal's accuracy; "-" if there is none."""
  curve = {int(k): x for k, x in run["curve"].items()}
  curve[run["steps"]] = run["after"]["accuracy"]
  there = [step for step, x in sorted(curve.items()) if x >= _GOAL]
  return str(there[0]) if there else "-"


def _range(values: Sequence[float], form: str = "{:.1%}") -> str:
  cell = form.format(statistics.mean(values))
  if len(values) > 1:
    cell += f" ({form.format(min(values))} to {form.format(max(values))})"
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
  """Draws each run as a dot, and each arm's mean as a line; GRPO's are grey."""
  from matplotlib import pyplot

  size = (8, 0.9 + 0.26 * len(found))
  figure, panels = pyplot.subplots(1, 2, figsize=size, sharey=True)
  names = [*found]
  titles = (
    "right answers after training, %",
    "attention on the thing's box, %",
  )
  for axes, number, title in zip(panels, _COLUMNS, titles, strict=True):
    for place, arm in enumerate(names):
      values = [100 * one["after"][number] for one in found[arm].values()]
      axes.plot(values, [place] * len(values), "o", ms=4, color="#4477aa")
      ends = [place - 0.35, place + 0.35]
      axes.plot([statistics.mean(values)] * 2, ends, "k-")
    if "grpo" in found:
      values = [100 * one["after"][number] for one in found["grpo"].values()]
      axes.axvspan(min(values), max(values), color="#dddddd", zorder=0)
    axes.set_xlabel(title)
  panels[0].set_yticks(range(len(names)), names, fontsize=8)
  panels[0].invert_yaxis()
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)
