"""What the sampler's nuclei say of the answers."""

from typing import NamedTuple

from jaxtyping import Array, Float

from mmrl.models import nucleus as nucleus_lib
from mmrl.types import Scores


class Nucleus(NamedTuple):
  """Entropies of the nuclei under the policy that sampled the answers."""

  nucleus_entropies_old: Float[Array, "P G R"]


def nucleus(
  scores_old: Scores, *, top_p: float = 0.95, renormalise: bool = True
) -> Nucleus:
  """Entropy of the top-p nucleus that each answer token was drawn from.

  See `mmrl.models.nucleus`; nats, at the sampling temperature.

  Args:
    scores_old: of the answers, by the policy that sampled them.
    top_p: mass of the nucleus, in (0, 1].
    renormalise: whether the probabilities of the nucleus are made to sum to 1.

  Raises:
    UserError: if top_p is outside (0, 1].

  Reference: ToR, arXiv 2603.25077 eq. 5.
  Reconstructed: the paper's text couldn't be read; that the nucleus is
  renormalised is a re-implementation's choice.
  """
  assert scores_old.logits is not None
  entropies = nucleus_lib.nucleus_entropies(
    scores_old.logits, top_p=top_p, renormalise=renormalise
  )
  return Nucleus(entropies)
