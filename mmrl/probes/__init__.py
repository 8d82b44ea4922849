"""Probes: named batch fields from passes without gradient."""

from mmrl.probes.policies import behaviour, reference

__all__ = ["behaviour", "reference"]
