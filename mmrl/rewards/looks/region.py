"""SAYO's reward: uncertain tokens look at the region of the question.

Reference: SAYO, arXiv 2602.08241, as in its published code.
"""

import fractions
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses.surrogates import upcast
from mmrl.marks import marked
from mmrl.types import Prompt

_EPSILON = 1e-8


def top_fraction(
  entropies: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  fraction: float,
) -> Bool[Array, "P G R"]:
  """Selects the share of highest entropy of each answer's tokens but the last.

      k = min(n, max(1, floor(fraction n)))

  The floor is one of whole numbers: in floating point 0.7 * 10 is below 7. Of
  equal entropies the earlier token is selected first.

  Args:
    entropies: of each token, nats; anything on padding.
    mask: True on answer tokens.
    fraction: in (0, 1], rounded to the nearest ratio of integers up to 1,000.

  Raises:
    UserError: if the fraction is outside (0, 1].
  """
  if not 0 < fraction <= 1:
    raise UserError(f"fraction must be in (0, 1], got {fraction}")
  ratio = fractions.Fraction(str(fraction)).limit_denominator(1000)
  candidates = mask & jnp.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1)))
  n = candidates.sum(-1, keepdims=True)
  count = jnp.minimum(
    n, jnp.maximum(1, n * ratio.numerator // ratio.denominator)
  )
  low = jnp.where(candidates, -upcast(entropies), jnp.inf)
  order = jnp.argsort(low, axis=-1, stable=True)
  rank = jnp.argsort(order, axis=-1, stable=True)
  return candidates & (rank < count)


def region_ratio(
  on_region: Float[Array, "P G R"],
  on_visual: Float[Array, "P G R"],
  prompt: Prompt,
  chosen: Bool[Array, "P G R"],
) -> tuple[Float[Array, "P G"], Bool[Array, "P G"]]:
  """Compares attention on the region with that on all visual tokens.

      a = mean over chosen tokens and the region's visual tokens
      v = mean over chosen tokens and all visual tokens
      r = tanh(ln((a + 1e-8) / (v + 1e-8)))

  Args:
    on_region, on_visual: sums of each token's attention.
    prompt: for the number of visual tokens of either kind.
    chosen: the tokens.

  Returns:
    (r in [-1, 1], whether there are tokens, a region and a picture); 0 where
    there aren't.
  """

  def mean(sums, kind):
    values = jnp.where(chosen, upcast(sums), 0.0).sum(-1)
    count = chosen.sum(-1) * kind.sum(-1, keepdims=True)
    return values / jnp.maximum(count, 1)

  region = prompt.region > 0
  a = mean(on_region, region) + _EPSILON
  v = mean(on_visual, prompt.visual_index >= 0) + _EPSILON
  valid = chosen.any(-1) & region.any(-1, keepdims=True)
  return jnp.where(valid, jnp.tanh(jnp.log(a / v)), 0.0), valid


def _check(
  *, fraction: float = 0.3, without: Literal["refuse", "zero"] = "refuse"
) -> None:
  if not 0 < fraction <= 1:
    raise UserError(f"fraction must be in (0, 1], got {fraction}")


@marked(
  check=_check,
  needs_region=lambda *, without="refuse", **_: without == "refuse",
)
def region_attention(
  on_region_old: Float[Array, "P G R"],
  on_visual_old: Float[Array, "P G R"],
  entropies_old: Float[Array, "P G R"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
  *,
  fraction: float = 0.3,
  without: Literal["refuse", "zero"] = "refuse",
) -> Float[Array, "P G"]:
  """Rewards attention of the most uncertain tokens on the marked region.

  See `region_ratio` and `top_fraction`. It says where visual attention goes,
  not how much there is: 0 where the region has its share of the area, 0.6 at
  twice as much, 0.8 at three times. No gradient passes through the attention.

  Args:
    on_region_old, on_visual_old: attention of each token; see `probes.looks`.
    entropies_old: of the distribution that each token was drawn from.
    prompt: the questions.
    mask: True on answer tokens.
    fraction: share of an answer's tokens, in (0, 1].
    without: what to do about questions without a region: "refuse" the data, or
      "zero", the same reward for all answers. Answers of less than two tokens
      have 0, too.

  Returns:
    In [-1, 1].

  Differs from the published code: padding is never chosen, the number of tokens
  follows from the answer's own length, and regions stand where prompts are
  padded.
  """
  del without  # Read before the run starts.
  chosen = top_fraction(entropies_old, mask, fraction)
  return region_ratio(on_region_old, on_visual_old, prompt, chosen)[0]


@marked(check=lambda *, fraction=0.3: _check(fraction=fraction))
def target_attention(
  on_region_old: Float[Array, "P G R"],
  on_visual_old: Float[Array, "P G R"],
  entropies_old: Float[Array, "P G R"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
  *,
  fraction: float = 0.3,
) -> Float[Array, "P G"]:
  """Computes SAYO's target attention score, to be logged with weight 0.

      R_a = (1 + region_attention) / 2,    0.5 where the region has its share

  Returns:
    In [0, 1]; NaN where `region_attention` has nothing to compare.
  """
  chosen = top_fraction(entropies_old, mask, fraction)
  ratio, valid = region_ratio(on_region_old, on_visual_old, prompt, chosen)
  return jnp.where(valid, (1 + ratio) / 2, jnp.nan)
