"""Evaluation of a model on benchmarks."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

import numpy as np

from mmrl import benchmarks, build, data
from mmrl.benchmarks import greedy
from mmrl.benchmarks.contract import Answer, Benchmark, Values, means
from mmrl.benchmarks.intervals import Estimate, estimate
from mmrl.benchmarks.results import Result, Shown, right, whole
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.machines import processes
from mmrl.machines.sharding import Layout
from mmrl.prompts.processor import Processor
from mmrl.types import PyTree


def check_settings(settings: Mapping[str, Any]) -> None:
  """Checks the numbers of `config.evaluation`.

  Raises:
    UserError: naming the one that is out of range.
  """
  for name, least in (("every", 0), ("batch", 1), ("shown", 0)):
    if settings[name] < least:
      raise UserError(
        f"config.evaluation.{name}: expected at least {least}, found"
        f" {settings[name]}"
      )


# Of a `Benchmark`.
_METHODS = ("__len__", "__getitem__", "grade", "summarise", "baseline")


def build_benchmarks(settings: Mapping[str, Any]) -> dict[str, Benchmark]:
  """Builds the benchmarks of `config.evaluation`.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  found = {}
  for name, spec in settings["benchmarks"].items():
    where = f"config.evaluation.benchmarks.{name}"
    one = build.construct(benchmarks, spec, where, field=where)
    lacking = [method for method in _METHODS if not hasattr(one, method)]
    if lacking:
      raise UserError(
        f"{where}: expected {spec['name']} to have {', '.join(_METHODS)}"
        f" (mmrl/benchmarks/contract.py), found no {', '.join(lacking)}"
      )
    found[name] = one
  return found


def give_models(
  benchmarks: Mapping[str, Benchmark], asked: Mapping[str, Any]
) -> list[str]:
  """Gives benchmarks what asks the models that their scores name.

  Args:
    benchmarks: of a run, by name.
    asked: of the run; see `mmrl.strategies.asking.open_later`.

  Returns:
    The names that scores read.

  Raises:
    UserError: if the run has no such model.
  """
  read = []
  for title, benchmark in benchmarks.items():
    asks = getattr(benchmark, "asks", {})
    for name in asks:
      if name not in asked:
        model = name.removeprefix("ask_")
        raise UserError(
          f"config.evaluation.benchmarks.{title}: a score needs {name}, which"
          f" this run doesn't have; add a model {model!r} to config.models"
        )
      asks[name] = asked[name]
      read.append(name)
  return read


def evaluate_run(run: Any, params: PyTree) -> dict[str, Result]:
  """Evaluates parameters on all benchmarks of a `train.run.Run`."""
  config = run.config
  return {
    name: evaluate(
      benchmark,
      run.answer,
      params,
      run.processor,
      run.layout,
      train=run.train_source,
      batch=config.evaluation.batch,
      length=config.rollout.length,
      shown=config.evaluation.shown,
      lengths=config.data.lengths,
      patches=config.data.patches,
    )
    for name, benchmark in run.benchmarks.items()
  }


def evaluate(
  benchmark: Benchmark,
  answer: greedy.Answerer,
  params: PyTree,
  processor: Processor,
  layout: Layout,
  *,
  train: Any,
  batch: int,
  length: int,
  shown: int,
  lengths: Sequence[int],
  patches: Sequence[int],
) -> Result:
  """Evaluates a model's greedy answers to the questions of a benchmark.

  Args:
    benchmark: questions and how they are graded.
    answer: from `greedy.make_answer`.
    params: model parameters.
    processor: the model's.
    layout: of the run.
    train: the run's source of questions to train on, for the baseline.
    batch, length, lengths, patches: see `greedy.ask`.
    shown: number of answers to keep with their attention.
  """
  kept = data.spread(len(benchmark), shown)
  answered = list(
    greedy.ask(
      benchmark,
      answer,
      params,
      processor,
      layout,
      batch=batch,
      length=length,
      drawn=frozenset(kept),
      lengths=lengths,
      patches=patches,
    )
  )
  examples = [one.example for one in answered]
  values, counts = _graded(
    benchmark, [one.answer for one in answered], examples
  )
  numbers = estimate(benchmark.summarise, values)
  looked = {
    f"attention/{name}": np.array([one.looks[name] for one in answered])
    for name in ("region", "region_uniform", "border", "entropy")
  }
  items = len(next(iter(values.values()), ()))
  return Result(
    items=items,
    numbers=numbers | estimate(means, looked) | counts,
    baseline=estimate(benchmark.summarise, benchmark.baseline(train, examples)),
    shown=[
      Shown(
        index=index,
        text=answered[index].answer.text,
        scores={
          name: float(values[name][index])
          for name in whole(values)
          if items == len(answered) and not np.isnan(values[name][index])
        },
        heat=answered[index].heat,
        region=None
        if np.isnan(answered[index].looks["region"])
        else answered[index].looks["region"],
      )
      for index in kept
    ],
    right=right(values),
  )


def _graded(
  benchmark: Benchmark, answers: Sequence[Answer], examples: Sequence[Example]
) -> tuple[Values, dict[str, Estimate]]:
  """Grades answers; with counts of what models were asked for that.

  Every process has all answers. The first alone asks, and tells the others, who
  would have other replies.
  """
  asks = getattr(benchmark, "asks", {})
  if not asks:
    return benchmark.grade(answers, examples), {}
  told = [""]

  def grade() -> None:
    values = benchmark.grade(answers, examples)
    counts = [one.end_step() for one in asks.values()]
    lists = {name: np.asarray(x).tolist() for name, x in values.items()}
    told[0] = json.dumps(
      [lists, {k: v for one in counts for k, v in one.items()}]
    )

  processes.first_only(grade)
  values, counts = json.loads(processes.gather(told[0])[0])
  return (
    {name: np.array(x, np.float64) for name, x in values.items()},
    {name: Estimate(x, x, x) for name, x in counts.items()},
  )
