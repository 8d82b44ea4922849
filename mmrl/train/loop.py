"""Training loop, the same for every method."""

from collections.abc import Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import statistics
import time
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from mmrl import console, data, hub, overview, storage
from mmrl.benchmarks import best as best_lib
from mmrl.benchmarks import results, runner
from mmrl.benchmarks.results import Result
from mmrl.errors import UserError, say
from mmrl.machines import processes, signals
from mmrl.train import collect, walk
from mmrl.train import run as run_lib
from mmrl.train.run import Run
from mmrl.train.state import State
from mmrl.types import Batch, PyTree
from mmrl.workdir import (
  checkpoint,
  claim,
  lock,
  sound,
  summary,
  trackers,
  writing,
)
from mmrl.workdir import log as log_lib


def train(
  config: ml_collections.ConfigDict, workdir: str, *, check: bool = False
) -> dict:
  """Trains a model, evaluates before and after, and writes report and model.

  A stopped run resumes from its newest checkpoint when this is called again
  with the same config and working directory, but for what may change
  (`claim.MAY_CHANGE`). It ends with the same parameters as an uninterrupted
  run. A finished one is left as it is.

  Args:
    config: see `mmrl.config`.
    workdir: directory of all outputs: config.json, metrics.jsonl, tensorboard/,
      checkpoints/, model/, before.json, after.json, summary.json, report.html,
      questions.json, samples.jsonl, and skipped.jsonl if some are left out.
    check: whether all questions are opened and measured first; check.jsonl
      then lists those that can't be used.

  Returns:
    The summary that is written to summary.json; empty on all processes but the
    first, which writes.

  Raises:
    UserError: for a mistake in config or data, before any work is lost.
    Preempted: if SIGTERM or ctrl-C asked the run to stop.
  """
  began = time.perf_counter()
  path = storage.path(workdir)
  with contextlib.ExitStack() as stack:
    # A notebook needs lock and signal handlers to be released at the end.
    termination = stack.enter_context(signals.Termination())
    processes.check_same(f"{workdir} {check} {config.to_dict()}")
    compilations = log_lib.Compilations()
    finished: list[dict | None] = []

    def first() -> None:
      stack.enter_context(lock.hold(path))  # before anything is written
      finished.append(claim.check(path, config))
      stack.enter_context(console.Console())

    processes.first_only(first)
    if processes.any_of(any(finished)):
      return _already(path, finished)
    run = run_lib.build_run(
      config, workdir=path, check_to=path / run_lib.CHECKED if check else None
    )
    overview.say(run, path)
    processes.first_only(lambda: claim.claim(path, config))
    processes.first_only(lambda: run.record.write(path))
    compiling = stack.enter_context(walk.ahead(run))
    # Kept as a reference only where something reads them.
    state, run = run.initial_state(), dataclasses.replace(run, params=None)
    params, found = _train(
      run, state, path, compilations, termination, compiling
    )
    if jax.process_index():
      return {}
    _save(run, params, path / "model")
    return summary.write(
      path,
      config,
      run.benchmarks,
      **found,
      processor=run.processor,
      skipped=run.record.skipped,
      wall_seconds=time.perf_counter() - began,
      compile_seconds=compilations.seconds,
    )


@console.phase("writing the model")
def _save(run: Run, params: PyTree, path: epath.Path) -> None:
  hub.save(hub.Model(run.model_config, params, run.processor), path)


def _already(path: epath.Path, finished: Sequence[dict | None]) -> dict:
  """Says that a run has finished; returns its summary on the first process."""
  for found in finished:
    assert found is not None
    say(
      f"{path} has already finished its {found['steps']} steps, nothing is"
      " changed; raise config.train.steps to go on"
    )
    return found
  return {}


def _train(
  run: Run,
  state: State,
  path: epath.Path,
  compilations: log_lib.Compilations,
  termination: signals.Termination,
  compiling: walk.Ahead,
) -> tuple[PyTree, dict[str, Any]]:
  """Trains between two evaluations.

  Returns:
    (parameters, what a summary tells: results before and after, best step, last
    sample completions).
  """
  checkpoints = checkpoint.Checkpoints(
    path,
    keep=run.config.checkpoint.keep,
    fault=sound.Soundness(vars(state)),
  )
  questions = read_questions(run)
  if checkpoints.latest is not None:
    # Read, unless somebody removed it: of the parameters of step 0.
    _evaluation(run, state.params, path / "before.json")
    with console.phase("reading the checkpoint"):
      state, position = checkpoints.restore(state)
    questions.set_state(position)
    state = run.at_step(state, int(state.step))
    say(f"resuming {path} after step {int(state.step)}")
  checkpoints.prepare(state)
  questions.start_prefetch()
  first = jax.process_index() == 0
  log = _open_log(run, path, int(state.step)) if first else None
  try:
    before = _evaluation(run, state.params, path / "before.json")
    for name, result in before.items():
      say(f"before: {results.line(name, result)}")
    best_lib.check_results(run.config, results.flat(before))
    with console.doing("compiling"):
      compiling.wait()
    state = _steps(
      run,
      state,
      questions,
      checkpoints,
      log,
      compilations,
      termination,
      compiling,
    )
  finally:
    # Saved steps reach the disk however the run ends.
    if log:
      log.close()
    checkpoints.wait()
    checkpoints.close()
    questions.close()
  return processes.whole(state.params), {
    "before": before,
    "after": _evaluation(run, state.params, path / "after.json"),
    "best": checkpoints.best,
    "samples": log.samples if log else (),
  }


def _open_log(run: Run, path: epath.Path, step: int) -> log_lib.Log:
  """Opens the log of a run that goes on after a step, and its trackers."""
  settings = run.config.to_dict()
  tracked = trackers.Run(path, step, settings)
  opened = trackers.Trackers(settings["trackers"], tracked)
  return log_lib.Log(path, step=step, trackers=opened)


def read_questions(run: Run):
  """Makes the run's endless iterator over batches of training questions."""
  config = run.config
  prompts = config.rollout.prompts
  return data.batches(
    run.train_source,
    run.processor,
    batch_size=prompts,
    places=run.layout.order(prompts)[run.layout.places(prompts)],
    together=run.source.together,
    answer_length=config.rollout.length,
    seed=config.seed,
    lengths=config.data.lengths,
    patches=config.data.patches,
    pack=run.pack,
    threads=config.data.threads,
    workers=config.data.workers,
  )


def _evaluation(run: Run, params, path: epath.Path) -> dict[str, Result]:
  """Evaluates parameters, or reads the results of the run's earlier start."""
  if processes.mean({"exists": float(path.exists())})["exists"] == 1:
    return results.load(path)
  with console.phase(f"evaluating {path.stem} training"):
    found = runner.evaluate_run(run, params)
  if jax.process_index() == 0:
    writing.attempt(lambda: results.save(found, path))
  return found


def _evaluated(
  run: Run,
  state: State,
  step: int,
  logged: Mapping[str, float],
  checkpoints: checkpoint.Checkpoints,
) -> dict[str, float]:
  """Evaluates the parameters after a step, if the config asks for it.

  If it is the best one so far, its checkpoint is to be kept.

  Raises:
    UserError: at the first step, if a benchmark has the name of a group of what
      is logged anyway, whose numbers would be mistaken for its own.
  """
  taken = run.benchmarks.keys() & {name.partition("/")[0] for name in logged}
  if taken:
    raise UserError(
      "config.evaluation.benchmarks: expected names that nothing else is"
      f" logged under, found {min(taken)!r}; rename the benchmark"
    )
  if not best_lib.due(run.config, step):
    return {}
  began = time.perf_counter()
  with console.phase(f"evaluating after step {step}"):
    found = results.flat(runner.evaluate_run(run, state.params))
  if run.config.checkpoint.best:
    checkpoints.best = best_lib.after(
      run.config.checkpoint, checkpoints.best, step, found
    )
  return found | {"time/evaluation": time.perf_counter() - began}


def _steps(
  run: Run,
  state: State,
  questions,
  checkpoints,
  log: log_lib.Log | None,
  compilations,
  termination: signals.Termination,
  compiling: walk.Ahead,
) -> State:
  """Trains step by step until the config's number of rollout batches is done.

  The time of a step begins where the previous step's ends. So it includes the
  previous step's logging and checkpoint, and the wait for its own questions.
  `time/device_busy` is the share of it in which the device was busy; see
  `collect`.
  """
  config = run.config
  first, last = int(state.step), config.train.steps
  saved = first
  with (
    concurrent.futures.ThreadPoolExecutor() as pool,
    console.steps(first, last) as progress,
  ):
    ended = time.perf_counter()
    for step in range(first + 1, last + 1):
      termination.in_step = True
      began, asked = ended, time.perf_counter()
      position = questions.get_state()
      samples = collect.draw(questions, state, checkpoints, position)
      waited = time.perf_counter() - asked
      compiling.wait(samples.prompt, shares=_measures_shares(config, step))
      batch, values = collect.collect(
        run,
        state,
        samples,
        step,
        pool,
        functools.partial(
          collect.draw, questions, state, checkpoints, position
        ),
        functools.partial(log.show, run, step) if log else None,
      )
      state, values = learn(run, state, batch, values, step, saved)
      state = run.at_step(state, step)
      values |= _evaluated(run, state, step, values, checkpoints)
      ended = time.perf_counter()
      values["data/shrunk"] = samples.shrunk
      values["time/data"] = waited
      values["time/step"] = ended - began
      values["time/device_busy"] = values["time/device"] / (ended - began)
      values["time/compilations"] = compilations.count
      values |= compilations.latest()
      stop = processes.any_of(termination.asked > 0)
      if log:
        log.write(step, values)
      if progress:
        progress.end(step, ended - began, overview.numbers(run, values))
      if stop or _is_saved(config, step, checkpoints.best):
        with console.doing("saving a checkpoint"):
          if log:
            log.flush()
          checkpoints.save(state, questions.get_state())
        saved = step
      if stop:
        termination.leave(step)
      termination.in_step = False
  if termination.asked:  # while the last step was saved
    termination.leave(last)
  return state


def _is_saved(
  config: ml_collections.ConfigDict, step: int, best: best_lib.Best | None
) -> bool:
  regular = step % config.checkpoint.every == 0 or step == config.train.steps
  return regular or (best is not None and best.step == step)


def _measures_shares(config: ml_collections.ConfigDict, step: int) -> bool:
  every = config.shares.every
  return bool(every) and step % every == 0


@console.doing("updating the parameters")
def learn(
  run: Run,
  state: State,
  batch: Batch,
  values: Mapping[str, float],
  step: int,
  saved: int,
) -> tuple[State, dict[str, float]]:
  """Updates the parameters on all minibatches of one rollout batch.

  A metric NAME is of the last update: at the first one the policies are still
  equal and the attention term is zero by definition. With several updates there
  are also `first/NAME` and `mean/NAME`, in separate sections of TensorBoard.

  Args:
    run: the run.
    state: donated.
    batch: from `collect`.
    values: metrics so far.
    step: number of this rollout batch.
    saved: step of the newest checkpoint, for the message of an error.

  Returns:
    (state, metrics).
  """
  began = time.perf_counter()
  config, values = run.config, dict(values)
  parts = config.train.minibatches
  updates = parts * config.train.epochs
  device = values.get("time/device", 0.0)
  every_update = []
  for update in range(updates):
    minibatch = np.int32(update % parts)
    called = time.perf_counter()
    if update == updates - 1 and _measures_shares(config, step):
      shares, norms = run.programs.shares(state, run.fixed, batch, minibatch)
      state = dataclasses.replace(state, norms=norms)
      values |= log_lib.floats(shares)
    state, measured = run.programs.update(state, run.fixed, batch, minibatch)
    measured = log_lib.floats(measured)
    device += time.perf_counter() - called
    sound.require_finite(measured, step, update + 1, saved)
    every_update.append(measured)
  values |= measured
  if updates > 1:
    values |= {f"first/{k}": v for k, v in every_update[0].items()}
    means = {k: statistics.fmean(x[k] for x in every_update) for k in measured}
    values |= {f"mean/{k}": v for k, v in means.items()}
  values["time/update"] = time.perf_counter() - began
  values["time/device"] = device
  return state, values
