"""LASER's probe: attention on visual tokens, and on those that are sinks."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.errors import UserError
from mmrl.probes.scores import Scorer
from mmrl.types import Prompt, PyTree


class VisualSinks(NamedTuple):
  """Attention of each answer token, mean over heads and layers.

  On a visual token that is no sink, on average; and how much more than on any
  visual token is on one that is a sink, 0 where there are none.
  """

  visual_attention_old: Float[Array, "P G R"]
  sink_ratio_old: Float[Array, "P G R"]


def visual_sinks(
  scorer: Scorer,
  params: PyTree,
  prompt: Prompt,
  visual: Float[Array, "B N E"],
  tokens: Int[Array, "P G R"],
  *,
  deviations: float = 2.0,
) -> VisualSinks:
  """Computes how much of each token's attention is on visual tokens and sinks.

      a_t = row of token t, mean over all heads and layers
      S = visual tokens whose weight in the row of the last prompt token is
          above mean + deviations * standard deviation over all of them, V
      visual_t = mean of a_t over V \\ S
      ratio_t  = mean of a_t over S / mean of a_t over V

  Args:
    scorer: of the run.
    params: of the policy that sampled the answers.
    prompt: the questions.
    visual: their visual tokens.
    tokens: of the answers.
    deviations: at least 0.

  Returns:
    Both for each token; 0 where a question has no picture.

  Raises:
    UserError: if `deviations` is negative.

  Reference: LASER, arXiv 2607.01707, as in its published code.
  Reconstructed: the standard deviation divides by the number of tokens; where
  all of V were sinks, visual_t would be 0.
  """
  if not deviations >= 0:
    raise UserError(f"deviations must be at least 0, got {deviations}")
  every = scorer.over_all_layers()
  seen = prompt.visual_index >= 0

  def means(last: Float[Array, "P S"]) -> Float[Array, "P S 3"]:
    sinks = find_sinks(last, seen, deviations)
    kinds = jnp.stack([seen & ~sinks, sinks, seen], axis=-1)
    return kinds / jnp.maximum(kinds.sum(1, keepdims=True), 1)

  sums = every.weighed_rows(params, prompt, visual, tokens, means).mean(3)
  plain, sink, any_ = sums[..., 0], sums[..., 1], sums[..., 2]
  ratio = jnp.where(any_ > 0, sink / jnp.where(any_ > 0, any_, 1.0), 0.0)
  return VisualSinks(plain, ratio)


def find_sinks(
  last: Float[Array, "P S"], seen: Bool[Array, "P S"], deviations: float
) -> Bool[Array, "P S"]:
  """Finds the visual tokens that draw much of the last prompt token's row."""
  count = jnp.maximum(seen.sum(-1, keepdims=True), 1)
  mean = jnp.where(seen, last, 0.0).sum(-1, keepdims=True) / count
  square = jnp.where(seen, (last - mean) ** 2, 0.0)
  deviation = jnp.sqrt(square.sum(-1, keepdims=True) / count)
  return seen & (last > mean + deviations * deviation)
