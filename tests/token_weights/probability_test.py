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
# Two answers of three and two tokens; [P=2, G=1, R=3].
OLD = jnp.log(jnp.array([[[0.9, 0.5, 0.1]], [[1.0, 0.02, 0.3]]], jnp.float32))
MASK = jnp.array([[[True, True, True]], [[True, True, False]]])
ADVANTAGES = jnp.array([[1.0], [-2.0]], jnp.float32)


@pytest.mark.parametrize(
  ("sign", "expected"),
  [
    # 1 + 0.2 (1 - p)
    ("both", [[1.02, 1.1, 1.18], [1, 1.196, 1]]),
    ("positive", [[1.02, 1.1, 1.18], [1, 1, 1]]),
    ("negative", [[1, 1, 1], [1, 1.196, 1]]),
  ],
)
def test_golden(sign, expected):
  weights = weights_of(OLD, MASK, ADVANTAGES, sign=sign)
  np.testing.assert_allclose(weights[:, 0], expected, atol=1e-6)
  if sign == "both":
    np.testing.assert_allclose(weights[MASK].mean(), 1.0992, atol=1e-6)
    weighed = weights * ADVANTAGES[..., None]
    expected = [[1.02, 1.1, 1.18], [-2, -2.392, -2]]
    np.testing.assert_allclose(weighed[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_alpha_zero_is_one_bit_for_bit(sign):
  weights = weights_of(OLD, MASK, ADVANTAGES, alpha=0.0, sign=sign)
  assert (weights == 1).all()


@pytest.mark.parametrize(
  ("alpha", "expected"),
  [
    # c p + 1 - c with c = 0.2
    (-0.2, [[0.98, 0.9, 0.82], [1, 0.804, 1]]),
    # the probability itself
    (-1.0, [[0.9, 0.5, 0.1], [1, 0.02, 1]]),
  ],
)
def test_negative_alpha_weighs_rare_tokens_less(alpha, expected):
  weights = weights_of(OLD, MASK, ADVANTAGES, alpha=alpha)
  np.testing.assert_allclose(weights[:, 0], expected, atol=1e-6)


def test_advantage_of_zero_has_neither_sign():
  advantages = jnp.zeros_like(ADVANTAGES)
  for sign in ("positive", "negative"):
    assert (weights_of(OLD, MASK, advantages, sign=sign) == 1).all()
  assert (weights_of(OLD, MASK, advantages) > 1).any()


def test_advantages_may_be_per_token():
  spread = jnp.broadcast_to(ADVANTAGES[..., None], MASK.shape)
  for sign in ("both", "positive", "negative"):
    one = weights_of(OLD, MASK, ADVANTAGES, sign=sign)
    two = weights_of(OLD, MASK, spread, sign=sign)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 100.0])
def test_padding_may_hold_anything(sign, garbage):
  one = weights_of(OLD, MASK, ADVANTAGES, sign=sign)
  two = weights_of(
    OLD.at[1, 0, 2].set(garbage),
    MASK,
    jnp.where(MASK, ADVANTAGES[..., None], garbage),
    sign=sign,
  )
  np.testing.assert_array_equal(one, two)


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
