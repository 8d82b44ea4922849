"""Optimiser from a config, and which parameters it may move."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import jax
import optax

from mmrl import build
from mmrl.errors import UserError
from mmrl.models.parameters import path_name
from mmrl.types import PyTree


def partition(
  params: PyTree, frozen: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits parameters into those that train and those that don't.

  Args:
    params: nested parameters, or their shapes.
    frozen: regular expressions; a parameter whose path (`vision/blocks/...`)
      one of them matches from the start is frozen.

  Returns:
    (trainable, frozen), each a flat dict from path to leaf.

  Raises:
    UserError: if an expression matches nothing, or nothing is left.
  """
  flat = {
    path_name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  for rule in frozen:
    if not any(re.match(rule, path) for path in flat):
      raise UserError(
        f"config.frozen: {rule!r} matches no parameter; paths begin with"
        f" {', '.join(sorted({p.split('/')[0] for p in flat}))}"
      )
  stays = {p for p in flat if any(re.match(rule, p) for rule in frozen)}
  if len(stays) == len(flat):
    raise UserError("config.frozen: expected a parameter to train, found none")
  return (
    {p: x for p, x in flat.items() if p not in stays},
    {p: x for p, x in flat.items() if p in stays},
  )


def merge(*parts: Mapping[str, jax.Array]) -> PyTree:
  """Nested parameters from flat dicts; undoes `partition`."""
  params: dict = {}
  for part in parts:
    for path, leaf in part.items():
      *parents, name = path.split("/")
      node = params
      for parent in parents:
        node = node.setdefault(parent, {})
      node[name] = leaf
  return params


def make(
  optimizer: Mapping, schedule: Mapping, clip_norm: float
) -> optax.GradientTransformation:
  """Global-norm clipping, then an optax optimiser on an optax schedule.

  Args:
    optimizer: spec of an optax optimiser, without its learning rate.
    schedule: spec of an optax schedule, in optimiser updates.
    clip_norm: largest norm of the gradient; infinity clips nothing.
  """
  rate = build.construct(optax, schedule, "config.schedule")
  update = build.construct(
    optax, optimizer, "config.optimizer", learning_rate=rate
  )
  return optax.chain(optax.clip_by_global_norm(clip_norm), update)
