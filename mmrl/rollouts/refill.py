"""Dynamic sampling (DAPO): groups without a learning signal are resampled.

A group whose answers are all right, or all wrong, has advantage zero. A mixed
group of the next questions replaces it; unused new groups are dropped.

Reference: arXiv 2503.14476 section 3.2.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import numpy as np

from mmrl.advantages.group import informative_groups
from mmrl.machines import processes
from mmrl.machines.sharding import Layout
from mmrl.rollouts.answers import Answers
from mmrl.types import Prompt, PyTree, Rollout


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
  """Makes the jitted (old, new, source) -> chosen (prompt, rollout)."""

  def by_prompts(pair: tuple[Prompt, Rollout]) -> tuple[Prompt, Rollout]:
    """Swaps the axes of layers and prompts of keys and values, either way."""
    prompt, rollout = pair
    prefix = rollout.prefix
    prefix = dataclasses.replace(
      prefix,
      keys=jnp.swapaxes(prefix.keys, 0, 1),
      values=jnp.swapaxes(prefix.values, 0, 1),
    )
    return prompt, dataclasses.replace(rollout, prefix=prefix)

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
    (answers, metrics). Groups that are still not mixed have empty masks;
    `rollout/unfilled` is their share.
  """
  drawn = 0
  prompts = answers.rollout.mask.shape[0]
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
    prompt, rollout = exchange(
      (answers.prompt, answers.rollout),
      (fresh.prompt, fresh.rollout),
      layout.put(source),
    )
    answers = _join(answers, fresh, source, shards)
    answers = dataclasses.replace(answers, prompt=prompt, rollout=rollout)
  values = {"rollout/refills": float(drawn), "rollout/unfilled": missing()}
  mask = answers.mask & mixed(answers)[:, None, None]
  return dataclasses.replace(answers, mask=mask), values


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
