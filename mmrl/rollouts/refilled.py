"""Dynamic sampling (DAPO): groups without a learning signal are resampled.

A group whose answers are all right, or all wrong, has advantage zero. A mixed
group of the next questions replaces it; unused new groups are dropped.

Reference: arXiv 2503.14476 section 3.2.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import numpy as np

from mmrl.advantages.group import informative_groups
from mmrl.errors import UserError
from mmrl.machines import processes
from mmrl.machines.sharding import Layout
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.source import Call, Request, Setup, Source, extra_key, trace
from mmrl.types import Batch, PyTree


class Refilled(Source):
  """Replaces groups without a learning signal by groups of other questions."""

  one_size = True

  def __init__(self, setup: Setup, inner: Source, rounds: int, reward: str):
    self._setup, self._inner = setup, inner
    self._rounds, self._reward = rounds, reward
    self._exchange = make_exchange(setup.layout)
    self.group, self.temperature = inner.group, inner.temperature
    self.draws = inner.draws + rounds
    self.fields, self.reads = inner.fields, inner.reads
    self.measures, self.learns = inner.measures, inner.learns

  def open(self, questions, processor):
    self._inner.open(questions, processor)

  def calls(self, state, prompt, key, held=None):
    # Groups are drawn again while those so far are kept.
    first = trace(self._inner.calls(state, prompt, key), self._setup.layout)
    batch = yield from self._inner.calls(state, prompt, key, (first, held))
    places = (len(prompt.next_position),)
    source = self._setup.shape(*places, dtype="int32")
    arguments = batch, batch, source
    return (yield Call("exchange", self._exchange, arguments, held))

  def collect(self, request: Request):
    answers, values = self._inner.collect(request)

    def again(number: int) -> Answers:
      own = extra_key(self._setup.prompts, number)
      key = jax.random.fold_in(request.key, own)
      fresh = dataclasses.replace(request, samples=request.more(), key=key)
      return request.grade(self._inner.collect(fresh)[0])

    answers, more = fill(
      request.grade(answers),
      again,
      self._setup.layout,
      self._exchange,
      rounds=self._rounds,
      reward=self._reward,
    )
    return answers, values | more

  def choose(self, answers, fields):
    chosen, values = self._inner.choose(answers, fields)
    mixed = informative_groups(answers.parts[self._reward])[:, None]
    kept = np.broadcast_to(mixed, answers.mask.shape[:2])
    return kept if chosen is None else kept & chosen, values


def refilled(
  setup: Setup, *, of: Mapping[str, Any], rounds: int, reward: str
) -> Source:
  """Resamples groups whose `reward` is the same for all answers.

  They are replaced by groups of the next questions. Groups that are still not
  mixed after `rounds` are dropped. A minibatch of only such groups has gradient
  0, but momentum and weight decay still act.

  Args:
    setup: of the run.
    of: spec of where answers come from.
    rounds: most times that groups are drawn again, at least 0.
    reward: name of the reward that must differ within a mixed group.

  Raises:
    UserError: if an option is outside its range, the reward doesn't read texts
      (no probe has run yet), or the data have several padded sizes: a group can
      only replace one of the same shape.
  """
  if rounds < 0:
    raise UserError(f"rounds: expected at least 0, found {rounds}")
  texts = [name for name, on_host in setup.rewards.items() if on_host]
  if reward not in texts:
    raise UserError(
      "reward: expected one of config.rewards that reads texts,"
      f" {', '.join(texts)}, found {reward!r}"
    )
  if max(setup.buckets) > 1:
    raise UserError(
      "expected one size in config.data.lengths and in config.data.patches"
      f" where groups are drawn again, found {setup.buckets[0]} and"
      f" {setup.buckets[1]}"
    )
  return Refilled(setup, setup.inner(of, "config.rollout.of"), rounds, reward)


def sources(
  kept: Bool[np.ndarray, "P"], fresh: Bool[np.ndarray, "P"], shards: int
) -> Int[np.ndarray, "P"]:
  """Chooses which old or new group fills each place of the batch.

  Groups stay on their shard, so that no data move between devices.

  Args:
    kept: which of the old groups stay.
    fresh: which of the new groups may replace one.
    shards: number of equal parts that both batches are cut into.

  Returns:
    For each place, an index into (old groups, new groups) of its shard.
  """
  count = len(kept) // shards
  found = np.tile(np.arange(count), (shards, 1))
  for own, old, new in zip(
    found, kept.reshape(shards, -1), fresh.reshape(shards, -1), strict=True
  ):
    places, wanted = np.flatnonzero(~old), np.flatnonzero(new)
    number = min(len(places), len(wanted))
    own[places[:number]] = count + wanted[:number]
  return found.reshape(-1)


def exchanged(
  layout: Layout, old: PyTree, new: PyTree, source: Int[Array, "P"]
) -> PyTree:
  """Gathers the chosen groups from two batches of arrays [P, ...]; in a jit.

  Args:
    layout: of both.
    old: the old groups.
    new: the new groups.
    source: from `sources`.
  """

  def one(a, b):
    parts = [x.reshape(layout.shards, -1, *x.shape[1:]) for x in (a, b)]
    both = jnp.concatenate(parts, axis=1)
    index = source.reshape(layout.shards, -1)
    return jax.vmap(lambda x, i: x[i])(both, index).reshape(a.shape)

  return layout.constrain(jax.tree.map(one, old, new))


def make_exchange(layout: Layout) -> Callable:
  """Makes the jitted (old batch, new batch, source) -> chosen batch."""

  def by_prompts(batch: Batch) -> Batch:
    """Swaps the axes of layers and prompts of keys and values, either way."""
    prefix = batch.prefix
    if prefix is None:
      return batch
    prefix = dataclasses.replace(
      prefix,
      keys=jnp.swapaxes(prefix.keys, 0, 1),
      values=jnp.swapaxes(prefix.values, 0, 1),
    )
    return dataclasses.replace(batch, prefix=prefix)

  def function(old, new, source):
    taken = exchanged(layout, by_prompts(old), by_prompts(new), source)
    return by_prompts(taken)

  return layout.jit(function)


def fill(
  answers: Answers,
  again: Callable[[int], Answers],
  layout: Layout,
  exchange: Callable,
  *,
  rounds: int,
  reward: str,
) -> tuple[Answers, dict[str, float]]:
  """Resamples groups until all are mixed, or `rounds` are used up.

  Args:
    answers: graded.
    again: maps the number of a round to graded answers to the next questions.
    layout: of both.
    exchange: from `make_exchange`.
    rounds: the largest number of rounds.
    reward: name of the reward that must differ within a mixed group.

  Returns:
    (answers, numbers to log). `rollout/unfilled` is the share of groups that
    are still not mixed.
  """
  drawn = 0
  prompts = answers.batch.mask.shape[0]
  shards = len(answers.examples) * layout.shards // prompts

  def mixed(found: Answers):
    return informative_groups(found.parts[reward])

  def missing() -> float:
    share = float((~mixed(answers)).mean())
    return processes.mean({"missing": share})["missing"]

  # `missing` is a mean over processes, so all stop after the same round.
  while drawn < rounds and missing():
    drawn += 1
    fresh = again(drawn)
    source = sources(mixed(answers), mixed(fresh), shards)
    batch = exchange(answers.batch, fresh.batch, layout.put(source))
    answers = _join(answers, fresh, source, shards)
    answers = dataclasses.replace(answers, batch=batch)
  values = {"rollout/refills": float(drawn), "rollout/unfilled": missing()}
  return answers, values


def _join(
  old: Answers, new: Answers, source: Int[np.ndarray, "P"], shards: int
) -> Answers:
  """Gathers the chosen groups of two batches: their arrays on the host."""
  # `source` is per shard; this indexes both batches of this process at once.
  count = len(source) // shards
  first = np.repeat(np.arange(shards) * count, count)
  index = first + source % count + np.where(source < count, 0, len(source))

  def take(a, b):
    return np.concatenate([a, b])[index]

  examples = (*old.examples, *new.examples)
  return dataclasses.replace(
    old,
    examples=[examples[i] for i in index],
    tokens=take(old.tokens, new.tokens),
    mask=take(old.mask, new.mask),
    parts={k: take(v, new.parts[k]) for k, v in old.parts.items()},
  )
