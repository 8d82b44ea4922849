"""LASER's two attention rewards: looking evenly in time, and not at sinks.

Reference: arXiv 2607.01707, as in its published code. There both count on
right, well-formed answers only, from step 20 on: see `times` and `start` of
`config.rewards`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.types import Prompt

_SCALE, _OFFSET, _DECAY = 0.1, 0.015, 1.5


def _check(
  *, window: int = 10, stride: int = 5, sharpness: float = 5.0
) -> None:
  if window < 1 or stride < 1 or sharpness < 0:
    raise UserError(
      "expected window and stride of at least 1 and sharpness of at least 0,"
      f" found {window}, {stride} and {sharpness}"
    )


@marked(check=_check)
def visual_evenness(
  visual_attention_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  window: int = 10,
  stride: int = 5,
  sharpness: float = 5.0,
) -> Float[Array, "P G"]:
  """Rewards answers that look at the picture as much late as early.

      w_i = mean of the attention in window i = 0 .. W-1
      R = 0.1 sum_i g_i (exp(-sharpness (1 - w_i / max_j w_j)) - 0.015)
      g_i proportional to exp(-1.5 i / (W - 1)), sum 1

  It is relative to its own maximum: attention times a constant has the same
  reward.

  Args:
    visual_attention_old: of each token, on visual tokens that are no sinks.
    mask: True on answer tokens.
    window: tokens of a window; answers of at most so many have reward 0.
    stride: tokens from one window to the next, at least 1.
    sharpness: at least 0.

  Returns:
    In [-0.0015, 0.0985]; 0 where no token looks at a picture.

  Reconstructed: windows that don't fit into the answer are left out.
  """
  length = mask.sum(-1)
  room = mask.shape[-1]
  if room <= window:
    return jnp.zeros(length.shape, jnp.float32)
  start = jnp.arange(0, room - window + 1, stride)
  at = start[:, None] + jnp.arange(window)[None]
  values = jnp.where(mask, visual_attention_old.astype(jnp.float32), 0.0)
  means = values[..., at].mean(-1)
  fits = start[None, None] + window <= length[..., None]
  means = jnp.where(fits, means, 0.0)
  most = means.max(-1, keepdims=True)
  even = means / jnp.where(most > 0, most, 1.0)
  count = jnp.maximum(fits.sum(-1, keepdims=True), 1)
  place = jnp.arange(len(start), dtype=jnp.float32)[None, None]
  weights = jnp.exp(-_DECAY * place / jnp.maximum(count - 1, 1))
  weights = jnp.where(fits, weights, 0.0)
  weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
  gains = jnp.exp(-sharpness * (1 - even)) - _OFFSET
  reward = _SCALE * (weights * gains).sum(-1)
  return jnp.where((length > window) & (most[..., 0] > 0), reward, 0.0)


def _check_sinks(*, allowed: float = 0.9, sharpness: float = 0.5) -> None:
  if allowed < 0 or sharpness < 0:
    raise UserError(
      "expected allowed and sharpness of at least 0, found"
      f" {allowed} and {sharpness}"
    )


@marked(check=_check_sinks)
def sink_suppression(
  sink_ratio_old: Float[Array, "P G R"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
  *,
  allowed: float = 0.9,
  sharpness: float = 0.5,
) -> Float[Array, "P G"]:
  """Rewards answers that don't look at visual sinks.

      R = mean_t exp(-sharpness max(0, r_t - allowed))

  Args:
    sink_ratio_old: r, attention on a sink over that on any visual token.
    prompt: tells which questions have a picture.
    mask: True on answer tokens.
    allowed: ratio up to which nothing is taken off.
    sharpness: at least 0.

  Returns:
    In [0, 1]; 1 where there are no sinks, 0 without a picture or a token.
  """
  ratio = jnp.where(mask, sink_ratio_old.astype(jnp.float32), 0.0)
  values = jnp.exp(-sharpness * jnp.maximum(ratio - allowed, 0.0))
  length = mask.sum(-1)
  total = jnp.where(mask, values, 0.0).sum(-1) / jnp.maximum(length, 1)
  pictured = (prompt.visual_index >= 0).any(-1, keepdims=True)
  return jnp.where(pictured & (length > 0), total, 0.0)
