"""Which visual tokens are masked, and how many as training goes on."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models.passes import visual as visual_lib
from mmrl.types import Prompt

# Share of the steps without a mask of the schedule "constant".
_BEFORE = 0.125


def ratio_at(
  step: Int[Array, ""] | int,
  steps: int,
  most: float,
  schedule: Literal["cosine", "constant"] = "cosine",
) -> Float[Array, ""]:
  """Returns the share of visual tokens that is masked in a step.

      cosine:    r(t) = most (1 - cos(pi t / steps)) / 2
      constant:  0 for an eighth of the steps, then `most`

  Args:
    step: t, updates before this one.
    steps: updates of the run.
    most: the largest share.
    schedule: which of them.

  Reference: LaVer, arXiv 2512.06281, its released code.
  """
  share = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0)
  if schedule == "constant":
    return jnp.where(share < _BEFORE, 0.0, most)
  return most * (1 - jnp.cos(jnp.pi * share)) / 2


def noise(draw: Int[Array, "P"], prompt: Prompt) -> Float[Array, "P S"]:
  """Draws a number in [0, 1) for each visual token of each prompt.

  They depend on `draw` and the token's number in its prompt alone, not on
  where the prompt is packed.
  """
  index = prompt.visual_index
  first = jnp.where(index >= 0, index, index.shape[1] * len(index)).min(1)

  def one(draw, index, first):
    key = jax.random.fold_in(jax.random.key(0), draw)
    values = jax.random.uniform(key, index.shape)
    return values[jnp.clip(index - first, 0, len(index) - 1)]

  return jax.vmap(one)(draw, index, first)


def exact(
  values: Float[Array, "B N"],
  runs: Int[Array, "B N 2"],
  ratio: Float[Array, ""] | float,
) -> Bool[Array, "B N"]:
  """Masks floor(ratio x n) of the n tokens of each frame, the lowest values.

  Args:
    values: random numbers.
    runs: first token of each one's frame, one past its last.
    ratio: in [0, 1).
  """
  count = runs[..., 1] - runs[..., 0]
  first = jnp.where(count > 0, runs[..., 0], values.shape[1])
  order = jnp.lexsort((values, first), axis=-1)
  rank = jnp.argsort(order, axis=-1) - first
  return (count > 0) & (rank < jnp.floor(ratio * count))


def of_batch(
  draw: Int[Array, "P"], prompt: Prompt, merge: int, ratio: Float[Array, ""]
) -> Bool[Array, "B N"]:
  """Masks the visual tokens of a batch; see `exact` and `noise`."""
  runs = visual_lib.runs(prompt.patches, merge)
  values = visual_lib.from_prompts(noise(draw, prompt), prompt, runs.shape[1])
  return exact(values, runs, ratio)
