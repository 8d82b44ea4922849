"""Checks that what training computes is sound: metrics, and states to save.

Loss and gradient of an update are checked before what the update makes of the
parameters is known. So a state is checked before it is saved, when it is read
again, and thereby before a model is made of it:

  every number of parameters, optimiser, terms and averages is finite, unless it
  wasn't at step 0;
  no trained parameter is in size above 1000 x max(1, the largest at step 0).

An update that blew up may leave values such as 1e30, with which normalised
layers still compute finite numbers. No training makes parameters a thousand
times larger.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array
import numpy as np

from mmrl.errors import UserError
from mmrl.workdir.checksums import everywhere

_GROWTH = 1000.0
# Fields of a state that training changes.
_PARTS = ("trainable", "optimizer", "running", "averages", "norms")


class Soundness:
  """Finds what is wrong with the states of a run, given that of step 0."""

  def __init__(self, start: Mapping[str, Any]):
    """Measures the state of step 0; `start` holds its fields by name."""
    sizes = _sizes(start)
    self._odd = {k for k, size in sizes.items() if not math.isfinite(size)}
    trained = [size for k, size in sizes.items() if _is_trained(k)]
    self._limit = _GROWTH * max([1.0, *filter(math.isfinite, trained)])

  def __call__(self, state: Mapping[str, Any]) -> str:
    """Describes what is wrong first with a state; '' if nothing is."""
    for name, size in _sizes(state).items():
      if name in self._odd:
        continue
      if not math.isfinite(size):
        return f"{name} is {size}"
      if _is_trained(name) and size > self._limit:
        return (
          f"{name} holds {size:.3g}, a thousand times the largest parameter at"
          " step 0"
        )
    return ""


def require_finite(
  values: Mapping[str, float], step: int, update: int, saved: int
) -> None:
  """Checks that all metrics of an update, such as the loss, are finite.

  Raises:
    UserError: naming the metric, the step and the last checkpoint.
  """
  for name, value in values.items():
    if not math.isfinite(value):
      raise UserError(
        f"{name} is {value} at step {step}, update {update}; {newest(saved)}."
        " Lower the learning rate or clip_norm, or compute in float32"
      )


def newest(step: int | None) -> str:
  """Says which checkpoint is the newest; none is of step 0."""
  if not step:
    return "there is no checkpoint yet"
  return f"the newest checkpoint is of step {step}"


def _is_trained(name: str) -> bool:
  return name.startswith("trainable/")


def _sizes(state: Mapping[str, Any]) -> dict[str, float]:
  """Computes the largest absolute value of each array; NaN if it holds one."""
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(
      {part: state[part] for part in _PARTS}
    )[0]
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size
  }
  if not leaves:
    return {}
  found = np.asarray(_program(everywhere(leaves.values()))(leaves))
  # jit sorts the keys of a dictionary.
  return dict(zip(sorted(leaves), found.tolist(), strict=True))


@functools.cache
def _program(out: Sharding | None) -> Callable:
  def size(leaf: Array) -> Array:
    # A maximum over several devices may leave out NaN.
    odd = jnp.isnan(leaf)
    largest = jnp.where(odd, 0, jnp.abs(leaf)).max().astype(jnp.float32)
    return jnp.where(odd.any(), jnp.nan, largest)

  def soundness(leaves: dict[str, Array]):
    return jnp.stack([size(leaves[name]) for name in sorted(leaves)])

  return jax.jit(soundness, out_shardings=out)
