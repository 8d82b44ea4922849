"""Policy-gradient losses over sampled answers and expert trajectories."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses import surrogates


def expert_shaped(
  logprobs: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  sampled: Bool[Array, "P G"] | None = None,
  *,
  shape: float = 0.1,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
) -> Float[Array, "P G R"]:
  """Computes the clipped surrogate, and a shaped probability on expert rows.

      expert rows:  loss = -A f(pi) w,    f(pi) = pi / (pi + shape)
      other rows:   loss = clipped_ratio

  The probability with which an expert wrote a token is unknown, so there is no
  ratio and no clip; f, in [0, 1 / (1 + shape)], bounds the term instead. Its
  derivative in log pi, shape pi / (pi + shape)^2, is largest, 1/4, at
  pi = shape: rare expert tokens keep a gradient, near-certain ones lose it.
  f is computed as sigmoid(log pi - log shape), which is 0 with derivative 0 at
  log pi = -inf.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_old: of the behaviour policy; not read on expert rows.
    advantages: of each answer, or of each token.
    token_weights: w, of each token.
    mask: True on answer tokens; False throughout on experts that aren't kept.
    sampled: False on expert rows; None if there are none, which is
      `clipped_ratio`, bit for bit.
    shape: above 0.
    clip_low: on sampled answers; see `clipped_ratio`.
    clip_high: on sampled answers; see `clipped_ratio`.
    dual_clip: on sampled answers; see `clipped_ratio`.

  Returns:
    The unreduced loss.

  Raises:
    UserError: if `shape` isn't above 0, or a bound is outside its range.

  Reference: TGRL, arXiv 2603.26126; the expert term of LUFFY, arXiv
  2504.14945.
  Reconstructed: only the abstract of TGRL's paper could be read, which names
  expert trajectories, token weights and a filter, without a formula. The term
  and shape = 0.1 are LUFFY's; the token weights on it are ours, and so is the
  clip on sampled answers, which LUFFY's published runs leave out.
  """
  if shape <= 0:
    raise UserError(f"shape must be above 0, got {shape}")

  def clipped(mask):
    return surrogates.clipped_ratio(
      logprobs,
      logprobs_old,
      advantages,
      token_weights,
      mask,
      clip_low=clip_low,
      clip_high=clip_high,
      dual_clip=dual_clip,
    )

  if sampled is None:
    return clipped(mask)
  expert = ~sampled[..., None]
  # Each formula reads only its own rows: the other rows may hold anything.
  read = jnp.where(mask & expert, surrogates.upcast(logprobs), 0.0)
  shaped = jax.nn.sigmoid(read - math.log(shape))
  scale = surrogates.per_token(advantages) * token_weights
  taught = -shaped * jax.lax.stop_gradient(scale)
  return jnp.where(expert, taught, clipped(mask & ~expert))
