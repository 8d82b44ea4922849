"""Attention against dense computations on concatenated keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.models import layers
from mmrl.models.kernels import attention

P, G, T, S, H, K, HEAD = 2, 3, 4, 5, 4, 2, 6


def normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.RandomState(seed).randn(*shape), jnp.float32)


def value_and_vjp(function, arrays, cotangent):
  """The value, and the cotangents of all arrays, in one compilation."""

  @jax.jit
  def run(*arrays):
    value, back = jax.vjp(function, *arrays)
    return value, back(cotangent)

  return run(*arrays)


def make_answers():
  """Queries, prefix keys and values, own keys and values."""
  return (
    normal(0, P, G, T, H, HEAD),
    normal(1, P, S, K, HEAD),
    normal(2, P, S, K, HEAD),
    normal(3, P, G, T, K, HEAD),
    normal(4, P, G, T, K, HEAD),
  )


PREFIX_MASK = jnp.array(
  [[False, True, True, True, True], [True] * 3 + [False] * 2]
)
OWN_MASK = jnp.tri(T, dtype=bool)


def concatenated(prefix_keys, keys):
  copies = jnp.broadcast_to(
    prefix_keys[:, None], (P, G, *prefix_keys.shape[1:])
  )
  return jnp.concatenate([copies, keys], axis=2)


def dense_mask():
  prefix = jnp.broadcast_to(PREFIX_MASK[:, None, None], (P, G, T, S))
  own = jnp.broadcast_to(OWN_MASK, (P, G, T, T))
  return jnp.concatenate([prefix, own], axis=-1)


def by_prefix(queries, prefix_keys, prefix_values, keys, values):
  prefix = (x.swapaxes(1, 2) for x in (prefix_keys, prefix_values))
  own = (x.swapaxes(2, 3) for x in (keys, values))
  return attention.attend_prefix(queries, *prefix, PREFIX_MASK, *own, OWN_MASK)


def by_hand(queries, prefix_keys, prefix_values, keys, values):
  """One head at a time, over all keys: query head h reads key head h // 2."""
  keys = concatenated(prefix_keys, keys)
  values = concatenated(prefix_values, values)
  heads = []
  for h in range(H):
    key, value = keys[..., h // (H // K), :], values[..., h // (H // K), :]
    scores = queries[..., h, :] @ key.swapaxes(-1, -2) / np.sqrt(HEAD)
    scores = jnp.where(dense_mask(), scores, -jnp.inf)
    heads.append(jax.nn.softmax(scores) @ value)
  return jnp.stack(heads, axis=-2)


def test_attend_prefix_is_attention_over_all_keys():
  arrays = make_answers()
  cotangent = normal(5, P, G, T, H, HEAD)
  ours, ours_grads = value_and_vjp(by_prefix, arrays, cotangent)
  theirs, theirs_grads = value_and_vjp(by_hand, arrays, cotangent)
  np.testing.assert_allclose(ours, theirs, atol=1e-6)
  for one, other in zip(ours_grads, theirs_grads, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-6)
  # Large scores: both parts share the maximum, neither overflows nor vanishes.
  queries, *rest = arrays
  arrays = queries * 300, *rest
  ours = jax.jit(by_prefix)(*arrays)
  theirs = jax.jit(by_hand)(*arrays)
  assert np.isfinite(ours).all()
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_weights_by_hand():
  """Keys (1,0), (0,1); scores (1, 0) / sqrt 2 -> sigmoid(0.7071) = 0.669761."""
  queries = jnp.array([[[1.0, 0.0]]])
  keys = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
  probabilities = attention.weights(queries, keys, jnp.ones((1, 2), bool))
  np.testing.assert_allclose(
    probabilities[0, 0, 0], [0.669761, 0.330239], atol=1e-6
  )


def test_windows_are_a_block_mask():
  """Three windows of unequal size, patches not in order, one padding patch."""
  count, heads = 8, 2
  members = [[4, 1], [0, 6, 2], [5, 3]]
  windows = np.full((2, 4, 3), -1, np.int32)
  window_slot = np.zeros((2, count), np.int32)
  mask = np.zeros((2, count, count), bool)
  for w, patches in enumerate(members):
    windows[:, w, : len(patches)] = patches
    window_slot[:, patches] = w * 3 + np.arange(len(patches))
    mask[:, np.array(patches)[:, None], patches] = True
  arrays = [normal(seed, 2, count, heads, HEAD) for seed in range(3)]

  def windowed(*arrays):
    return attention.attend_windows(
      *arrays, jnp.asarray(windows), jnp.asarray(window_slot)
    )

  def dense(*arrays):
    return attention.attend(*arrays, jnp.asarray(mask))

  real = np.arange(count) < 7
  cotangent = normal(5, 2, count, heads, HEAD) * real[None, :, None, None]
  ours, ours_grads = value_and_vjp(windowed, arrays, cotangent)
  theirs, theirs_grads = value_and_vjp(dense, arrays, cotangent)
  np.testing.assert_allclose(ours[:, real], theirs[:, real], atol=1e-6)
  for one, other in zip(ours_grads, theirs_grads, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_rotary_angles_by_hand():
  """Four channels, base 16: frequencies 1, 1/2, 1/4, 1/8; and by axis: two
  channels for the row and two for the column of a head of 8, base 1e4."""
  positions = jnp.array([[3, 5, 7], [2, 2, 2]])
  angles = attention.rotary_angles(positions, (0, 1, 2, 2), 16.0)
  np.testing.assert_allclose(
    angles, [[3, 5 / 2, 7 / 4, 7 / 8], [2, 1, 1 / 2, 1 / 4]], rtol=1e-6
  )
  angles = attention.axial_angles(jnp.array([[3, 5]]), 8)
  np.testing.assert_allclose(angles, [[3, 0.03, 5, 0.05]], rtol=1e-6)


def test_rotate_by_hand():
  """Channel c is paired with c + half: (1, 2) by 90 degrees is (-2, 1)."""
  x = jnp.array([[[1.0, 5.0, 2.0, 6.0]]])
  turned = attention.rotate(x, jnp.array([[np.pi / 2, 0.0]]))
  np.testing.assert_allclose(turned, [[[-2, 5, 1, 6]]], atol=1e-6)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("bfloat16", 0.02)])
@pytest.mark.parametrize("shape", [(7, 3), (2, 4, 3), (2, 2, 4, 3)])
def test_gradient_of_matmul(shape, dtype, rtol):
  x, kernel = normal(0, *shape).astype(dtype), normal(1, 3, 5).astype(dtype)
  cotangent = normal(2, *shape[:-1], 5).astype(dtype)
  ours, ours_grads = value_and_vjp(layers.matmul, (x, kernel), cotangent)
  theirs, theirs_grads = value_and_vjp(jnp.matmul, (x, kernel), cotangent)
  # Two programs: sums of three products, and in bfloat16 one rounding.
  np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=rtol)
  for one, other in zip(ours_grads, theirs_grads, strict=True):
    assert one.dtype == other.dtype == jnp.dtype(dtype)
    one, other = np.float32(one), np.float32(other)
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, atol=rtol * scale)
