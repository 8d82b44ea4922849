"""Collection of a rollout batch: questions, answers, rewards and probes."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import math
import time
import zlib

import jax
from jaxtyping import Float, Int
import numpy as np

from mmrl import console, data, marks
from mmrl.advantages.group import informative_groups
from mmrl.controls import rewards as told
from mmrl.errors import UserError, say
from mmrl.machines import processes
from mmrl.prompts import spans
from mmrl.prompts.processor import Processor
from mmrl.rollouts import answers as answers_lib
from mmrl.rollouts.answers import Answers, Reward
from mmrl.rollouts.source import Request, extra_key
from mmrl.train import step as step_lib
from mmrl.train.run import Run
from mmrl.train.state import State
from mmrl.types import Batch
from mmrl.workdir import log as log_lib


@console.doing("collecting answers")
def collect(
  run: Run,
  state: State,
  samples: data.Samples,
  step: int,
  pool: concurrent.futures.Executor,
  more: Callable[[], data.Samples],
  show: Callable[[Answers], None] | None = None,
) -> tuple[Batch, dict[str, float]]:
  """Collects answers to one batch of questions, graded and probed.

  `time/device` sums the seconds from each call of a program to its observed
  end, here and in `learn`, with copying and compiling; two never run at a time.
  It ignores gaps inside a program, `prepare` and the slicing of minibatches.

  Args:
    run: the run.
    state: current parameters.
    samples: questions.
    step: number of this rollout batch; seed and step determine the random key.
    pool: executor that waits for the probes while answers are graded.
    more: returns further questions, for groups that are resampled.
    show: takes the graded answers, to show some of them.

  Returns:
    (batch, numbers to log).
  """
  began = time.perf_counter()
  key = jax.random.fold_in(jax.random.key(run.config.seed), step)
  grade = _grader(run)
  request = Request(state, samples, key, more, grade)
  answers, values = run.source.collect(request)
  answers = _with_host_fields(run, answers)
  sampled = time.perf_counter()
  # Dispatched before the rewards, so that host and device run in parallel.
  batch, measured = _probe(run, state, answers.batch)
  probed = pool.submit(_end, (measured, batch.fields))
  answers = _grade_on_devices(run, state, grade(answers), batch)
  if step == 1:
    print_hints(run.method.rewards, answers, run.processor)
  added = answers_lib.addends(run.method.rewards, answers, step)
  rewards = answers_lib.summed(added, answers)
  values |= _reward_metrics(run, answers, batch, added, rewards)
  batch, chosen = _choose(run, answers, batch)
  values |= chosen
  rewarded = time.perf_counter()
  mask, fields = run.programs.prepare(
    batch,
    run.layout.put(rewards),
    jax.random.fold_in(
      key, extra_key(run.config.rollout.prompts, run.source.draws + 1)
    ),
  )
  batch = dataclasses.replace(batch.with_fields(**fields), mask=mask)
  # A share of nothing, such as attention on regions where none is marked.
  numbers = log_lib.floats(measured).items()
  values |= {k: v for k, v in numbers if not math.isnan(v)}
  ended = time.perf_counter()
  values["time/rollout"] = sampled - began
  values["time/reward"] = rewarded - sampled
  values["time/probe"] = ended - rewarded
  values["time/device"] = min(probed.result(), ended) - began
  if show:
    show(answers)
  return batch, values


def _grader(run: Run) -> Callable[[Answers], Answers]:
  """Makes what grades answers by the rewards that read texts."""
  return functools.partial(
    answers_lib.grade,
    rewards=run.method.rewards,
    processor=run.processor,
    layout=run.layout,
    given=run.asked,
  )


def _with_host_fields(run: Run, answers: Answers) -> Answers:
  """Adds the fields that the host computes, where a function reads them."""
  fields = {}
  if "epoch" in run.method.fields:
    epochs = [example.epoch for example in answers.examples]
    fields["epoch"] = np.array(epochs, np.int32)
  if "draw" in run.method.fields:
    texts = [f"{run.config.seed} {x.epoch} {x.name}" for x in answers.examples]
    draws = [zlib.crc32(text.encode()) >> 1 for text in texts]
    fields["draw"] = np.array(draws, np.int32)
  if "span" in run.method.fields:
    ends = run.processor.config.ends(answers.tokens)
    fields["span"] = spans.token_spans(
      answers.tokens, answers.mask, run.processor.tokenizer, ends
    )
  batch = answers.batch.with_fields(**run.layout.put(fields))
  return dataclasses.replace(answers, batch=batch)


def draw(questions, state: State, checkpoints, position) -> data.Samples:
  """Returns the next questions; on a broken one, saves the run and raises.

  It saves the state and data position of the step's beginning.
  """
  try:
    return next(questions)
  except UserError:
    # A no-op if this step is saved already; other processes wouldn't join in.
    if int(state.step) and jax.process_count() == 1:
      checkpoints.save(state, position)
    raise


def _probe(run: Run, state: State, batch: Batch) -> tuple[Batch, dict]:
  """Dispatches the probes of all models; returns the batch, and measures."""
  fields, measured = run.programs.probe(state, run.fixed, batch)
  for name, program in run.programs.probes_apart.items():
    layout = run.method.models[name].layout
    apart = layout.reshard(step_lib.for_probes_apart(batch))
    found = program(run.fixed[name], apart)
    fields |= run.layout.reshard(found)
  return batch.with_fields(**fields), measured


def _choose(
  run: Run, answers: Answers, batch: Batch
) -> tuple[Batch, dict[str, float]]:
  """Drops answers that nothing is learned from, and what updates don't read."""
  fields = {
    name: run.layout.local(batch.fields[name]) for name in run.source.reads
  }
  chosen, values = run.source.choose(answers, fields)
  mask = batch.mask
  if chosen is not None:
    mask = run.layout.put(answers.mask & chosen[..., None])
  visual = batch.visual if run.frozen_vision else None
  batch = dataclasses.replace(batch, mask=mask, visual=visual, prefix=None)
  return batch, values


def _grade_on_devices(
  run: Run, state: State, answers: Answers, batch: Batch
) -> Answers:
  """Grades answers by the rewards that read arrays, on the devices."""
  read = [reward for reward in run.method.rewards if not reward.on_host]
  if not read:
    return answers
  values = {k: answers.parts[n] for k, n in run.method.graded.items()}
  batch = batch.with_fields(**run.layout.put(values))
  found = run.programs.reward(state, run.fixed, batch)
  group = answers.mask.shape[1]
  parts = {
    reward.name: answers_lib.checked(
      reward.bound,
      run.layout.local(found[reward.name]),
      answers.examples,
      group,
      nan=answers_lib.is_measure(reward, run.method.rewards),
    )
    for reward in read
  }
  return dataclasses.replace(answers, parts={**answers.parts, **parts})


def _reward_metrics(
  run: Run,
  answers: Answers,
  batch: Batch,
  added: Mapping[str, np.ndarray],
  total: np.ndarray,
) -> dict[str, float]:
  """Computes mean rewards of the policy's own answers over all processes.

  One may not apply to all of them: then its mean is that of the others, and
  `reward_applies/NAME` is their share.

  Args:
    run: the run.
    answers: graded.
    batch: of the answers.
    added: what each reward adds to the total, [P, G].
    total: of them, [P, G].
  """
  own = slice(0, run.config.rollout.answers)
  ended = run.layout.local(batch.fields["ended"])[:, own].mean()
  values = {"rollout/ended": float(ended)}
  if run.config.rollout.mask_truncated:
    values["rollout/masked"] = 1.0 - float(ended)
  if answers.parts:
    total = total[:, own]
    values["reward/total"] = float(total.mean())
    values["reward/mixed_groups"] = float(informative_groups(total).mean())
    alone = told.alone({name: x[:, own] for name, x in added.items()})
    values |= {f"reward_alone/{name}": x for name, x in alone.items()}
  graded = _measured(run, answers, own)
  for name, x in graded.items():
    applies = np.isfinite(x)
    values[f"reward/{name}"] = float(np.where(applies, x, 0.0).mean())
    values[f"reward_applies/{name}"] = float(applies.mean())
  values = processes.mean(values)
  for name in graded:
    share = values[f"reward_applies/{name}"]
    if share == 1:
      del values[f"reward_applies/{name}"]
    elif share:
      values[f"reward/{name}"] /= share
    else:
      del values[f"reward/{name}"]
  values |= _spreads(graded, answers.mask[:, own].sum(-1), values)
  for one in run.asked.values():
    values |= processes.total(one.end_step())
  return values


def _measured(
  run: Run, answers: Answers, own: slice
) -> dict[str, Float[np.ndarray, "P G"]]:
  """Returns values of each reward, NaN where it doesn't apply."""
  return {
    one.name: marks.where_applies(
      one.bound.function, answers.parts[one.name][:, own], answers.examples
    )
    for one in run.method.rewards
    if one.name in answers.parts
  }


def _spreads(
  graded: Mapping[str, Float[np.ndarray, "P G"]],
  lengths: Int[np.ndarray, "P G"],
  means: Mapping[str, float],
) -> dict[str, float]:
  """Computes how rewards are spread inside groups; see `controls.rewards`."""
  if lengths.shape[1] < 2:
    return {}
  squares = {
    name: told.squares(values, lengths, means[f"reward/{name}"])
    for name, values in graded.items()
    if f"reward/{name}" in means
  }
  # Processes wait for each other once, not for each reward.
  mean = processes.mean(
    {
      f"{name}/{key}": x
      for name, of in squares.items()
      for key, x in of.items()
    }
  )
  found: dict[str, float] = {}
  for name, of in squares.items():
    numbers = told.finish({key: mean[f"{name}/{key}"] for key in of})
    found |= {f"reward_{key}/{name}": x for key, x in numbers.items()}
  return found


def print_hints(
  rewards: Sequence[Reward], answers: Answers, processor: Processor
) -> None:
  """Prints the hints of rewards that are 0 for all answers of a first batch.

  A reward's function may carry a `hint`: a text, or what makes one of its
  options, with likely causes and what to do.

  Args:
    rewards: of the run.
    answers: graded.
    processor: decodes the first answer, which is shown.
  """
  for reward in rewards:
    bound, values = reward.bound, answers.parts[reward.name]
    hint = getattr(bound.function, "hint", None)
    if hint is None or values.any() or jax.process_index():
      continue
    text = hint if isinstance(hint, str) else hint(**bound.options)
    first = processor.decode(answers.tokens[:1, :1], answers.mask[:1, :1])[0]
    say(
      f"{bound.where}: {bound.name} is 0 for all {values.size} answers of the"
      f" first batch; {text}. The first answer begins {first[:80]!r}"
    )


def _end(arrays) -> float:
  """Waits until arrays are computed, and returns the time of that."""
  jax.block_until_ready(arrays)
  return time.perf_counter()
