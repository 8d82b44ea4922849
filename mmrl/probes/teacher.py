"""Teacher probe: a forward pass of the teacher over the student's answers."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from mmrl.models import rows
from mmrl.probes.scores import Scorer
from mmrl.types import Attention, Logits, Prompt, PyTree


class Teacher(NamedTuple):
  """Logits and attention of the teacher on the student's answers."""

  logits_teacher: Logits
  attention_teacher: Attention | Float[Array, "P G R keys"]


def teacher(
  scorer_teacher: Scorer,
  params_teacher: PyTree,
  prompt: Prompt,
  tokens: Int[Array, "P G R"],
) -> Teacher:
  """Computes the teacher's logits and attention policies on given answers.

  The teacher never samples. It encodes each picture and each prompt once for
  all answers, as the student does. Logits are stored as the hidden states they
  are computed from, attention as rows or as the tensors they are computed from,
  whichever is smaller. Fields that no loss names aren't computed.

  Reference: arXiv 2602.04884 section 2.6; on-policy distillation (GKD), arXiv
  2306.13649.
  """
  prefix = scorer_teacher.prefill(params_teacher, prompt, None)
  scores = scorer_teacher(params_teacher, prefix, tokens)
  assert scores.logits is not None and scores.attention is not None
  return Teacher(scores.logits, rows.smaller(scores.attention))
