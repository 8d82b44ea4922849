"""Probe of how alike visual tokens are in each layer of the decoder."""

from typing import NamedTuple

from jaxtyping import Array, Float

from mmrl.models.passes.visual import mean_cosine
from mmrl.probes.scores import Scorer
from mmrl.types import Prompt, PyTree


class Cosines(NamedTuple):
  """Mean cosine of a prompt's visual tokens in each layer."""

  visual_cosines_old: Float[Array, "P L"]


def visual_cosines(
  scorer: Scorer,
  params: PyTree,
  prompt: Prompt,
  visual: Float[Array, "B N E"],
) -> Cosines:
  """Computes the mean cosine of different visual tokens, layer by layer.

  NaN where a prompt has fewer than two.
  """
  states = scorer.states(params, prompt, visual).swapaxes(1, 2)
  is_visual = (prompt.visual_index >= 0)[:, None]
  seen = is_visual.repeat(states.shape[1], axis=1)
  return Cosines(mean_cosine(states, seen))
