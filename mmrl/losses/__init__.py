"""Loss terms, unreduced [P, G, R]; each is a function that a config names."""

from mmrl.losses.attention import attention_jsd
from mmrl.losses.policy import clipped_ratio, reference_kl

__all__ = ["attention_jsd", "clipped_ratio", "reference_kl"]
