"""Passes without gradient that add fields to a rollout batch.

What a probe adds is the NamedTuple that its return annotation names, so a run
knows before it starts which fields its losses will find.
"""

import dataclasses
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from mmrl.models import policy, rows, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.types import Attention, Prefix, Prompt, PyTree, Rollout, Scores


@dataclasses.dataclass(frozen=True)
class Scorer:
  """How answers are scored in a run, the same for every set of parameters.

  Attributes:
    config: the architecture.
    temperature: the sampling temperature; 1 when sampling is greedy.
    layers: decoder layers whose attention is a policy.
    row: see `mmrl.models.attention_policy`.
  """

  config: ModelConfig
  temperature: float
  layers: tuple[int, ...]
  row: str

  def prefill(
    self, params: PyTree, prompt: Prompt, visual: Float[Array, "B N E"] | None
  ) -> Prefix:
    """The prompts' prefix; runs the vision tower if `visual` is None."""
    if visual is None:
      visual = tower.vision(params, self.config, prompt.patches)
    return vlm.prefill(
      params, self.config, prompt, visual, attention_layers=self.layers
    )

  def __call__(
    self, params: PyTree, prefix: Prefix, tokens: Int[Array, "P G R"]
  ) -> Scores:
    """Scores answers; see `mmrl.models.score`."""
    return policy.score(
      params,
      self.config,
      prefix,
      tokens,
      temperature=self.temperature,
      attention_layers=self.layers,
      attention_row=self.row,
    )


class Behaviour(NamedTuple):
  """What the policy that sampled the answers says of them."""

  logprobs_old: Float[Array, "P G R"]
  entropies_old: Float[Array, "P G R"]
  attention_old: Attention | Float[Array, "P G R keys"]


class Reference(NamedTuple):
  """What the frozen starting point says of the answers."""

  logprobs_ref: Float[Array, "P G R"]


def behaviour(scores_old: Scores) -> Behaviour:
  """Log-probabilities, entropies and attention policies of the sampler.

  They come from the scorer that training uses, not from the decoding loop,
  over the prefix that the rollout has computed already. The attention is kept
  as rows or as what makes them, whichever is smaller.
  """
  assert scores_old.attention is not None
  kept = rows.smaller(scores_old.attention)
  return Behaviour(scores_old.logprobs, scores_old.entropies, kept)


def reference(
  scorer: Scorer, params_ref: PyTree, prompt: Prompt, rollout: Rollout
) -> Reference:
  """Log-probabilities under the parameters that the run began with."""
  scorer = dataclasses.replace(scorer, layers=())
  prefix = scorer.prefill(params_ref, prompt, None)
  return Reference(scorer(params_ref, prefix, rollout.tokens).logprobs)
