"""Token weights by the span that a token is in, and by epoch."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from mmrl.errors import UserError


def span_weights(
  span: Int[Array, "P G R"],
  epoch: Int[Array, "P"],
  mask: Bool[Array, "P G R"],
  *,
  reasoning: Sequence[float] = (1.0, 0.0),
  answer: Sequence[float] = (1.0,),
  other: Sequence[float] = (1.0, 0.0),
) -> Float[Array, "P G R"]:
  """Weighs each token by its kind in the epoch of its question.

  Every kind has one weight per epoch; its last one holds for all later epochs.
  By default all is learned in the first epoch, and from the second on only the
  answer block, with the reasoning still in its context.

  Args:
    span: 1 reasoning, 2 answer, 3 other: see `mmrl.prompts.spans`.
    epoch: the pass over the data that each question is asked in, from 1 on.
    mask: True on answer tokens.
    reasoning: weights of reasoning, its tags included, at least 0.
    answer: weights of the answer block, its tags included.
    other: weights of the rest.

  Returns:
    The weights, 0 on padding. With the reduction `weighted_token_mean` a
    likelihood is divided by their sum.

  Raises:
    UserError: if a kind has no weight, or one below 0.

  Reference: REACT, arXiv 2601.04033, the masked loss of its first stage.
  Reconstructed: the formula, from notes that quote it; that the tags of the
  answer are learned and those of the thought masked; later epochs.
  """
  kinds = {"reasoning": reasoning, "answer": answer, "other": other}
  for name, values in kinds.items():
    if not values or min(values) < 0:
      raise UserError(
        f"{name}: expected one weight of at least 0 for each epoch, found"
        f" {list(values)}"
      )
  epochs = max(map(len, kinds.values()))
  table = np.array(
    [np.pad(w, (0, epochs - len(w)), mode="edge") for w in kinds.values()],
    np.float32,
  )
  row = jnp.clip(epoch, 1, epochs) - 1
  row = jnp.broadcast_to(row[:, None, None], span.shape)
  weights = jnp.asarray(table)[jnp.clip(span, 1, 3) - 1, row]
  return jnp.where(mask, weights, 0.0)
