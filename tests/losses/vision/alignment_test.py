"""Alignment of latent segments: golden values, gradients, padding, encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import latent_alignment, reduce
from mmrl.losses.vision import alignment
from mmrl.models.config import Latent
from mmrl.models.passes import segments


def values():
  """Features and targets [2, 1, 2, 2, 2] of the paper's note."""
  features = [
    [[[1, 0], [1, 1]], [[0, 2], [3, 4]]],
    [[[2, 0], [0, 0]], [[9, 9], [9, 9]]],
  ]
  target = [
    [[[1, 0], [1, 0]], [[0, -1], [4, 3]]],
    [[[1, 0], [1, 0]], [[1, 0], [1, 0]]],
  ]
  return [jnp.array(x, jnp.float32)[:, None] for x in (features, target)]


repa = jax.jit(alignment.repa)


def mean(found, valid):
  """The mean over valid segments, by the reduction that configs name."""
  return float(_mean(found, np.where(np.array(valid)[:, None] > 0, 0, -1)))


@jax.jit
def _mean(found, pictures):
  weights = reduce.segment_mean(jnp.ones(found.shape, bool), pictures)
  return reduce.total(found, weights)


def test_the_loss_is_golden():
  features, target = values()
  found = repa(features, target)
  assert mean(found, [[1, 1], [1, 0]]) == pytest.approx(-0.444518, abs=1e-6)
  assert mean(found, [[0, 0], [0, 0]]) == 0
  same = repa(target, target)
  assert mean(same, [[1, 1], [1, 1]]) == pytest.approx(-1, abs=1e-6)


def test_shuffled_targets_raise_the_loss():
  _, target = values()
  target = target + jnp.arange(2.0)[None, None, None, :, None]
  shuffled = target[:, :, :, ::-1]
  valid = [[1, 1], [1, 1]]
  own = mean(repa(target, target), valid)
  assert mean(repa(target, shuffled), valid) > own + 0.01


def test_a_zero_vector_has_a_finite_gradient_and_targets_have_none():
  features, target = values()
  slopes = jax.grad(lambda *x: alignment.repa(*x).sum(), argnums=(0, 1))
  one, other = jax.jit(slopes)(features, target)
  assert np.isfinite(one).all() and (np.asarray(one) != 0).any()
  assert (np.asarray(other) == 0).all()


def test_values_stand_where_segments_open():
  tokens = jnp.array([[[90, 90, 90, 91, 11, 90, 90, 90, 91, 12]]])
  starts = jax.jit(segments.starts, static_argnums=1)
  start = starts(tokens, Latent(90, 91, length=4))
  scatter = jax.jit(alignment._scatter, static_argnums=2)
  found = scatter(jnp.array([[[2.0, 3.0]]]), start, 10)
  np.testing.assert_array_equal(found[0, 0], [2, 0, 0, 0, 0, 3, 0, 0, 0, 0])
  pictures = np.where(np.arange(10) == 5, 1, -1)[None, None]
  found = jax.jit(alignment._at)(pictures, start)
  np.testing.assert_array_equal(found, [[[-1, 1]]])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"encoders": ()}, "at least one spec"),
    ({"encoders": ({"name": "dino"},)}, "has no 'dino'"),
    ({"encoders": ({"name": "own_tower", "side": 0},)}, "at least 1"),
    (
      {"encoders": ({"name": "projection", "side": 30},)},
      "a multiple of patch = 16",
    ),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    latent_alignment(**options)
