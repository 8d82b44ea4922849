"""Token weights from the policy's entropy at each token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses.surrogates import upcast


def entropy_quantile(
  entropies_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  quantile: float = 0.8,
) -> Float[Array, "P G R"]:
  """Selects the tokens of highest entropy in the rollout batch (80/20 rule).

      w_t = 1[H_t >= quantile of H over all answer tokens],    else 0

  Args:
    entropies_old: entropies under the behaviour policy, nats.
    mask: True on answer tokens.
    quantile: in [0, 1); 0.8 keeps about a fifth, 0 keeps all.

  Raises:
    UserError: if the quantile is outside [0, 1).

  Reference: Beyond the 80/20 rule, arXiv 2506.01939.
  Reconstructed: the denominator of the loss term is the number of all tokens.
  """
  if not 0 <= quantile < 1:
    raise UserError(f"quantile must be in [0, 1), got {quantile}")
  entropies_old = upcast(entropies_old)
  valid = jnp.where(mask, entropies_old, jnp.nan)
  threshold = jnp.nanquantile(valid, quantile)
  return jnp.where(mask & (entropies_old >= threshold), 1.0, 0.0)
