"""Token weights that correct the mismatch between sampler and scorer."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses import surrogates


def sampler_mismatch(
  logprobs_old: Float[Array, "P G R"],
  logprobs_sampler: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  level: str = "token",
  kind: str = "truncate",
  cap: float = 2.0,
  lower: float = 0.0,
  normalize: bool = False,
) -> Float[Array, "P G R"]:
  """Computes truncated importance weights of the scorer over the sampler.

      ln u_t = logprobs_old - logprobs_sampler       level "token"
      ln u = sum over the tokens of the answer       level "sequence"
      w = min(u, cap)                                kind "truncate"
      w = u where lower <= u <= cap, else 0          kind "mask"
      w = w / mean w                                 normalize

  Both have the behaviour parameters, but a sampler with another precision,
  kernel or temperature draws from a slightly different policy. Where they
  agree the weight is exactly 1. Denominators of reductions don't change.

  Args:
    logprobs_old: of the tokens, as the scorer computes them.
    logprobs_sampler: of the tokens, as the sampler computed them.
    mask: True on answer tokens.
    level: "token", or "sequence" for one weight per answer.
    kind: "truncate" or "mask".
    cap: positive. verl uses 2, TRL 3 with "sequence" and "mask".
    lower: in [0, cap], for "mask" only.
    normalize: whether weights are divided by their mean over the rollout
      batch: over tokens or, with level "sequence", over answers; an option of
      verl's. If the mean is 0 they stay 0.

  Returns:
    The weights, 0 on padding.

  Raises:
    UserError: if an option has none of these values.

  Reference: truncated importance sampling as in verl and TRL. The log-ratio
  is clamped to +-20, as in verl.
  """
  if level not in ("token", "sequence"):
    raise UserError(f"level must be 'token' or 'sequence', got {level!r}")
  if kind not in ("truncate", "mask"):
    raise UserError(f"kind must be 'truncate' or 'mask', got {kind!r}")
  if cap <= 0:
    raise UserError(f"cap must be positive, got {cap}")
  if not 0 <= lower <= (cap if kind == "mask" else 0):
    raise UserError(
      f"lower must be in [0, cap], and 0 for kind 'truncate', got {lower}"
    )
  log_ratio = surrogates.log_ratio(logprobs_old, logprobs_sampler, mask)
  if level == "sequence":
    log_ratio = log_ratio.sum(-1, keepdims=True)
  ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
  if kind == "truncate":
    ratio = jnp.minimum(ratio, cap)
  else:
    ratio = jnp.where((lower <= ratio) & (ratio <= cap), ratio, 0.0)
  if normalize:
    counts = mask if level == "token" else mask.any(-1, keepdims=True)
    total = jnp.where(counts, ratio, 0.0).sum()
    ratio *= counts.sum() / jnp.where(total > 0, total, 1.0)
  return jnp.where(mask, ratio, 0.0)
