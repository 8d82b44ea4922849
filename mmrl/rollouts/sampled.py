"""Answers that the policy samples: groups, or pairs of their best and worst."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mmrl.advantages.group import informative_groups
from mmrl.errors import UserError
from mmrl.machines import processes
from mmrl.rollouts import measures, sampler
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.source import Call, Request, Setup, Source
from mmrl.types import Batch, Prompt


class Sampled(Source):
  """Samples G answers per prompt from the current policy."""

  fields = ("ended", "logprobs_sampler")
  measures = (
    measures.lengths,
    measures.sampler_scorer_gap,
    measures.attention_on_region,
  )

  def __init__(self, setup: Setup, temperature: float, **options):
    self._setup = setup
    self.group = setup.answers
    self.temperature = temperature or 1.0  # greedy answers are scored at 1
    self._program = make_program(setup, temperature=temperature, **options)

  def calls(self, state, prompt, key, held=None):
    return (yield Call("rollout", self._program, (state, prompt, key), held))

  def collect(self, request: Request):
    layout = self._setup.layout
    prompt = layout.put(request.samples.prompt)
    batch = self._program(request.state, prompt, request.key)
    return Answers.of(request.samples.examples, batch, layout), {}


def sampled(
  setup: Setup,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Source:
  """Samples answers from the current policy.

  Args:
    setup: of the run.
    temperature: divides the logits; 0 is greedy.
    top_k: number of most likely tokens that are drawn from; 0 for all.
    top_p: mass of the most likely tokens that are drawn from, in (0, 1].

  Raises:
    UserError: if an option is outside its range.
  """
  if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
    raise UserError(
      "expected temperature and top_k of at least 0 and top_p in (0, 1], found"
      f" {temperature}, {top_k} and {top_p}"
    )
  return Sampled(setup, temperature, top_k=top_k, top_p=top_p)


class BestAndWorst(Source):
  """Returns the best and the worst answer of each group, as a pair."""

  def __init__(self, setup: Setup, inner: Source, reward: str):
    self._setup, self._inner, self._reward = setup, inner, reward
    self.group = 2
    self.temperature, self.draws = inner.temperature, inner.draws
    self.fields = (*inner.fields, "chosen")
    self.reads, self.measures = inner.reads, inner.measures
    self._program = setup.layout.jit(_take_pairs)

  def open(self, questions, processor):
    self._inner.open(questions, processor)

  def calls(self, state, prompt, key, held=None):
    batch = yield from self._inner.calls(state, prompt, key, held)
    pairs = self._setup.shape(len(prompt.next_position), 2, dtype="int32")
    return (yield Call("pairs", self._program, (batch, pairs), held))

  def collect(self, request: Request):
    answers, values = self._inner.collect(request)
    answers = request.grade(answers)
    pairs = best_and_worst(answers.parts[self._reward])
    batch = self._program(answers.batch, self._setup.layout.put(pairs))

    def take(x):
      index = pairs.reshape(*pairs.shape, *[1] * (x.ndim - 2))
      return np.take_along_axis(x, index, axis=1)

    means = {
      f"reward/{name}_of_group": float(x.mean())
      for name, x in answers.parts.items()
    }
    taken = dataclasses.replace(
      answers,
      batch=batch,
      tokens=take(answers.tokens),
      mask=take(answers.mask),
      parts={name: take(x) for name, x in answers.parts.items()},
    )
    return taken, values | processes.mean(means)

  def choose(self, answers, fields):
    chosen, values = self._inner.choose(answers, fields)
    differs = informative_groups(answers.parts[self._reward])
    values |= processes.mean({"rollout/pairs": float(differs.mean())})
    kept = np.broadcast_to(differs[:, None], answers.mask.shape[:2])
    return kept if chosen is None else kept & chosen, values


def best_and_worst(
  rewards: Float[np.ndarray, "P G"],
) -> Int[np.ndarray, "P 2"]:
  """Returns the places of the best and the worst answer of each group.

  The first of equals is taken. Where all are equal the two are no pair: see
  `informative_groups`.
  """
  places = np.stack([rewards.argmax(axis=1), rewards.argmin(axis=1)], axis=1)
  return places.astype(np.int32)


def _take_pairs(batch: Batch, pairs: Int[Array, "P 2"]) -> Batch:
  """Takes two answers of each group, the first of which is the chosen one."""

  def take(x):
    index = pairs.reshape(*pairs.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)

  chosen = jnp.broadcast_to(jnp.array([True, False]), pairs.shape)
  return dataclasses.replace(
    batch,
    tokens=take(batch.tokens),
    mask=take(batch.mask),
    fields={name: take(x) for name, x in batch.fields.items()}
    | {"chosen": chosen},
  )


def sampled_pairs(
  setup: Setup, *, of: Mapping[str, Any], reward: str
) -> Source:
  """Pairs the best of each group of G sampled answers with its worst.

  Groups whose answers all have the same reward teach nothing: they are left
  out, and `rollout/pairs` is the share of the others. `reward/NAME_of_group` is
  the mean of a reward over all G answers, `reward/NAME` that over the pairs.

  Args:
    setup: of the run.
    of: spec of where answers come from.
    reward: name of the reward that tells best and worst.

  Raises:
    UserError: if the reward doesn't read texts (no probe has run yet), groups
      have fewer than 2 answers, or experts' answers among them.
  """
  texts = [name for name, on_host in setup.rewards.items() if on_host]
  if reward not in texts:
    raise UserError(
      "reward: expected one of config.rewards that reads texts,"
      f" {', '.join(texts) or 'of which there is none'}, found {reward!r}"
    )
  inner = setup.inner(of, "config.rollout.of")
  if inner.group < 2:
    raise UserError(
      "config.rollout.answers: expected at least 2, of which one is better,"
      f" found {inner.group}"
    )
  if "sampled" in inner.fields or "chosen" in inner.fields:
    raise UserError(
      "config.rollout.of: expected a source of whole groups, such as sampled,"
      f" found {of['name']}"
    )
  return BestAndWorst(setup, inner, reward)


def make_program(setup: Setup, *, forces: bool = False, **options):
  """Makes the program that samples under the training parameters.

  Each prompt has a random key of its own, by its index in the stream of
  questions, so its answers don't depend on its device.
  """
  layout = setup.layout

  def rollout(state, prompt: Prompt, key: Array, *forced) -> Batch:
    prompts = prompt.mask.shape[0]
    keys = jax.random.split(key, prompts)[layout.order(prompts)]
    found = sampler.rollout(
      state.params,
      setup.model,
      prompt,
      keys,
      attention_layers=setup.layers,
      answers=setup.answers,
      length=setup.length,
      forced=forced[0] if forces else None,
      **options,
    )
    # The prefix, led by layers, is sharded as it was computed.
    parts = {
      name: layout.constrain(x)
      for name, x in vars(found).items()
      if name not in ("prompt", "prefix")
    }
    return Batch(prompt=prompt, prefix=found.prefix, **parts)

  return layout.jit(rollout)
