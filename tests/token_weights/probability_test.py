"""Tests of the probability weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.token_weights import probability

weights_of = jax.jit(
  probability.low_probability, static_argnames=("alpha", "sign")
)
# Two answers of three and two tokens; [P=2, G=1, R=3]. Padding
# isn't a number.
OLD = jnp.log(jnp.array([[[0.9, 0.5, 0.1]], [[1.0, 0.02, jnp.nan]]]))
MASK = jnp.array([[[True, True, True]], [[True, True, False]]])
ADVANTAGES = jnp.array([[1.0], [-2.0]], jnp.float32)


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    # 1 + 0.2 (1 - p)
    ({}, [[1.02, 1.1, 1.18], [1, 1.196, 1]]),
    ({"sign": "positive"}, [[1.02, 1.1, 1.18], [1, 1, 1]]),
    ({"sign": "negative"}, [[1, 1, 1], [1, 1.196, 1]]),
    # c p + 1 - c with c = 0.2
    ({"alpha": -0.2}, [[0.98, 0.9, 0.82], [1, 0.804, 1]]),
    # the probability itself
    ({"alpha": -1.0}, [[0.9, 0.5, 0.1], [1, 0.02, 1]]),
  ],
)
def test_golden(options, expected):
  spread = jnp.where(MASK, ADVANTAGES[..., None], jnp.nan)
  for advantages in (ADVANTAGES, spread):
    weights = weights_of(OLD, MASK, advantages, **options)
    np.testing.assert_allclose(weights[:, 0], expected, atol=1e-6)


def test_advantage_of_zero_has_neither_sign():
  advantages = jnp.zeros_like(ADVANTAGES)
  for sign in ("positive", "negative"):
    assert (weights_of(OLD, MASK, advantages, sign=sign) == 1).all()
  assert (weights_of(OLD, MASK, advantages) > 1).any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"alpha": -1.5}, "at least -1, got -1.5"),
    ({"sign": "plus"}, "both, positive, negative, got 'plus'"),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    probability.low_probability(OLD, MASK, ADVANTAGES, **options)
