"""Advantages, [P, G] or [P, G, R]; each a function that a config names."""

from mmrl.advantages.group import group_normalised

__all__ = ["group_normalised"]
