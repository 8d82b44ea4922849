"""Token weights that select reasoning and perception tokens (ToR)."""

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
  """Computes ToR's weights of uncertain and of picture-dependent tokens.

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
  Reconstructed: the paper's text couldn't be read; formulas and settings come
  from secondary accounts and a re-implementation. Denominator, ties and prompts
  without a picture are our choice.
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
  """Selects the k = ceil(fraction n) tokens of highest score, ties at random.

  It selects exactly k of the n masked tokens of the whole batch. Where most
  scores are 0, a comparison with a quantile would select every token.

  Args:
    scores: anything where the mask is False.
    mask: True on the tokens to choose from.
    fraction: in (0, 1], rounded to the nearest ratio of integers up to 10,000.
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
  """Computes ceil(fraction n) in integers: in float32 0.3 * 50 exceeds 15."""
  ratio = fractions.Fraction(str(fraction)).limit_denominator(10_000)
  top, bottom = max(ratio, fractions.Fraction(1, 10_000)).as_integer_ratio()
  # Split at n // bottom, so that no product overflows for large n.
  return n // bottom * top + (n % bottom * top + bottom - 1) // bottom
