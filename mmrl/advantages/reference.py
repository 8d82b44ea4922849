"""KL penalty to the reference in the reward, as opposed to in the loss."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses import surrogates


def penalty(
  logprobs_old: Float[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"] | None,
  mask: Bool[Array, "P G R"],
  *,
  beta: float,
  estimator: str = "k1",
) -> Float[Array, "P G R"]:
  """Computes `beta` times a KL estimate at each token; 0 on padding.

  With estimator k1 it is `beta (logprobs_old - logprobs_ref)`.

  Args:
    logprobs_old: of the behaviour policy.
    logprobs_ref: of the frozen reference; may be None if beta is 0.
    mask: True on answer tokens.
    beta: at least 0.
    estimator: see `mmrl.losses.surrogates.reference_kl`.

  Raises:
    UserError: if beta is negative, or positive without a reference, or there is
      no such estimator.
  """
  if beta < 0:
    raise UserError(f"beta must be at least 0, got {beta}")
  if beta == 0:
    return jnp.zeros(mask.shape, jnp.float32)
  if logprobs_ref is None:
    raise UserError(
      f"beta={beta} needs logprobs_ref, which this run doesn't have; add probe"
      " 'reference' to config.probes or set beta to 0"
    )
  return beta * surrogates.reference_kl(
    logprobs_old, logprobs_ref, mask, estimator=estimator
  )
