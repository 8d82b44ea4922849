"""Tests of truncated importance sampling."""

import jax
import jax.numpy as jnp
from losses.surrogates_test import MASK, OLD
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.token_weights import mismatch

weights_of = jax.jit(
  mismatch.sampler_mismatch,
  static_argnames=("level", "kind", "cap", "lower", "normalize"),
)
# Log-ratios of two answers of three and two tokens; [P=2, G=1, R=3].
# Padding is not a number.
RATIO = jnp.array([[[0.1, -0.3, 0.9]], [[-0.2, 0.05, 0]]], jnp.float32)


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, [[1.105171, 0.740818, 2], [0.818731, 1.051271, 0]]),
    (
      {"kind": "mask", "lower": 0.5},
      [[1.105171, 0.740818, 0], [0.818731, 1.051271, 0]],
    ),
    (
      {"kind": "mask", "lower": 0.8},
      [[1.105171, 0, 0], [0.818731, 1.051271, 0]],
    ),
    # exp(0.7) = 2.013753 and exp(-0.15) = 0.860708
    ({"level": "sequence"}, [[2, 2, 2], [0.860708, 0.860708, 0]]),
    (
      {"level": "sequence", "cap": 3.0},
      [[2.013753, 2.013753, 2.013753], [0.860708, 0.860708, 0]],
    ),
    (
      {"level": "sequence", "kind": "mask"},
      [[0, 0, 0], [0.860708, 0.860708, 0]],
    ),
    # Of five tokens the mean is 5.715991 / 5; of two answers 2.860708 / 2.
    (
      {"normalize": True},
      [[0.966736, 0.648022, 1.749478], [0.716176, 0.919588, 0]],
    ),
    (
      {"level": "sequence", "normalize": True},
      [[1.398255, 1.398255, 1.398255], [0.601745, 0.601745, 0]],
    ),
  ],
)
def test_golden(options, expected):
  weights = weights_of(OLD, OLD - RATIO, MASK, **options)
  np.testing.assert_allclose(weights[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_agreement_is_one_bit_for_bit(level, kind):
  weights = weights_of(OLD, OLD, MASK, level=level, kind=kind)
  np.testing.assert_array_equal(weights, MASK.astype(jnp.float32))


def test_bounds_are_among_the_weights_that_stay():
  weights = weights_of(OLD, OLD, MASK, kind="mask", lower=1.0, cap=1.0)
  np.testing.assert_array_equal(weights, MASK.astype(jnp.float32))


@pytest.mark.parametrize("sign", [1, -1])
def test_log_ratio_is_clamped(sign):
  far = jnp.full_like(OLD, sign * 500.0)
  for level in ("token", "sequence"):
    weights = weights_of(OLD + far, OLD, MASK, level=level, cap=1e30)
    expected = np.where(MASK, np.exp(sign * 20.0), 0)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"level": "turn"}, "'token' or 'sequence', got 'turn'"),
    ({"kind": "clip"}, "'truncate' or 'mask', got 'clip'"),
    ({"cap": 0.0}, "cap must be positive, got 0.0"),
    ({"lower": 0.5}, "0 for kind 'truncate', got 0.5"),
    ({"lower": 3.0, "kind": "mask"}, "lower must be in .*, got 3.0"),
    ({"lower": -1.0, "kind": "mask"}, "lower must be in .*, got -1.0"),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    mismatch.sampler_mismatch(OLD, OLD, MASK, **options)


def test_normalised_weights_have_mean_one_however_small():
  found = weights_of(OLD, OLD + 3.0, MASK, normalize=True)
  np.testing.assert_allclose(found, MASK.astype(jnp.float32), rtol=1e-6)


def test_normalised_weights_of_nothing_are_zero():
  found = weights_of(OLD, OLD - 5.0, MASK, kind="mask", cap=2.0, normalize=True)
  assert not np.asarray(found).any()
