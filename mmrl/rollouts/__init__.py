"""Where the answers of a run come from, chosen by `config.rollout`.

Each function returns a `source.Source`. Wrappers hold the spec of another one
in their option `of`.
"""

from mmrl.rollouts.given import given, given_pairs
from mmrl.rollouts.refilled import refilled
from mmrl.rollouts.sampled import sampled, sampled_pairs
from mmrl.rollouts.turns.conversed import conversed
from mmrl.rollouts.with_experts import with_experts
from mmrl.rollouts.wrapped import paired, tagged

__all__ = [
  "conversed",
  "given",
  "given_pairs",
  "paired",
  "refilled",
  "sampled",
  "sampled_pairs",
  "tagged",
  "with_experts",
]
