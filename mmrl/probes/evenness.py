"""How evenly answers attend to the visual tokens."""

import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Bool, Float

from mmrl import models
from mmrl.types import Attention, Prompt


def visual_entropy(
  attention: Attention | Float[Array, "P G R keys"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P"]:
  """Computes the entropy of attention among visual tokens, from 0 to 1.

  Each row's part over the n visual tokens is scaled to sum to 1; its entropy is
  divided by log n: 0 is attention on one token, 1 the same on all. It is the
  mean over the answer tokens of each prompt, and NaN where n is below 2.
  """
  visual = prompt.visual_index >= 0

  def of_rows(rows):
    on_prompt = rows[..., : visual.shape[-1]] * visual[:, None, None]
    total = on_prompt.sum(-1)
    divisor = jnp.where(total > 0, total, 1.0)
    entropy = jnp.log(divisor) - special.xlogy(on_prompt, on_prompt).sum(-1) / (
      divisor
    )
    return jnp.where(total > 0, entropy, 0.0), total > 0

  entropy, looks = models.map_rows(of_rows, attention)
  counts = mask & looks
  most = jnp.log(visual.sum(-1).astype(jnp.float32))
  most = jnp.where(most > 0, most, jnp.nan)
  return jnp.where(counts, entropy, 0.0).sum((1, 2)) / (
    counts.sum((1, 2)) * most
  )
