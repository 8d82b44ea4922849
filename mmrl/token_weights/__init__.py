"""Token weights, [P, G, R], no gradient; functions that a config names.

A weight that names what the scorer computes (`logprobs`, `entropies`) is
computed in every minibatch, any other once per rollout batch.
"""

from mmrl.token_weights.entropy import entropy_quantile

__all__ = ["entropy_quantile"]
