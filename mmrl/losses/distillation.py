"""On-policy distillation losses: a teacher scores the student's answers.

On its own answers, the student is trained to match a larger model's token
distributions and attention. All terms are minimised.

Reference: Reinforced Attention Learning (RAL), arXiv 2602.04884, whose
on-policy attention distillation (OPAD) adds both terms to a policy loss;
generalised knowledge distillation (GKD), arXiv 2306.13649.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses.attention import Rows, attention_divergence
from mmrl.models.divergence import divergence
from mmrl.types import Logits


def distillation_kl(
  logits: Logits,
  logits_teacher: Logits,
  mask: Bool[Array, "P G R"],
  *,
  beta: float = 1.0,
  temperature: float = 1.0,
) -> Float[Array, "P G R"]:
  """Computes GKD's divergence of student and teacher over the vocabulary.

      loss_t = D_beta(p, q),    p = pi_teacher(. | s_t), q = pi_theta(. | s_t)
      D_1 = KL(q || p),    D_0 = KL(p || q)
      D_beta = beta KL(p || m) + (1 - beta) KL(q || m) between them,
      m = beta p + (1 - beta) q

  Value and gradient are exactly 0 where the teacher is the student.

  Args:
    logits: of the current parameters; the only argument with a gradient.
    logits_teacher: of the teacher on the same tokens. If the vocabularies are
      padded to different sizes, the smaller size is used.
    mask: True on answer tokens.
    beta: in [0, 1].
    temperature: above 0; divides both logits once more. As in TRL, no factor
      temperature^2 compensates for it.

  Returns:
    The unreduced term in nats, 0 on padding.

  Raises:
    UserError: if beta or temperature is out of its range.

  Reference: arXiv 2602.04884 eq. 6 (L_GKD); arXiv 2306.13649 eq. 1 (the
  divergence); with its ends as in TRL's `GKDTrainer`.
  Reconstructed: beta is 1, since the RAL paper's divergence is "typically" the
  reverse KL; the temperature of 1; the mean over tokens, where the config
  reduces with one.
  """
  if not 0 <= beta <= 1:
    raise UserError(f"beta must be in [0, 1], got {beta}")
  if not temperature > 0:
    raise UserError(f"temperature must be above 0, got {temperature}")

  def without_padding(logits):
    # Masked before the logits: 0 times a value on padding may be NaN.
    hidden = jnp.where(mask[..., None], logits.hidden, 0.0)
    return dataclasses.replace(logits, hidden=hidden)

  values = divergence(
    without_padding(logits),
    without_padding(logits_teacher),
    beta=beta,
    temperature=temperature,
  )
  return jnp.where(mask, values, 0.0)


def attention_distillation(
  attention: Rows, attention_teacher: Rows, mask: Bool[Array, "P G R"]
) -> Float[Array, "P G R"]:
  """Computes OPAD's term: the JSD from the teacher's attention.

      loss_t = JSD(p_theta^t || p_teacher^t)

  It has no advantage: every answer is pulled to the teacher, good or bad. It
  acts from the first update on, where RAL's term is still 0. Each policy is a
  mean over heads of its model's own layers, so a teacher may have more of
  either. Positions must be the same, and so tokenizer and grid of visual
  tokens.

  Args:
    attention: policies of the current parameters, from `mmrl.models.score`.
    attention_teacher: policies of the teacher on the same answers, same
      function; no gradient.
    mask: True on answer tokens.

  Returns:
    The unreduced term in nats, in [0, ln 2], 0 on padding.

  Reference: arXiv 2602.04884 eqs. 5-7.
  Differs from the paper: eq. 6 as printed adds this to a quantity that is
  maximised; the consistent reading, minimise -clipped + mu GKD + gamma
  attention, is what the losses of a config add up to.
  Reconstructed: the configs reduce it with a mean over tokens; the sum of eq. 5
  (`sequence_sum`) would dominate the other terms. The teacher's rows are
  computed like the student's.
  """
  values = attention_divergence(attention, attention_teacher, mask)
  return jnp.where(mask, values, 0.0)
