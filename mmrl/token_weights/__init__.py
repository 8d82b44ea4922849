"""Token weights, [P, G, R], computed by functions that a config names.

Token weights have no gradient. A weight with an argument that the scorer
computes (`logprobs`, `entropies`) is computed in every minibatch, separately in
each of its parts (`config.train.accumulate`). If it needs sums over the whole
minibatch it has an argument `minibatch`; see `mmrl.losses.reduce`. Any other
weight is computed once per rollout batch.
"""

from mmrl.token_weights.entropy import entropy_quantile
from mmrl.token_weights.future_kl import future_kl
from mmrl.token_weights.mismatch import sampler_mismatch
from mmrl.token_weights.own import own_tokens
from mmrl.token_weights.perception import perception_reasoning
from mmrl.token_weights.probability import low_probability
from mmrl.token_weights.spans import span_weights
from mmrl.token_weights.trajectories import (
  expert_low_probability,
  expert_visual,
)

__all__ = [
  "entropy_quantile",
  "expert_low_probability",
  "expert_visual",
  "future_kl",
  "low_probability",
  "own_tokens",
  "perception_reasoning",
  "sampler_mismatch",
  "span_weights",
]
