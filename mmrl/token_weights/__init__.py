"""Token weights, [P, G, R], no gradient; functions that a config names.

A weight that names what the scorer computes (`logprobs`, `entropies`) is
computed in every minibatch, in each of its parts (`config.train.accumulate`);
one that needs all of it says so by `minibatch`, see `mmrl.losses.reduce`. Any
other is computed once per rollout batch.
"""

from mmrl.token_weights.entropy import entropy_quantile
from mmrl.token_weights.experts import expert_low_probability, expert_visual
from mmrl.token_weights.future_kl import future_kl
from mmrl.token_weights.mismatch import sampler_mismatch
from mmrl.token_weights.perception import perception_reasoning
from mmrl.token_weights.probability import low_probability

__all__ = [
  "entropy_quantile",
  "expert_low_probability",
  "expert_visual",
  "future_kl",
  "low_probability",
  "perception_reasoning",
  "sampler_mismatch",
]
