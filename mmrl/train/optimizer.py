"""Optimiser from a config."""

from collections.abc import Mapping

import optax

from mmrl import build


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
