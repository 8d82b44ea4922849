"""Loss terms, which a config names; each returns unreduced values.

Values are [P, G, R] of tokens, [P, G] of answers or [P] of prompts. A term with
numbers to log returns a `Measured`; one with state is made by a function that
returns a `Stateful`: see `mmrl.losses.state`.
"""

from mmrl.losses.attention import attention_jsd, evidence_kl
from mmrl.losses.distillation import attention_distillation, distillation_kl
from mmrl.losses.picture_preference import joint_preference, mixed_preference
from mmrl.losses.preference import dpo, simpo
from mmrl.losses.sequence import clipped_sequence_ratio
from mmrl.losses.shaped import expert_shaped
from mmrl.losses.surrogates import (
  clipped_ratio,
  clipped_weight,
  likelihood,
  on_policy_ratio,
  policy_gradient,
  reference_kl,
)
from mmrl.losses.vision.alignment import latent_alignment
from mmrl.losses.vision.reconstruction import visual_reconstruction

__all__ = [
  "attention_distillation",
  "attention_jsd",
  "clipped_ratio",
  "clipped_sequence_ratio",
  "clipped_weight",
  "distillation_kl",
  "dpo",
  "evidence_kl",
  "expert_shaped",
  "joint_preference",
  "latent_alignment",
  "likelihood",
  "mixed_preference",
  "on_policy_ratio",
  "policy_gradient",
  "reference_kl",
  "simpo",
  "visual_reconstruction",
]
