"""How alike visual tokens are, to be logged."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError


def visual_cosine(
  visual_cosines_old: Float[Array, "P L"],
  mask: Bool[Array, "P G R"],
  *,
  layer: int = -1,
) -> Float[Array, "P G"]:
  """Returns the mean cosine of a prompt's visual tokens in a layer.

  It is for the log (weight 0): NaN where a prompt has fewer than two.

  Args:
    visual_cosines_old: of each layer.
    mask: for the number of answers.
    layer: of the decoder; negative from the end.

  Raises:
    UserError: if there is no such layer.

  Reference: arXiv 2512.06281, the homogenisation of visual tokens.
  """
  depth = visual_cosines_old.shape[1]
  if not -depth <= layer < depth:
    raise UserError(
      f"layer: expected one of a {depth}-layer decoder, found {layer}"
    )
  own = visual_cosines_old[:, layer, None]
  return jnp.broadcast_to(own, mask.shape[:2])
