"""Frozen encoders whose patch features a model's states are aligned with.

Each function returns an `Encoder`; a spec names it. They see the pictures that
the prompts show, as the model's processor has scaled them.
"""

from mmrl.models.encoders.targets import Encoder, own_tower, projection, vit

__all__ = ["Encoder", "own_tower", "projection", "vit"]
