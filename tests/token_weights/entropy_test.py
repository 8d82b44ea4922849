"""Tests of the entropy weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.token_weights import entropy

weights_of = jax.jit(entropy.entropy_quantile, static_argnames="quantile")
# Entropies of five answer tokens: 0.1, 0.2, 0.3, 0.4, 0.5.
ENTROPIES = jnp.array([[[0.1, 0.5, 0.3]], [[0.2, 0.4, 9.0]]])
MASK = jnp.array([[[True, True, True]], [[True, True, False]]])


@pytest.mark.parametrize(
  ("quantile", "kept"),
  [
    (0.0, [[[1, 1, 1]], [[1, 1, 0]]]),
    (0.5, [[[0, 1, 1]], [[0, 1, 0]]]),  # the median is 0.3
    (0.8, [[[0, 1, 0]], [[0, 0, 0]]]),  # between 0.4 and 0.5: 0.42
  ],
)
def test_golden(quantile, kept):
  weights = weights_of(ENTROPIES, MASK, quantile=quantile)
  np.testing.assert_array_equal(weights, kept)


def test_a_fifth_is_kept_by_default():
  rng = np.random.default_rng(0)
  entropies = jnp.asarray(rng.uniform(size=(5, 4, 50)), jnp.float32)
  weights = weights_of(entropies, jnp.ones((5, 4, 50), bool))
  assert weights.sum() == 200
  assert entropies[weights > 0].min() > entropies[weights == 0].max()


def test_no_token_has_no_weight():
  assert (weights_of(ENTROPIES, jnp.zeros_like(MASK)) == 0).all()


@pytest.mark.parametrize("quantile", [1.0, -0.1, 80.0])
def test_quantile_outside_its_range_is_refused(quantile):
  with pytest.raises(ValueError, match=rf"in \[0, 1\), got {quantile}"):
    entropy.entropy_quantile(ENTROPIES, MASK, quantile=quantile)
