"""Nucleus probe: entropies of the behaviour policy's top-p nuclei."""

from typing import NamedTuple

from jaxtyping import Array, Float

from mmrl.models import nucleus as nucleus_lib
from mmrl.types import Scores


class Nucleus(NamedTuple):
  """Entropies of the top-p nuclei under the behaviour policy."""

  nucleus_entropies_old: Float[Array, "P G R"]


def nucleus(
  scores_old: Scores, *, top_p: float = 0.95, renormalise: bool = True
) -> Nucleus:
  """Computes the entropy of the top-p nucleus at each answer token, in nats.

  The nucleus is of the behaviour policy at the sampling temperature; see
  `mmrl.models.nucleus`.

  Args:
    scores_old: of the answers, by the behaviour policy.
    top_p: mass of the nucleus, in (0, 1].
    renormalise: whether the probabilities of the nucleus are scaled to sum
      to 1.

  Raises:
    UserError: if top_p is outside (0, 1].

  Reference: ToR, arXiv 2603.25077 eq. 5.
  Reconstructed: the paper's text couldn't be read; renormalising the nucleus
  follows a re-implementation.
  """
  assert scores_old.logits is not None
  entropies = nucleus_lib.nucleus_entropies(
    scores_old.logits, top_p=top_p, renormalise=renormalise
  )
  return Nucleus(entropies)
