"""Numbers that a run logs of a batch of sampled answers."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.probes.region import region_share
from mmrl.types import Attention, Prompt


def _own(mask: Bool[Array, "P G R"], sampled) -> Bool[Array, "P G"]:
  return jnp.ones(mask.shape[:2], bool) if sampled is None else sampled


def lengths(
  mask: Bool[Array, "P G R"], sampled: Bool[Array, "P G"] | None = None
) -> dict[str, Array]:
  """Computes the mean number of tokens of the policy's answers."""
  own = _own(mask, sampled)
  return {"rollout/length": (mask & own[..., None]).sum() / own.sum()}


def sampler_scorer_gap(
  logprobs_old: Float[Array, "P G R"],
  logprobs_sampler: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  sampled: Bool[Array, "P G"] | None = None,
) -> dict[str, Array]:
  """Computes how far sampler and scorer differ on the policy's answers.

  Returns:
    The largest difference of log-probabilities, and the share of tokens with

        |p_scorer / p_sampler - 1| > 1 %  and  > 10 %.
  """
  mask = mask & _own(mask, sampled)[..., None]
  gap = jnp.where(mask, logprobs_old - logprobs_sampler, 0.0)

  def outside(bound):
    return (jnp.abs(jnp.expm1(gap)) > bound).sum() / mask.sum()

  return {
    "rollout/sampler_scorer_gap": jnp.abs(gap).max(),
    "rollout/sampler_scorer_outside_1_percent": outside(0.01),
    "rollout/sampler_scorer_outside_10_percent": outside(0.10),
  }


def attention_on_region(
  attention_old: Attention | Float[Array, "P G R keys"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
  sampled: Bool[Array, "P G"] | None = None,
) -> dict[str, Array]:
  """Computes the mean share of visual attention on marked regions.

  It is NaN where no region is marked.
  """
  mask = mask & _own(mask, sampled)[..., None]
  shares = region_share(attention_old, prompt, mask)
  return {"attention/region": jnp.nanmean(shares)}
