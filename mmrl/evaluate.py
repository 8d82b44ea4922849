"""python -m mmrl.evaluate --config FILE.py[:ARGUMENT] --workdir DIR

Evaluates the model that a run has trained. With a strategy in place of a
config, evaluates models that are asked by it, one or several by their roles:

  python -m mmrl.evaluate --strategy vic --benchmark SPEC.json --workdir DIR \\
    --models planner=MODEL,eyes=MODEL

--strategy and --benchmark are a name, a JSON object of name and options, or a
file with one. A MODEL is a directory or hub id, endpoint:NAME behind the
address in OPENAI_BASE_URL (NAME@VARIABLE for another variable), FILE.json with
replies by what is asked, or FILE.py:FUNCTION; one without a role is that of all
other roles. DIR/items.jsonl has a line for each question, written when it is
answered; the same command goes on where it was killed, and asks again what
failed because a model did.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from absl import flags
import ml_collections

from mmrl import commands
from mmrl.config import check_fields
from mmrl.errors import UserError, tell

if TYPE_CHECKING:
  from mmrl.benchmarks.results import Result
  from mmrl.data import Example
  from mmrl.strategies.evaluating.items import Items
  from mmrl.strategies.evaluating.models import Decoding

# Questions under way at a time: what a killed run loses of work.
_SIDE_BY_SIDE = 128
# Of a request, and seconds before the second.
_ATTEMPTS, _WAIT = 5, 0.5
# Questions in a row whose model can't be reached, after which a run stops.
_AWAY = 8
_OF_STRATEGY = (
  *("strategy", "models", "benchmark", "length", "temperature"),
  *("seed", "batch", "dtype", "frames"),
)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Evaluates `workdir/model` on the config's benchmarks; prints JSON.

  See `results`.
  """
  from mmrl import json_files

  raw = {
    name: dataclasses.asdict(result)
    for name, result in results(config, workdir).items()
  }
  for result in raw.values():
    del result["shown"], result["right"]
  print(json_files.text(raw))


def results(
  config: ml_collections.ConfigDict, workdir: str
) -> "Mapping[str, Result]":
  """Evaluates `workdir/model` on the config's benchmarks.

  Args:
    config: sets the benchmarks and the sizes of a batch.
    workdir: of a finished run.

  Raises:
    UserError: if the run hasn't written a model, or there is no benchmark.
  """
  # Imported late: a mistyped flag is answered at once, and `commands.run` forks
  # (`machines.watch`) before JAX and what it brings are there.
  from mmrl import storage
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
  return runner.evaluate_run(built, built.params)


def run_strategy(
  strategy: Mapping[str, Any],
  benchmark: Mapping[str, Any],
  models: Sequence[str],
  workdir: str,
  decoding: "Decoding",
) -> dict[str, Any]:
  """Answers a benchmark's questions by a strategy, and grades the answers.

  Args:
    strategy: spec of `mmrl.strategies`.
    benchmark: spec of `mmrl.benchmarks`.
    models: see `strategies.evaluating.models.assign`.
    workdir: folder of this run, see `strategies.evaluating.items`.
    decoding: how models answer.

  Returns:
    The summary, which is written to the folder as well. An item that failed is
    graded as an empty answer, and counted.

  Raises:
    UserError: naming the flag that is wrong; or that a model can't be reached,
      after which the same command goes on.
  """
  from mmrl import benchmarks, build, json_files, storage, strategies
  from mmrl.strategies.evaluating import items as items_lib
  from mmrl.strategies.evaluating import models as models_lib
  from mmrl.workdir import lock

  name = strategy.get("name", "")
  bound = build.bind(strategies, strategy, "--strategy", provided=("example",))
  asks = getattr(bound.function, "asks", None)
  roles = asks(**bound.options) if callable(asks) else asks
  sources = models_lib.assign(models, roles, name)
  questions = build.construct(
    benchmarks, benchmark, "--benchmark", field="--benchmark"
  )
  if asked := getattr(questions, "asks", {}):
    raise UserError(
      "--benchmark: expected scores that ask no model, as --models are those"
      f" of the strategy, found one that reads {', '.join(asked)}; take it out"
    )
  settings = {
    "strategy": dict(strategy),
    "benchmark": dict(benchmark),
    "models": sources,
    # How many are decoded together changes no answer.
    **{k: v for k, v in vars(decoding).items() if k != "batch"},
  }
  if storage.is_remote(workdir):
    raise UserError(f"expected a --workdir on this machine, found {workdir}")
  folder = storage.path(workdir)
  with lock.hold(folder):
    items = items_lib.Items(folder, settings, len(questions))
    if items.remaining(len(questions)):
      responders = models_lib.open_all(sources, decoding)
      _answer(bound, questions, responders, items)
    summary = _summary(questions, items)
    storage.write_text(
      folder / items_lib.SUMMARY, json_files.text(summary) + "\n"
    )
  return summary


def _answer(
  bound: Any, questions: Any, responders: Any, items: "Items"
) -> None:
  """Asks what remains of the questions, and writes each item as it comes."""
  import tqdm

  from mmrl import build, python_files
  from mmrl.strategies import each
  from mmrl.strategies.evaluating.items import item

  total = len(questions)
  remaining = items.remaining(total)
  if len(remaining) < total:
    tell(f"{total - len(remaining)} of {total} questions are answered already")

  def examples() -> Iterator["Example"]:
    for index in remaining:
      # The same in every run, and unlike all others: it draws random numbers.
      example = questions[index]
      name = f"{example.name}, item {index}"
      yield dataclasses.replace(example, name=name)

  file = build.file_of(bound.name)
  guard = python_files.mistakes(file) if file else contextlib.nullcontext()
  away = failed = 0
  with (
    guard,
    tqdm.tqdm(
      total=total,
      initial=total - len(remaining),
      unit=" items",
      disable=None,
    ) as bar,
  ):
    for number, result in each(
      bound,
      examples(),
      responders,
      attempts=_ATTEMPTS,
      wait=_WAIT,
      side_by_side=_SIDE_BY_SIDE,
    ):
      items.add(item(remaining[number], result))
      bar.update()
      if result.failure is None:
        away = 0
        continue
      failed += 1
      bar.set_postfix(failed=failed)
      unreachable = result.failure.error.startswith("ConnectionError: ")
      away = away + 1 if unreachable else 0
      if away >= min(_AWAY, len(remaining)):
        done = total - len(items.remaining(total))
        reason = result.failure.error.partition(": ")[2]
        raise UserError(
          f"expected model {result.failure.model!r} to be there, found:"
          f" {reason}; {done} of {total} questions are answered and kept, run"
          " the same command again to go on"
        )


def _summary(questions: Any, items: "Items") -> dict[str, Any]:
  """Grades all items; of those that failed an empty answer."""
  import collections

  from mmrl.benchmarks.contract import Answer
  from mmrl.benchmarks.intervals import estimate
  from mmrl.strategies.evaluating.items import total_calls

  found = [items.found[i] for i in range(len(questions))]
  examples = [questions[i] for i in range(len(questions))]
  answers = [
    Answer("", 0, False)
    if one.answer is None
    else Answer(one.answer, one.length, one.ended)
    for one in found
  ]
  values = questions.grade(answers, examples)
  baseline = questions.baseline(None, examples)
  failures = collections.Counter(
    (one.failure or "").removeprefix(f"{one.name}: ")
    for one in found
    if one.answer is None
  )
  return {
    "items": len(found),
    "failed": sum(failures.values()),
    "failures": dict(failures.most_common(10)),
    "numbers": _raw(estimate(questions.summarise, values)),
    "baseline": _raw(estimate(questions.summarise, baseline)),
    "models": total_calls(items.found),
  }


def _raw(numbers: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  return {name: dataclasses.asdict(one) for name, one in numbers.items()}


def read_spec(text: str, flag: str) -> dict[str, Any]:
  """Reads a spec: a name, a JSON object, or a file with one.

  Raises:
    UserError: naming the flag, if it is none.
  """
  where, raw = flag, text.strip()
  if not raw.startswith("{") and not raw.endswith(".json"):
    return {"name": raw}
  try:
    if raw.endswith(".json") and not raw.startswith("{"):
      where = f"{flag}: {raw}"
      with open(raw, encoding="utf-8") as file:
        raw = file.read()
    found = json.loads(raw)
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"{where}: expected a JSON object of name and options, found: {error}"
    ) from error
  if not isinstance(found, dict) or not isinstance(found.get("name"), str):
    raise UserError(
      f"{where}: expected a JSON object of name and options, found"
      f" {found!r:.80}"
    )
  return found


def define_flags() -> None:
  """Defines the flags; called when this is main."""
  flags.DEFINE_string(
    "strategy", None, "How models are asked: spec of mmrl.strategies."
  )
  flags.DEFINE_multi_string(
    "models", [], "With --strategy: ROLE=MODEL; repeatable, or with commas."
  )
  flags.DEFINE_string(
    "benchmark", None, "With --strategy: spec of mmrl.benchmarks."
  )
  flags.DEFINE_integer(
    "length", 512, "With --strategy: most tokens of a reply.", lower_bound=1
  )
  flags.DEFINE_float(
    "temperature", 0.0, "With --strategy: 0 is greedy.", lower_bound=0
  )
  flags.DEFINE_integer("seed", 0, "With --strategy: of sampling.")
  flags.DEFINE_integer(
    "batch",
    16,
    "With --strategy: requests that a local model decodes together.",
    lower_bound=1,
  )
  flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "With --strategy: of local models.",
  )
  flags.DEFINE_integer(
    "frames",
    0,
    "With --strategy: most frames of a video that an endpoint is sent, as"
    " pictures; 0 refuses videos.",
    lower_bound=0,
  )


def main() -> None:
  given = flags.FLAGS
  workdir = commands.given(commands.WORKDIR)
  if given.strategy is None:
    for name in _OF_STRATEGY:
      if given[name].present:
        raise UserError(
          f"--{name}: expected --strategy with it, found none; see --help"
        )
    if not given["config"].present:
      raise UserError("expected --config or --strategy, found neither")
    return run(commands.CONFIG.value, workdir)
  if given["config"].present:
    raise UserError("expected --config or --strategy, found both")
  for name in ("models", "benchmark"):
    if not given[name].present:
      raise UserError(f"expected --{name} with --strategy, found none")
  from mmrl import json_files
  from mmrl.strategies.evaluating.models import Decoding

  fields = [field.name for field in dataclasses.fields(Decoding)]
  summary = run_strategy(
    read_spec(given.strategy, "--strategy"),
    read_spec(given.benchmark, "--benchmark"),
    given.models,
    workdir,
    Decoding(**{name: getattr(given, name) for name in fields}),
  )
  print(json_files.text(summary))


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=("workdir",), also=("config",))
