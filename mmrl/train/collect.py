"""Collection of a rollout batch: answers, rewards, advantages and probes."""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import math
import time

import jax
from jaxtyping import Array, Bool
import ml_collections
import numpy as np

from mmrl import data
from mmrl.advantages.group import informative_groups
from mmrl.machines import processes
from mmrl.rollouts import answers as answers_lib
from mmrl.rollouts import experts, refill
from mmrl.rollouts.answers import Answers
from mmrl.train.run import Run
from mmrl.train.step import State
from mmrl.types import Batch
from mmrl.workdir import log as log_lib


def sample(
  run: Run, state: State, samples: data.Samples, key: Array
) -> Answers:
  """Samples answers to a batch of questions under the current parameters."""
  prompt = run.layout.put(samples.prompt)
  rollout = run.programs.rollout(state, prompt, key)
  tokens, mask = map(run.layout.local, (rollout.tokens, rollout.mask))
  return Answers(samples.examples, prompt, rollout, tokens, mask)


def collect(
  config: ml_collections.ConfigDict,
  run: Run,
  state: State,
  samples: data.Samples,
  step: int,
  pool: concurrent.futures.Executor,
  more: Callable[[], data.Samples] | None = None,
) -> tuple[Batch, dict[str, float]]:
  """Samples, grades and probes answers to one batch of questions.

  `time/device` sums the seconds from each call of a program to its observed
  end, here and in `learn`; two programs never run at a time. It includes the
  host's part of a call: copying arguments, and in the first steps compiling.
  It ignores gaps inside a program, and `prepare` and the slicing of
  minibatches, which take almost no time.

  Args:
    config: the run's.
    run: the run.
    state: current parameters.
    samples: questions.
    step: number of this rollout batch; seed and step determine the random key.
    pool: executor that waits for the probes while answers are graded.
    more: returns further questions, for groups that are resampled.

  Returns:
    (batch, metrics).
  """
  began = time.perf_counter()
  key = jax.random.fold_in(jax.random.key(config.seed), step)
  answers = sample(run, state, samples, key)
  values: dict[str, float] = {}
  if config.rollout.refill.rounds:
    assert more is not None
    answers, values = _refill(config, run, state, answers, key, more)
  if run.experts:
    answers = experts.append(answers, run.experts, run.layout)
  sampled = time.perf_counter()
  # Dispatched before the rewards, so that host and device run in parallel.
  rollout = answers.rollout
  fields, measured = _probe(run, state, answers)
  probed = pool.submit(_end, (measured, fields))
  answers = answers_lib.grade(answers, run.rewards, run.processor)
  answers = _grade_on_devices(run, answers, fields)
  values |= _reward_metrics(config, run, answers)
  mask = rollout.mask
  if run.experts:
    logprobs = run.layout.local(fields["logprobs_old"])
    answers, used = experts.choose(answers, logprobs, config.experts)
    values |= used
  if run.experts or config.rollout.refill.rounds:
    mask = run.layout.put(answers.mask)
  rewarded = time.perf_counter()
  rewards = run.layout.put(answers_lib.total(run.rewards, answers.parts))
  own = jax.random.fold_in(key, _fold(config, config.rollout.refill.rounds + 1))
  learned = _learned(config, run, answers, mask)
  fields = run.programs.prepare(fields, rewards, mask, own, learned)
  values |= log_lib.floats(measured)
  if math.isnan(values["attention/region"]):
    del values["attention/region"]  # no region is marked
  ended = time.perf_counter()
  values["time/rollout"] = sampled - began
  values["time/reward"] = rewarded - sampled
  values["time/probe"] = ended - rewarded
  values["time/device"] = min(probed.result(), ended) - began
  visual = rollout.visual if run.frozen_vision else None
  return Batch(answers.prompt, visual, rollout.tokens, learned, fields), values


def _refill(
  config: ml_collections.ConfigDict,
  run: Run,
  state: State,
  answers: Answers,
  key: Array,
  more: Callable[[], data.Samples],
) -> tuple[Answers, dict[str, float]]:
  """Resamples groups without a learning signal; returns answers and metrics."""

  def again(number: int) -> Answers:
    own = jax.random.fold_in(key, _fold(config, number))
    fresh = sample(run, state, more(), own)
    return answers_lib.grade(fresh, run.rewards, run.processor)

  return refill.fill(
    answers_lib.grade(answers, run.rewards, run.processor),
    again,
    run.layout,
    run.programs.exchange,
    **config.rollout.refill,
  )


def _probe(run: Run, state: State, answers: Answers) -> tuple[dict, dict]:
  """Dispatches the probes of all models; returns fields and metrics."""
  fields, measured = run.programs.probe(
    state, run.params, answers.prompt, answers.rollout
  )
  if run.params_teacher is not None:
    taught = run.programs.teach(
      run.params_teacher,
      run.teacher_layout.reshard(answers.prompt),
      run.teacher_layout.reshard(answers.rollout.tokens),
    )
    fields |= run.layout.reshard(taught)
  return fields, measured


def _grade_on_devices(run: Run, answers: Answers, fields) -> Answers:
  """Grades answers by the rewards that read arrays, on the devices."""
  if all(reward.on_host for reward in run.rewards):
    return answers
  found = run.programs.reward(fields, answers.prompt, answers.rollout)
  group = answers.mask.shape[1]
  parts = {
    reward.name: answers_lib.checked(
      reward, run.layout.local(found[reward.name]), answers.examples, group
    )
    for reward in run.rewards
    if not reward.on_host
  }
  return dataclasses.replace(answers, parts={**answers.parts, **parts})


def _fold(config: ml_collections.ConfigDict, draw: int) -> int:
  """Returns the number to fold into the key for a draw after the first.

  It is at least P: splitting a key folds in 0 to P - 1, for single prompts.
  """
  return config.rollout.prompts + draw


def _truncated(
  config: ml_collections.ConfigDict, run: Run, answers: Answers
) -> Bool[np.ndarray, "P G"]:
  """Tells which answers of the policy are truncated; expert rows never are."""
  ended = (answers.tokens == run.model_config.eos_token_id).any(-1)
  return ~ended & (np.arange(ended.shape[1]) < config.rollout.answers)


def _learned(config, run: Run, answers: Answers, mask: Array) -> Array:
  """Returns the mask of tokens to learn from, without truncated answers."""
  if not config.rollout.mask_truncated:
    return mask
  cut = _truncated(config, run, answers)
  return run.layout.put(answers.mask & ~cut[..., None])


def _reward_metrics(config, run: Run, answers: Answers) -> dict[str, float]:
  """Computes mean rewards of the policy's own answers over all processes."""
  own = slice(0, config.rollout.answers)
  total = answers_lib.total(run.rewards, answers.parts)[:, own]
  truncated = _truncated(config, run, answers)[:, own]
  values = {
    f"reward/{name}": float(x[:, own].mean())
    for name, x in answers.parts.items()
  }
  values["reward/total"] = float(total.mean())
  values["reward/mixed_groups"] = float(informative_groups(total).mean())
  values["rollout/ended"] = float(1 - truncated.mean())
  if config.rollout.mask_truncated:
    values["rollout/masked"] = float(truncated.mean())
  return processes.mean(values)


def _end(arrays) -> float:
  """Waits until arrays are computed, and returns the time of that."""
  jax.block_until_ready(arrays)
  return time.perf_counter()
