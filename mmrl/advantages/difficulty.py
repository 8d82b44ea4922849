"""Durian advantages: prompts of similar difficulty share a deviation.

A group of eight answers with one right answer has a small standard deviation,
so that answer gets a huge advantage. Durian pools the deviation over many
prompts that are alike in visual entropy or in the policy's confidence.

Logarithms are natural. Prompts whose answers have no valid token were dropped:
they count in no quantile and no deviation, and their advantage is 0.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.advantages import group
from mmrl.errors import UserError


def quantiles(
  values: Float[Array, "P"], valid: Bool[Array, "P"], *, parts: int
) -> Float[Array, "{parts-1}"]:
  """Computes the inner quantiles j / parts, 0 < j < parts, of valid values.

  Interpolation is linear. Positions are computed in integers, so a value that
  is a quantile equals it bit for bit, and so do ties.
  """
  ordered = jnp.sort(jnp.where(valid, values.astype(jnp.float32), jnp.inf))
  place = jnp.arange(1, parts) * jnp.maximum(valid.sum() - 1, 0)
  lower, rest = place // parts, place % parts
  low = ordered[lower]
  high = ordered[jnp.minimum(lower + 1, len(ordered) - 1)]
  between = low + (high - low) * (rest / parts)
  return jnp.where(rest == 0, low, between)


def quartile_groups(
  entropies: Float[Array, "P"], valid: Bool[Array, "P"]
) -> Int[Array, "P"]:
  """Assigns each prompt to one of three groups by visual-entropy quartiles.

  Group 0 is up to the lower quartile, group 2 from the upper quartile on,
  group 1 between them.

  Args:
    entropies: visual entropy of each prompt. NaN, for a prompt without a
      picture, counts in no quartile and is in group 1.
    valid: False on dropped prompts.

  Reference: arXiv 2602.21743 eq. 10.
  Reconstructed: 0 is tried first, so equal values are all in group 0.
  """
  quarters = quantiles(entropies, valid & ~jnp.isnan(entropies), parts=4)
  hard = jnp.where(entropies >= quarters[2], 2, 1)
  return jnp.where(entropies <= quarters[0], 0, hard)


def quantile_groups(
  values: Float[Array, "P"], valid: Bool[Array, "P"], *, bins: int
) -> Int[Array, "P"]:
  """Assigns each prompt to one of `bins` bins of equally many valid prompts.

  The bin is the number of quantiles <= value. Ties share a bin, and may leave
  others empty.

  Reference: arXiv 2602.21743 eq. 16.
  Reconstructed: the last bin is closed; otherwise the greatest value would be
  in no bin.
  """
  edges = quantiles(values, valid, parts=bins)
  return (edges[None] <= values[:, None]).sum(axis=1)


def sequence_confidence(
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  length_normalize: bool = False,
) -> Float[Array, "P"]:
  """Computes the mean log-likelihood of the answers to each prompt, in nats.

      L = mean_i sum_t log pi(o_{i,t})

  Args:
    logprobs_old: of the behaviour policy; finite on answer tokens.
    mask: True on answer tokens. An answer without any isn't in the mean.
    length_normalize: True for the mean over t instead of the sum. The sum
      also ranks by length.

  Returns:
    At most 0; 0 for a prompt without valid tokens.

  Reference: arXiv 2602.21743 eq. 14 and 15.
  Differs from the paper: its eq. 14 sums probabilities where its text has
  log-probabilities.
  """
  tokens = jnp.where(mask, logprobs_old.astype(jnp.float32), 0.0)
  likelihood, lengths = tokens.sum(axis=-1), mask.sum(axis=-1)
  if length_normalize:
    likelihood /= jnp.maximum(lengths, 1)
  return likelihood.sum(axis=1) / jnp.maximum((lengths > 0).sum(axis=1), 1)


def shared_std_advantages(
  rewards: Float[Array, "P G"],
  bin_of: Int[Array, "P"],
  valid: Bool[Array, "P"],
  *,
  bins: int,
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Float[Array, "P G"]:
  """Computes reward minus group mean, over the standard deviation of a bin.

      A = (r - mean_g r) / (std of all rewards of the bin + epsilon)

  Args:
    rewards: of each answer.
    bin_of: bin of each prompt, in [0, bins).
    valid: False on dropped prompts.
    bins: number of bins.
    epsilon: added to the deviation.
    ddof: see `group.pooled_std`.

  Reference: arXiv 2602.21743 eq. 11 to 13.
  """
  shared = group.pooled_std(rewards, bin_of, valid, bins=bins, ddof=ddof)
  advantages = group.centred(rewards) / (shared[bin_of][:, None] + epsilon)
  return jnp.where(valid[:, None], advantages, 0.0)


def difficulty_aware(
  rewards: Float[Array, "P G"],
  visual_entropy: Float[Array, "P"],
  logprobs_old: Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  bins: int = 0,
  weights: Sequence[float] = (0.1, 0.2, 0.7),
  length_normalize: bool = False,
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Float[Array, "P G"]:
  """Computes Durian's advantage: GRPO's mixed with two of shared deviation.

      A = w_0 A^GRPO + w_1 A^visual + w_2 A^reasoning

  A^visual shares deviations within three groups of prompts, cut at the
  quartiles of visual entropy. A^reasoning shares them within bins of equally
  many prompts, ordered by the log-likelihood of their answers. A is exactly 0
  where all rewards of a group are equal.

  Args:
    rewards: of each answer.
    visual_entropy: entropy of the spectrum of each prompt's visual tokens,
      nats; NaN without a picture, which puts the prompt in the middle group.
    logprobs_old: of the behaviour policy.
    mask: True on answer tokens; a group without any was dropped.
    bins: number of log-likelihood bins; 0 for one per 40 prompts, at least 2.
      The paper tries 4 to 48 with 512 prompts and is best with 12.
    weights: of GRPO's advantage, the visual and the reasoning one.
    length_normalize: whether log-likelihoods are means over tokens.
    epsilon: added to each deviation.
    ddof: 1 divides squares by n - 1, 0 by n, in each deviation.

  Returns:
    The advantages; they sum to zero in every group.

  Raises:
    UserError: if the group has one answer, bins is negative, there aren't
      three weights, or there is no such ddof.

  Reference: arXiv 2602.21743 eq. 17 to 20.
  Reconstructed: bins and weights, of which the paper gives sweeps only;
  epsilon and ddof, those of verl.
  """
  group.check_answers(rewards, "difficulty_aware")
  if bins < 0:
    raise UserError(f"bins must be at least 0, got {bins}")
  if len(weights) != 3:
    raise UserError(
      "weights must be three numbers (GRPO, visual, reasoning), got"
      f" {len(weights)}"
    )
  # The paper's best setting, 12 bins for 512 prompts, is about 40 a bin.
  bins = bins or max(2, len(rewards) // 40)
  valid = mask.any(axis=(1, 2))
  confidence = sequence_confidence(
    logprobs_old, mask, length_normalize=length_normalize
  )
  visual = quartile_groups(visual_entropy, valid)
  reasoning = quantile_groups(confidence, valid, bins=bins)
  options: dict[str, Any] = {"epsilon": epsilon, "ddof": ddof}
  terms = (
    group.group_normalised(rewards, mask, **options),
    shared_std_advantages(rewards, visual, valid, bins=3, **options),
    shared_std_advantages(rewards, reasoning, valid, bins=bins, **options),
  )
  grpo, visual, reasoning = (
    w * term for w, term in zip(weights, terms, strict=True)
  )
  return grpo + visual + reasoning
