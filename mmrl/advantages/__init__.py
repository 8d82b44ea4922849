"""Advantages, [P, G] or [P, G, R], computed by functions a config names."""

from mmrl.advantages.difficulty import difficulty_aware
from mmrl.advantages.group import group_normalised
from mmrl.advantages.mixed import expert_group_normalised
from mmrl.advantages.reinforce import reinforce_plus_plus
from mmrl.advantages.rloo import leave_one_out

__all__ = [
  "difficulty_aware",
  "expert_group_normalised",
  "group_normalised",
  "leave_one_out",
  "reinforce_plus_plus",
]
