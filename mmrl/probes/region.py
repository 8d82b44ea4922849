"""Share of visual attention on the region that a question is about."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl import models
from mmrl.types import Attention, Prompt


def region_share(
  attention: Attention | Float[Array, "P G R keys"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P"]:
  """Computes the share of visual attention that falls on the marked region.

  It is the mean over the answer tokens of each prompt. A visual token that the
  region partly covers counts in part. It is NaN where no region is marked.
  """
  visual = (prompt.visual_index >= 0).astype(jnp.float32)
  weights = jnp.stack([prompt.region, visual], axis=-1)

  def of_rows(rows):
    on_prompt = rows[..., : prompt.mask.shape[-1]]
    return jnp.einsum("pgrs,psn->pgrn", on_prompt, weights)

  on_region, on_visual = jnp.moveaxis(
    models.map_rows(of_rows, attention), -1, 0
  )
  marked = (prompt.region.sum(-1) > 0)[:, None, None]
  counts = mask & marked & (on_visual > 0)
  share = jnp.where(counts, on_region / jnp.where(counts, on_visual, 1.0), 0.0)
  return share.sum((1, 2)) / counts.sum((1, 2))
