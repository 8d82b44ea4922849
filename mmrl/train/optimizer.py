"""Optimiser of a config."""

from collections.abc import Mapping

import optax

from mmrl import build


def make(
  optimizer: Mapping, schedule: Mapping, clip_norm: float
) -> optax.GradientTransformation:
  """Makes an optax optimiser on a schedule, after global-norm clipping.

  Args:
    optimizer: spec of an optax optimiser, without its learning rate.
    schedule: spec of an optax schedule, which counts optimiser updates.
    clip_norm: largest norm of the gradient; infinity clips nothing.
  """
  rate = build.construct(optax, schedule, "config.schedule")
  update = build.construct(
    optax, optimizer, "config.optimizer", learning_rate=rate
  )
  return optax.chain(optax.clip_by_global_norm(clip_norm), update)
