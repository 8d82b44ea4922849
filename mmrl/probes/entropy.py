"""Visual-entropy probe: spectral entropy of each picture's visual tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.machines import sharding
from mmrl.probes.scores import Scorer
from mmrl.types import Prompt


class VisualEntropy(NamedTuple):
  """Entropy of the spectrum of each prompt's visual tokens, nats."""

  visual_entropy: Float[Array, "P"]


def visual_entropy(
  scorer: Scorer, prompt: Prompt, visual: Float[Array, "B N E"]
) -> VisualEntropy:
  """Computes the mean spectral entropy of each prompt's pictures, in nats.

  See `spectral_entropy`. The features are the visual tokens that the decoder
  embeds, without DeepStack's additions to its layers. Contiguous visual tokens
  of the prompt are one picture; a video is one, or one per frame of patches
  where the family writes a time before each.

  Args:
    scorer: of the run, for the width of a visual token.
    prompt: holds the places of the visual tokens.
    visual: the visual tokens.

  Returns:
    One value per prompt, at least 0; NaN without a picture.

  Reference: Durian, arXiv 2602.21743 eq. 5 to 9.
  Differs from the paper: the vision tower is the current policy's, not the
  initial model's; they are the same where the tower is frozen.
  Reconstructed: the choice of features, and the mean.
  """
  visual = visual[..., : scorer.config.text.hidden_size]
  rows, prompts = len(visual), len(prompt.mask)
  _, shards = sharding.prompt_axes(rows)

  def share(x):
    return sharding.over_prompts(x.reshape(shards, -1, *x.shape[1:]))

  def of_shard(visual, index):
    """Computes entropies prompt by prompt, so that only one matrix exists."""
    place = jnp.arange(len(index)) * len(visual) // len(index)
    return jax.lax.map(
      lambda one: _prompt_entropy(visual[one[0]], one[1]), (place, index)
    )

  entropies = jax.vmap(of_shard)(share(visual), share(prompt.visual_index))
  return VisualEntropy(entropies.reshape(prompts))


def _prompt_entropy(
  visual: Float[Array, "N D"], index: Int[Array, "S"]
) -> Float[Array, ""]:
  """Computes the mean entropy over the runs of visual tokens of one prompt."""
  seen = index >= 0
  features = visual[jnp.maximum(index, 0)]
  begins = seen & ~jnp.concatenate([jnp.zeros(1, bool), seen[:-1]])
  picture = jnp.where(seen, jnp.cumsum(begins), 0)
  count = begins.sum()

  def add(number, total):
    return total + spectral_entropy(features, picture == number)

  total = jax.lax.fori_loop(1, count + 1, add, jnp.zeros(()))
  return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def spectral_entropy(
  features: Float[Array, "n d"], mask: Bool[Array, "n"]
) -> Float[Array, ""]:
  """Computes the entropy of the spectrum of the features' covariance, in nats.

      X = features - mean,    lambda = eigenvalues of X X^T
      q = lambda / sum lambda,    H = - sum q ln q

  X X^T and X^T X have the same eigenvalues but for zeros: the smaller one is
  decomposed, in float32.

  Args:
    features: of each patch.
    mask: True on patches that count.

  Returns:
    At least 0; exactly 0 for fewer than two patches and for equal ones.

  Reference: arXiv 2602.21743 eq. 5 to 9.
  Reconstructed: eigenvalues that rounding makes negative count as zero.
  """
  features, valid = features.astype(jnp.float32), mask[:, None]
  # Relative to one of them, equal patches have a mean without rounding error.
  features = features - features[jnp.argmax(mask)][None]
  mean = jnp.where(valid, features, 0.0).sum(0) / jnp.maximum(mask.sum(), 1)
  x = jnp.where(valid, features - mean[None], 0.0)
  x = x.T if len(x) > x.shape[1] else x
  eigenvalues = jnp.linalg.eigvalsh(jnp.matmul(x, x.T, precision="highest"))
  eigenvalues = jnp.maximum(eigenvalues, 0.0)
  total = eigenvalues.sum()
  q = eigenvalues / jnp.where(total > 0, total, 1.0)
  return jax.scipy.special.entr(q).sum()
