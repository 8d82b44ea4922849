"""Tests of token weights by span and epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import compiled

from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.token_weights import span_weights

# Padding, reasoning twice, answer twice, and what follows.
SPAN = jnp.array([[[0, 1, 1, 2, 2, 3]]], jnp.int8)
MASK = SPAN > 0
LOSS = jnp.array([[[9, 0.5, 1, 2, 0.25, 9]]])


weigh = compiled(span_weights)


def weights(epoch, span=SPAN, mask=MASK, **options):
  return weigh(span, jnp.array([epoch]), mask, **options)


@pytest.mark.parametrize(
  "epoch, expected, loss",
  [
    (1, [0, 1, 1, 1, 1, 1], 12.75 / 5),
    (2, [0, 0, 0, 1, 1, 0], 1.125),
    (7, [0, 0, 0, 1, 1, 0], 1.125),
  ],
)
def test_masked_loss(epoch, expected, loss):
  """The whole answer first, then the answer block; without the last, 0.9375."""
  found = weights(epoch)
  np.testing.assert_array_equal(found[0, 0], expected)

  @jax.jit
  def mean(mask):
    return reduce.total(LOSS, reduce.weighted_token_mean(mask, found))

  assert mean(MASK) == pytest.approx(loss)
  shorter = mean(np.asarray(MASK) & (np.arange(6) < 5))
  assert shorter == pytest.approx(0.9375 if epoch == 1 else 1.125)
  assert mean(jnp.zeros_like(MASK)) == 0


def test_each_question_has_its_epoch_and_each_kind_its_weights():
  span = np.tile(SPAN, (3, 1, 1))
  found = weigh(
    span,
    jnp.array([1, 2, 3]),
    span > 0,
    reasoning=(1.0, 0.5, 0.25),
    answer=(2.0,),
    other=(0.0, 3.0),
  )
  np.testing.assert_array_equal(
    found[:, 0],
    [[0, 1, 1, 2, 2, 0], [0, 0.5, 0.5, 2, 2, 3], [0, 0.25, 0.25, 2, 2, 3]],
  )


@pytest.mark.parametrize("values", [(), (1.0, -0.5)])
@pytest.mark.parametrize("kind", ["reasoning", "answer", "other"])
def test_no_weight_or_one_below_zero_is_refused(kind, values):
  with pytest.raises(
    UserError, match=f"{kind}: expected one weight of at least"
  ):
    weights(1, **{kind: values})
