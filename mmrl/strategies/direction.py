"""Direction of RL's change to a model, token by token.

RL changes few tokens of an answer, and the sign of

    D(y) = ln pi_RL(y) - ln pi_base(y)

tells which. This module has statistics of D, gates that open where RL made a
token less likely, and the distribution extrapolated from base beyond RL.

Reference: On the Direction of RLVR Updates for LLM Reasoning, arXiv 2603.22117,
and its published code (Hesse73/RLVR-Directions).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.errors import UserError

Gate = Literal["logp", "entropy", "kl", "js", "random"]
GATES = get_args(Gate)


def difference(
  logp_rl: Float[Array, "*shape"], logp_base: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """Computes `logp_rl - logp_base`; 0, not NaN, where both are -inf."""
  same = logp_rl == logp_base
  return jnp.where(same, 0.0, logp_rl - jnp.where(same, 0.0, logp_base))


def delta_logp(
  logp_rl: Float[Array, "P G R"],
  logp_base: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G R"]:
  """Computes the direction of RL's change at each answer token, in nats.

      D_t = ln pi_RL(y_t | x, y_<t) - ln pi_base(y_t | x, y_<t)

  Args:
    logp_rl: log-probabilities of the tokens under the trained parameters.
    logp_base: of the tokens under the parameters before training.
    mask: True on answer tokens.

  Returns:
    D, 0 on padding; no gradient.

  Reference: arXiv 2603.22117.
  """
  change = jnp.where(mask, difference(logp_rl, logp_base), 0.0)
  return jax.lax.stop_gradient(change)


def direction_stats(
  logp_rl: Float[Array, "P G R"],
  logp_base: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  quantiles: Sequence[float] = (0.05, 0.5, 0.95),
  beyond: float = 0.25,
) -> dict[str, Array]:
  """Computes mean, quantiles and tails of D, RL's change of the answers.

  Args:
    logp_rl: see `delta_logp`.
    logp_base: see `delta_logp`.
    mask: True on answer tokens.
    quantiles: in [0, 1], linear between tokens.
    beyond: |D| above which a token counts as a tail, nats.

  Returns:
    `mean`, `quantiles` (as many as given) and `share_beyond`, the share of
    tokens with |D| > beyond. NaN if the mask is empty.
  """
  change = delta_logp(logp_rl, logp_base, mask)
  valid = jnp.where(mask, change, jnp.nan)
  return {
    "mean": jnp.nanmean(valid),
    "quantiles": jnp.nanquantile(valid, jnp.array(quantiles)),
    "share_beyond": (jnp.abs(change) > beyond).sum() / mask.sum(),
  }


def extrapolated_logits(
  logp_rl: Float[Array, "*batch V"],
  logp_base: Float[Array, "*batch V"],
  g: float | Array,
) -> Float[Array, "*batch V"]:
  """Extrapolates log-probabilities from `pi_base` beyond `pi_RL`.

      ln pi_ex = (1 + g) ln pi_RL - g ln pi_base - ln Z

  Args:
    logp_rl: log-probabilities under the trained parameters.
    logp_base: under those before training.
    g: size of the extrapolation; 0 is `pi_RL` itself, bit for bit.

  Returns:
    ln pi_ex up to ln Z. It is -inf where either row is, so rows without a
    common token are -inf everywhere.

  Reference: arXiv 2603.22117.
  Reconstructed: the handling of -inf, which the published code never meets.
  """
  never = jnp.isneginf(logp_rl) | jnp.isneginf(logp_base)
  change = jnp.where(never, 0.0, logp_rl - logp_base)
  return jnp.where(never, -jnp.inf, logp_rl + g * change)


def direction_gate(
  logp_rl: Float[Array, "*batch"],
  logp_base: Float[Array, "*batch"],
  threshold: float | Array,
) -> Bool[Array, "*batch"]:
  """Tells where RL made a token less likely: `D(y) <= threshold`.

  Args:
    logp_rl: log-probability of the token under the trained parameters.
    logp_base: under those before training.
    threshold: below 0, nats, so that equal models never open the gate.

  Reference: arXiv 2603.22117; published: -0.4 to -0.3.
  """
  return difference(logp_rl, logp_base) <= threshold


def replacement_gate(
  kind: str,
  logp_rl: Float[Array, "*batch V"],
  logp_base: Float[Array, "*batch V"],
  token: Int[Array, "*batch"],
  threshold: float | Array,
  uniform: Float[Array, "*batch"],
) -> Bool[Array, "*batch"]:
  """Tells which drawn tokens are replaced, by one of the paper's criteria.

      logp      D(y) <= threshold
      entropy   H(pi_base) >= threshold
      kl        KL(pi_RL || pi_base) >= threshold
      js        (KL(pi_RL || pi_base) + KL(pi_base || pi_RL)) / 2 >= threshold
      random    uniform < threshold

  Args:
    kind: one of these. (The published code's js isn't the Jensen-Shannon
      divergence.)
    logp_rl: log-probabilities under the trained parameters.
    logp_base: under those before training.
    token: the drawn token.
    threshold: in nats; for "random" a share in [0, 1].
    uniform: in [0, 1); only "random" reads it.

  Raises:
    UserError: if there is no such gate.

  Reference: arXiv 2603.22117.
  Differs from the paper: entropies and divergences are over the whole
  vocabulary; the published code's are over 50 tokens.
  """
  one_of("gate", kind, GATES)
  if kind == "logp":
    rl, base = (
      jnp.take_along_axis(logp, token[..., None], axis=-1)[..., 0]
      for logp in (logp_rl, logp_base)
    )
    return direction_gate(rl, base, threshold)
  if kind == "entropy":
    return -_expected(logp_base, logp_base) >= threshold
  if kind == "kl":
    return _kl(logp_rl, logp_base) >= threshold
  if kind == "js":
    both = _kl(logp_rl, logp_base) + _kl(logp_base, logp_rl)
    return both / 2 >= threshold
  return uniform < threshold


def _expected(logp: Array, values: Array) -> Array:
  """Computes the mean of `values` under p, ignoring them where p is 0."""
  p = jnp.exp(logp)
  return jnp.where(p > 0, p * values, 0.0).sum(-1)


def _kl(logp: Array, logq: Array) -> Array:
  """Computes KL(p || q) in nats; infinite where p > 0 = q."""
  return _expected(logp, difference(logp, logq))


def one_of(name: str, value: str, known: Sequence[str]) -> None:
  """Checks that an option's value is among the known ones.

  Raises:
    UserError: if it isn't.
  """
  if value not in known:
    raise UserError(f"{name} must be one of {known}, got {value!r}")
