"""Dynamic sampling: groups that teach nothing are drawn again (DAPO).

A group whose answers are all right, or all wrong, has advantage zero. Its place
goes to a group of the next questions; what is left over of those is dropped.

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
  """For each place, the group that will stand there.

  Groups stay on the shard where they are, so that nothing moves between
  devices.

  Args:
    kept: which of the groups so far stay.
    fresh: which of the new ones are wanted.
    shards: equal parts that both are cut into.

  Returns:
    Of each place its index in (groups so far, new groups) of its shard.
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
  """Arrays that lead with P, taken from two batches; in a jit.

  Args:
    layout: of both.
    old: the groups so far.
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
  """(prompt and rollout, new ones, source) -> those that are kept, jitted."""

  def by_prompts(pair: tuple[Prompt, Rollout]) -> tuple[Prompt, Rollout]:
    """The other way round: keys and values lead with layers."""
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
  """Draws groups again until all are mixed, or `rounds` are over.

  Args:
    answers: graded.
    again: the number of a round to graded answers to the next questions.
    layout: of both.
    exchange: from `make_exchange`.
    rounds: the most that are drawn.
    reward: name of the one that is not the same for all answers of a group.

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
  """The chosen groups of two batches, as far as they are on the host."""
  # The same as one index into both batches of this process.
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
