"""Whether a minibatch says anything, or its gradient is nothing but rounding.

Optimisers such as Adam divide a gradient by its own size. So they make whole
steps of whatever there is: where all rewards are equal, of the rounding by
which two programs differ that compute the log-probabilities of one model, which
the KL to the reference takes for a distance.

A term is silent on a minibatch if the root mean square of its slopes by the
scores s of tokens is at most `tolerance` times that of its coefficients c:

    sum_t (d total / d s_t)^2 <= tolerance^2 sum_t c_t^2

    tolerance = 0                    of a term that reads advantages
    tolerance = sqrt(eps) / 4        of any other

eps is the rounding of the type that the model computes in: 9e-5 nats in
float32, 0.02 in bfloat16. A silent KL is one of policies nearer than that, at
every token; a term with advantages is silent where all of them are 0. What
learns from likelihoods has slopes of 1.

A minibatch is without a signal if all terms are silent. A term that
differentiates anything but the scores of tokens, such as logits or parameters
of its own, is never taken for silent.
"""

from collections.abc import Callable, Collection, Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Scores [P, G, R] of the current parameters.
_OF_TOKENS = ("logprobs", "entropies", "attention_moved")
# What else of them a term may differentiate.
_OTHERS = {
  *("attention", "logits", "forward", "hidden", "learned", "params", "visual")
}


def measurable(needs: Collection[str]) -> bool:
  """Tells whether a term that needs these data differentiates scores only."""
  others = set(needs) & _OTHERS
  if "attention_moved" in needs:
    others -= {"attention"}  # of which that is a function
  return not others


def tolerance(needs: Collection[str], dtype: str) -> float:
  """Computes the tolerance of a term that needs these data."""
  if "advantages" in needs:
    return 0.0
  return math.sqrt(float(jnp.finfo(dtype).eps)) / 4


def squares(
  total: Callable[[Mapping[str, Array]], Array],
  context: Mapping[str, Any],
  needs: Collection[str],
  coefficients: Float[Array, "P *rest"],
) -> Float[Array, "2"]:
  """Computes the sums of squares of a term's slopes and of its coefficients.

  Both add up over the parts of a minibatch.

  Args:
    total: the term's reduced value, as a function of the scores it is given.
    context: has the scores.
    needs: names of the term's data.
    coefficients: of its reduction.
  """
  scores = {name: context[name] for name in _OF_TOKENS if name in needs}
  slopes = jax.grad(total)(jax.lax.stop_gradient(scores)) if scores else {}
  found = sum(jnp.sum(x * x) for x in slopes.values())
  return jnp.stack([jnp.asarray(found, jnp.float32), (coefficients**2).sum()])


def silent(sums: Float[Array, "2"], tolerance: float) -> Bool[Array, ""]:
  """Tells whether a term is silent; NaN isn't."""
  return sums[0] <= tolerance**2 * sums[1]
