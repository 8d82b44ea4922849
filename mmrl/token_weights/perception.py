"""Weights of the tokens that read the picture and of those that argue."""

import fractions

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmrl.errors import UserError


def perception_reasoning(
  nucleus_entropies_old: Float[Array, "P G R"],
  logprobs_old: Float[Array, "P G R"],
  logprobs_blind: Float[Array, "P G R"],
  pictured: Bool[Array, "P"],
  mask: Bool[Array, "P G R"],
  key: Key[Array, ""],
  *,
  reasoning_fraction: float = 0.3,
  perception_fraction: float = 0.3,
  reasoning_weight: float = 1.0,
  perception_weight: float = 0.5,
  denominator: str = "all",
) -> Float[Array, "P G R"]:
  """ToR's weights: uncertain tokens, then those that hang on the picture.

      E_t = entropy of the nucleus,    S_t = |ln pi_old(t) - ln pi_blind(t)|
      T_r = top reasoning_fraction of E,    T_p = top perception_fraction of S
      w_t = reasoning_weight     if t in T_r
            perception_weight    if t in T_p and not in T_r
            0                    otherwise

  Both are chosen from the whole rollout batch; see `top_fraction`. Answers to
  a question without a picture aren't in the pool of T_p.

  Args:
    nucleus_entropies_old: E, nats.
    logprobs_old: under the behaviour policy.
    logprobs_blind: under the same policy without the picture.
    pictured: which prompts have a picture.
    mask: True on answer tokens.
    key: random key of the rollout batch, which breaks ties.
    reasoning_fraction, perception_fraction: in (0, 1].
    reasoning_weight, perception_weight: the weights.
    denominator: "all" leaves the weights as they are, so that a mean is over
      all n answer tokens. "selected" multiplies them by n over the number of
      tokens of positive weight in the rollout batch.

  Returns:
    w; 0 on padding.

  Raises:
    UserError: if a fraction is outside (0, 1], or there is no such
      denominator.

  Reference: arXiv 2603.25077 eq. 5 to 9.
  Reconstructed: the paper's text couldn't be read; formulas and settings are
  those of others' accounts and of a re-implementation. Denominator, ties and
  prompts without a picture are chosen here.
  """
  for name, fraction in (
    ("reasoning_fraction", reasoning_fraction),
    ("perception_fraction", perception_fraction),
  ):
    if not 0 < fraction <= 1:
      raise UserError(f"{name} must be in (0, 1], got {fraction}")
  if denominator not in ("all", "selected"):
    raise UserError(
      f"denominator must be 'all' or 'selected', got {denominator!r}"
    )
  sensitivity = jnp.abs(
    logprobs_old.astype(jnp.float32) - logprobs_blind.astype(jnp.float32)
  )
  of_reasoning, of_perception = jax.random.split(key)
  reasoning = top_fraction(
    nucleus_entropies_old, mask, reasoning_fraction, of_reasoning
  )
  perception = top_fraction(
    sensitivity,
    mask & pictured[:, None, None],
    perception_fraction,
    of_perception,
  )
  weights = jnp.where(perception, jnp.float32(perception_weight), 0.0)
  weights = jnp.where(reasoning, jnp.float32(reasoning_weight), weights)
  if denominator == "selected":
    weights *= mask.sum() / jnp.maximum((weights > 0).sum(), 1)
  return weights


def top_fraction(
  scores: Float[Array, "*batch"],
  mask: Bool[Array, "*batch"],
  fraction: float,
  key: Key[Array, ""],
) -> Bool[Array, "*batch"]:
  """The k = ceil(fraction n) tokens of highest score, ties at random.

  Exactly k of the n tokens of the mask, over all of the batch. Where most
  scores are 0, comparing with a quantile would take every token.

  Args:
    scores: may be anything off the mask.
    mask: True on the tokens to choose from.
    fraction: in (0, 1], taken as the nearest ratio of whole numbers up to
      10,000.
    key: random key.

  Returns:
    True on the chosen tokens; none where the mask is empty.
  """
  count = _ceil_of(fraction, mask.sum())
  scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
  draw = jax.random.bits(key, mask.shape)
  order = jnp.lexsort([x.ravel() for x in (draw, -scores, ~mask)])
  chosen = jnp.arange(mask.size) < count
  return jnp.zeros(mask.size, bool).at[order].set(chosen).reshape(mask.shape)


def _ceil_of(fraction: float, n: Int[Array, ""]) -> Int[Array, ""]:
  """ceil(fraction n) in whole numbers: in float32 0.3 * 50 is above 15."""
  ratio = fractions.Fraction(str(fraction)).limit_denominator(10_000)
  top, bottom = max(ratio, fractions.Fraction(1, 10_000)).as_integer_ratio()
  # In two parts, whose products stay small whatever n is.
  return n // bottom * top + (n % bottom * top + bottom - 1) // bottom
