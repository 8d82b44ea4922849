"""Where the answers of a run come from, chosen by `config.rollout`.

Each function returns a `source.Source`. Wrappers hold the spec of another one
in their option `of`.
"""

from mmrl.rollouts.given import given
from mmrl.rollouts.refilled import refilled
from mmrl.rollouts.sampled import sampled
from mmrl.rollouts.with_experts import with_experts

__all__ = ["given", "refilled", "sampled", "with_experts"]
