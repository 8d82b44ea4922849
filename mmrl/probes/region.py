"""Attention on the region that a question is about, and its share."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl import models
from mmrl.models import rows
from mmrl.prompts import regions
from mmrl.types import Attention, Prompt, Scores


def region_share(
  attention: Attention | Float[Array, "P G R keys"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P"]:
  """Computes the share of visual attention that falls on the marked region.

  It is the mean over the answer tokens of each prompt; see `masses`. It is NaN
  where no region is marked.
  """
  on_region, on_visual = masses(attention, prompt)
  marked = (prompt.region.sum(-1) > 0)[:, None, None]
  counts = mask & marked & (on_visual > 0)
  share = jnp.where(counts, on_region / jnp.where(counts, on_visual, 1.0), 0.0)
  return share.sum((1, 2)) / counts.sum((1, 2))


def masses(
  attention: Attention | Float[Array, "P G R keys"], prompt: Prompt
) -> tuple[Float[Array, "P G R"], Float[Array, "P G R"]]:
  """Sums each row over the marked region, and over all visual tokens.

  A visual token that the region partly covers counts in part.
  """
  visual = (prompt.visual_index >= 0).astype(jnp.float32)
  weights = jnp.stack([prompt.region, visual], axis=-1)

  def of_rows(rows):
    on_prompt = rows[..., : prompt.mask.shape[-1]]
    return jnp.einsum("pgrs,psn->pgrn", on_prompt, weights)

  found = models.map_rows(of_rows, attention)
  return found[..., 0], found[..., 1]


class Looks(NamedTuple):
  """Attention of each answer token: sums over visual tokens."""

  on_region_old: Float[Array, "P G R"]
  on_visual_old: Float[Array, "P G R"]


def looks(scores_old: Scores, prompt: Prompt, *, rolled: bool = False) -> Looks:
  """Computes each token's attention on the region and on all visual tokens.

  Rows are those of the softmax over all keys, the token's own among them, mean
  over heads, of `config.attention.layers` and `config.attention.row`: "self"
  is the row of the token, "emit" that of the one before, which emits it. They
  aren't scaled to sum to 1 without the token's own, as RAL's policies are.

  Args:
    scores_old: of the answers, by the behaviour policy.
    prompt: tells where visual tokens are. Those that the region touches are
      its own, whole.
    rolled: whether the region is at a wrong place, as a placebo.
  """
  if rolled:
    prompt = regions.rolled(prompt)
  assert scores_old.attention is not None
  visual = prompt.visual_index >= 0
  kinds = jnp.stack([prompt.region > 0, visual], axis=-1)
  sums = rows.weighed(
    rows.plain(scores_old.attention), kinds.astype(jnp.float32)
  )
  return Looks(sums[..., 0], sums[..., 1])
