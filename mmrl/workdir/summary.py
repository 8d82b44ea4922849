"""Summary of a finished run: summary.json and report.html."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
from typing import Any

import jax
import numpy as np

from mmrl import inspection, json_files, storage
from mmrl.benchmarks import results
from mmrl.benchmarks.best import Best
from mmrl.benchmarks.contract import Benchmark
from mmrl.benchmarks.results import Result, Results
from mmrl.errors import UserError, say
from mmrl.inspection import Finding
from mmrl.prompts import parts, pictures, regions
from mmrl.prompts.processor import Processor
from mmrl.report import curves, drawing, page
from mmrl.report.samples import Sample
from mmrl.types import Box
from mmrl.workdir import log as log_lib
from mmrl.workdir import writing


def write(
  workdir: storage.Name,
  config,
  benchmarks: Mapping[str, Benchmark],
  before: Results,
  after: Results,
  *,
  best: Best | None = None,
  processor: Processor,
  samples: Sequence[Sample] = (),
  skipped: Sequence[Finding],
  wall_seconds: float,
  compile_seconds: float,
) -> dict:
  """Writes summary.json and report.html and prints the result.

  Only the first process writes and prints. What can't be written is warned of:
  the same command makes it anew.

  Args:
    workdir: of the run.
    config: of the run.
    benchmarks: of the run.
    before, after: their results.
    best: step of `config.checkpoint.best`; None if there is none.
    processor: of the run.
    samples: sample completions of the last steps that have some.
    skipped: training questions that were left out.
    wall_seconds: of this start of the run.
    compile_seconds: XLA's part of them.

  Returns:
    The content of summary.json.
  """
  summary = {
    "benchmarks": {
      name: {
        "items": after[name].items,
        "before": _raw(before[name].numbers),
        "after": _raw(after[name].numbers),
        "baseline": _raw(after[name].baseline),
        "paired": _raw(results.paired(before[name], after[name])),
      }
      for name in after
    },
    "best": _best(config, best),
    "steps": config.train.steps,
    "seed": config.seed,
    "skipped": {
      fault: len(group) for fault, group in inspection.faults(skipped).items()
    },
    "wall_seconds": wall_seconds,
    "compile_seconds": compile_seconds,
  }
  if jax.process_index():
    return summary
  workdir = storage.path(workdir)
  text = json_files.text(summary) + "\n"
  said = f"; report: {workdir / 'report.html'}"
  for action in (
    lambda: storage.write_text(workdir / "summary.json", text),
    lambda: _write_report(
      *(workdir, config, benchmarks, before, after),
      *(best, processor, samples, wall_seconds),
    ),
  ):
    if not writing.attempt(action):
      said = ""
  for name, result in after.items():
    say(f"after:  {results.line(name, result)}")
  if config.checkpoint.best:
    say(f"best:   {_best_line(config.checkpoint.best, best)}")
  say(f"{wall_seconds:.0f} s{said}")
  return summary


def _raw(numbers: Mapping[str, Any]) -> dict[str, dict]:
  return {name: dataclasses.asdict(one) for name, one in numbers.items()}


def _best(config, best: Best | None) -> dict[str, Any] | None:
  """Describes the best step; None if none was asked for."""
  if not config.checkpoint.best:
    return None
  none = {"step": None, "value": None}
  return {
    "name": config.checkpoint.best,
    **(dataclasses.asdict(best) if best else none),
  }


def _best_line(name: str, best: Best | None) -> str:
  if best is None:
    return f"no step, as {name} was no number at any evaluation"
  return (
    f"{name} {best.value:.3f} after step {best.step}, whose model python -m"
    " mmrl.export --best writes"
  )


def _best_figure(
  tables: Sequence[page.Table], name: str, best: Best | None
) -> list[tuple[str, str]]:
  """Formats the best number as its row of the tables is."""
  if not name:
    return []
  rows = {
    f"{table.name}/{row.name}": row for table in tables for row in table.rows
  }
  if best is None:
    return [(f"{name}, best", "–")]
  row = rows.get(name)
  value = row.text(best.value) if row else f"{best.value:.4g}"
  return [(f"{name}, best", f"{value} at step {best.step}")]


def _write_report(
  workdir,
  config,
  benchmarks,
  before,
  after,
  best,
  processor,
  samples,
  wall_seconds,
) -> None:
  terms = ", ".join(
    f"{name} ({_weight(spec['weight'])})"
    for name, spec in config.losses.to_dict().items()
  )
  tables = [_table(name, before[name], after[name]) for name in after]
  page.write(
    workdir / "report.html",
    title=f"mmrl: {workdir.name}",
    subtitle=(
      f"{config.train.steps} steps of {config.rollout.prompts} prompts x"
      f" {config.rollout.answers} answers on {config.data.train.name}, model"
      f" {config.models.policy.path}, seed {config.seed}; losses: {terms}."
    ),
    figures=[
      *_figures(tables),
      *_paired_figures(tables, before, after),
      *_best_figure(tables, config.checkpoint.best, best),
      ("Wall time", f"{wall_seconds:.0f} s"),
    ],
    tables=tables,
    groups=curves.group(_rows(workdir, config, before, after), list(after)),
    examples={
      name: _examples(benchmarks[name], before[name], after[name], processor)
      for name in after
    },
    samples=[_completion(sample) for sample in samples],
    config=json.dumps(config.to_dict(), indent=2),
  )


def _weight(weight: float | Mapping[str, float]) -> str:
  """Formats the weight of a term: a number, or a share of the gradient."""
  if isinstance(weight, Mapping):
    return f"{weight['share']:.0%} of the gradient"
  return f"{weight:g}"


def _table(name: str, before: Result, after: Result) -> page.Table:
  """Sets the numbers of a benchmark beside each other, parts after wholes."""
  names = list(dict.fromkeys([*after.numbers, *before.numbers]))
  wholes = [name.partition("/")[0] for name in names]
  names.sort(key=lambda name: wholes.index(name.partition("/")[0]))
  found = before.numbers, after.numbers, after.baseline
  return page.Table(
    name,
    after.items,
    [page.Row(name, *(one.get(name) for one in found)) for name in names],
  )


def _figures(tables) -> list[tuple[str, str]]:
  """Chooses the first number of each benchmark, and its baseline."""
  figures = []
  for table in tables:
    if not table.rows:
      continue
    row = table.rows[0]
    shown, label = row.texts(), f"{table.name}/{row.name}"
    figures.append((f"{label}, before → after", " → ".join(shown[:2])))
    if row.baseline:
      figures.append((f"{label}, baseline", shown[2]))
  return figures


def _paired_figures(
  tables: Sequence[page.Table], before: Results, after: Results
) -> list[tuple[str, str]]:
  """Says of the first numbers which items are right only before or after."""
  figures = []
  for table in tables:
    found = results.paired(before[table.name], after[table.name])
    first = table.rows[0].name if table.rows else ""
    if one := found.get(first):
      label = f"{table.name}/{first}, items right only before · only after"
      figures.append(
        (label, f"{one.first} · {one.second} (McNemar p = {one.p:.2g})")
      )
  return figures


def _rows(workdir, config, before: Results, after: Results) -> list[dict]:
  """Reads what was logged; evaluations begin with that before the run.

  A run that wasn't evaluated in between has no curves of evaluations.
  """
  rows = log_lib.read(workdir)
  first, last = results.flat(before), results.flat(after)
  if not any(first.keys() & row.keys() for row in rows):
    return rows
  ends = [{"step": 0, **first}, {"step": config.train.steps, **last}]
  if last.keys() & rows[-1].keys():
    del ends[1]
  return [*ends[:1], *rows, *ends[1:]]


def _completion(sample: Sample) -> page.Completion:
  picture = None
  # A file may be gone by now; the report does without it.
  with contextlib.suppress(UserError):
    picture = sample.picture()
  return page.Completion(
    step=sample.step,
    picture=picture,
    question=sample.question,
    gold=" or ".join(sample.right),
    text=sample.answer,
    scores=sample.rewards,
    total=sample.total,
  )


def _examples(
  benchmark: Benchmark, before: Result, after: Result, processor: Processor
) -> list[page.Example]:
  """Sets the answers to the same questions beside each other."""
  return [
    _example(benchmark[one.index], one, two, processor)
    for one, two in zip(before.shown, after.shown, strict=True)
  ]


def _example(example, before, after, processor: Processor) -> page.Example:
  """Sets two answers to a question beside each other.

  Their attention is that on the first picture or video.
  """
  boxes: list[Box] = []
  chosen: list[int] = []
  seen: list[np.ndarray] = []
  shown = parts.shown(example.messages, example.name)
  if shown and shown[0]["type"] == "image":
    source = parts.source(shown[0], example.name)
    picture = pictures.read(source, example.name)
    chosen, seen = [0], [np.asarray(picture)]
    if "region" in shown[0]:
      grid = np.shape(before.heat)[-2:]
      boxes = regions.read(shown[0]["region"]).in_pixels(picture.size, grid)
  elif shown:
    encoded = processor.encode(example.messages, example.name)
    chosen, seen = drawing.views(encoded.cuts[0], processor)

  def answer(one) -> page.Answer:
    heat = np.zeros((0, 1, 1), np.float32)
    if chosen:
      heat = np.asarray(one.heat, np.float32)[chosen]
    return page.Answer(one.text, one.scores, heat, one.region)

  return page.Example(
    pictures=seen,
    question=example.question,
    gold=" or ".join(example.right),
    region=boxes,
    before=answer(before),
    after=answer(after),
  )
