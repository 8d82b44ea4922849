"""Choice of blocks: values worked in advance, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.models.kernels import blocks, sparse
from mmrl.models.kernels.blocks import Sparse, infllm_v2, punctuation_sparse

# The last query sees one block of two chosen by score; see the tests.
PLAIN = Sparse(block=2, init=2, local=2, top_k=1, mix=0.5)
KEYS = [(1, 0), (0, 1), (0, 0), (3, 0), (2, 0), (2, 0), (0, 1), (1, 0)]
MARKS = [0, 0, 0, 1, 0, 0, 1, 0]
# Two query heads on the one key head.
QUERIES = [(1, 0), (1, 1)]


def pool(keys, marks, block, mix, real=None):
  """The pooled keys of one sequence."""
  keys = np.array(keys, np.float32)[None, None]
  count = -(-keys.shape[2] // block) * block
  there = np.zeros((1, count), bool)
  there[0, : keys.shape[2]] = True if real is None else np.array(real, bool)
  found = _pooled(
    *(keys, np.array([marks], bool), np.arange(count)[None], there), block, mix
  )
  return np.asarray(found)[0, 0]


@functools.partial(jax.jit, static_argnums=(4, 5))
def _pooled(keys, marks, place, there, block, mix):
  return blocks.pooled(blocks.sums(keys, marks, place, there, block), mix)


@pytest.mark.parametrize(
  "mix, wanted",
  [
    (0.5, [(0.5, 0.5), (2.25, 0), (2, 0), (0.25, 0.75)]),
    (1.0, [(0.5, 0.5), (1.5, 0), (2, 0), (0.5, 0.5)]),
    (0.0, [(0.5, 0.5), (3, 0), (2, 0), (0, 1)]),
  ],
)
def test_pooled_keys(mix, wanted):
  np.testing.assert_allclose(pool(KEYS, MARKS, 2, mix), wanted, atol=1e-6)
  # Without punctuation it is mean pooling, whatever the mix, to the bit.
  np.testing.assert_array_equal(
    pool(KEYS, [0] * 8, 2, mix), pool(KEYS, MARKS, 2, 1.0)
  )


def test_pooled_keys_of_incomplete_blocks():
  found = pool(KEYS[:7], MARKS[:7], 4, 0.5)
  np.testing.assert_allclose(
    found, [(2, 0.125), (0.666667, 0.666667)], atol=1e-6
  )
  real = [1, 1, 1, 0, 1, 1, 0, 0]
  found = pool(KEYS, MARKS, 2, 0.5, real)
  np.testing.assert_array_equal(found, [(0.5, 0.5), (0, 0), (2, 0), (0, 0)])


def score(position, mix):
  """The scores of four blocks."""
  queries = np.array(QUERIES) / np.sqrt(2)
  raw = queries @ pool(KEYS, MARKS, 2, mix).T
  raw = np.asarray(raw, np.float32)[None, None, None, None]
  return _block_scores(raw, np.array([[position]]), 2)


_block_scores = jax.jit(blocks.block_scores, static_argnums=2)
choose = jax.jit(blocks.choose, static_argnums=2)
seen_by = jax.jit(blocks.seen, static_argnums=3)


@pytest.mark.parametrize(
  "position, mix, wanted",
  [
    (7, 0.5, [0.277431, 0.797056, 0.667907, 0.257606]),
    (7, 1.0, [0.327995, 0.554432, 0.789578, 0.327995]),
    (4, 0.5, [0.517256, 1.482744, 0, 0]),
    (0, 0.5, [0, 0, 0, 0]),
  ],
)
def test_scores(position, mix, wanted):
  found = score(position, mix)[0, 0, 0, 0]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
  "position, mix, top_k, wanted, seen",
  [
    (7, 0.5, 1, [1], "11110011"),
    (7, 1.0, 1, [2], "11001111"),
    (7, 0.5, 4, [1, 2, -1, -1], "11111111"),
    (5, 0.5, 1, [1], "11111100"),
    (4, 0.5, 1, [-1], "11111000"),
    (2, 0.5, 1, [-1], "11100000"),
    (0, 0.5, 1, [-1], "10000000"),
  ],
)
def test_choice(position, mix, top_k, wanted, seen):
  settings = Sparse(block=2, init=2, local=2, top_k=top_k, mix=mix)
  at = np.array([[position]])
  chosen = np.asarray(choose(score(position, mix), at, settings))
  np.testing.assert_array_equal(chosen[0, 0, 0, 0], wanted)
  found = seen_by(chosen[0, 0, 0], at[0], np.arange(8)[None], settings)
  assert "".join(map(str, np.asarray(found[0], int))) == seen


@pytest.mark.parametrize(
  "settings, position, wanted",
  [
    (Sparse(2, 2, 3, 1), 6, [0, 2, 3]),
    (Sparse(2, 2, 3, 1), 7, [0, 2, 3]),
    (Sparse(4, 0, 6, 1), 11, [1, 2]),
  ],
)
def test_blocks_that_are_always_seen(settings, position, wanted):
  none = np.full((1, 1), -1, np.int32)
  keys = np.arange(12)[None]
  found = seen_by(none, np.array([position]), keys, settings)[0]
  assert sorted({i // settings.block for i in np.flatnonzero(found)}) == wanted


def attend(settings, *, gathered):
  """The last query's output of two heads, values being 0 to 7."""
  queries, keys = (np.array(x, np.float32) for x in (QUERIES, KEYS))
  return _attend(queries, keys, settings, gathered)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _attend(queries, keys, settings, gathered):
  keys = keys[None, None, None]
  values = jnp.broadcast_to(jnp.arange(8.0)[:, None], (8, 2))[None, None, None]
  offset, real = jnp.zeros((1,), jnp.int32), jnp.ones((1, 8), bool)
  marks = jnp.array([[MARKS]], bool)
  own = sparse.own(keys, values, real, marks, offset, settings)
  queries = jnp.broadcast_to(queries[None, None, None], (1, 1, 8, 2, 2))
  out, _ = sparse.attend(queries, own, None, settings, by_gathering=gathered)
  return out[0, 0, 7, :, 0]


@pytest.mark.full
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize(
  "mix, top_k, wanted",
  [
    (0.5, 1, [3.131710, 3.175096]),
    (1.0, 1, [4.075975, 4.003490]),
    (0.5, 2, [3.608167, 3.599506]),
    (0.5, 4, [3.608167, 3.599506]),
  ],
)
def test_attention(mix, top_k, wanted, gathered):
  settings = Sparse(block=2, init=2, local=2, top_k=top_k, mix=mix)
  found = attend(settings, gathered=gathered)
  np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_sparsity():
  def of(init, local, top_k, block, length):
    return blocks.sparsity(Sparse(block, init, local, top_k), length)

  assert round(of(128, 512, 16, 16, 32768), 6) == 0.972656
  assert round(of(128, 512, 4, 64, 32768), 6) == 0.972656
  assert round(of(16, 128, 2, 16, 4096), 6) == 0.957031
  assert of(16, 128, 16, 16, 256) == 0
  # InfLLM-v2's K counts the blocks at the beginning and the local ones.
  assert blocks.sparsity(infllm_v2(top_k=16), 4096) == 1 - 16 * 64 / 4096


def test_windows_of_the_baseline():
  scores = jnp.array([0.1, 0.9, 0.2, 0.3, 0.4, 0.8, 0.5, 0.05, 0.6])
  found = jax.jit(blocks.window_maximum)(scores)
  np.testing.assert_allclose(found, [0.9, 0.8, 0.6], atol=1e-7)


@pytest.mark.full
def test_windows_are_complete():
  """Of 256 keys, 15 windows; and each is the mean of its 32 keys."""
  rng = np.random.RandomState(0)
  keys = rng.randn(256, 4).astype(np.float32)
  query = rng.randn(4).astype(np.float32)
  strides = pool(keys, [0] * 256, 16, 1.0)
  raw = jnp.asarray(strides @ query)[None, None, None, None, None]
  windows = [keys[i : i + 32].mean(0) @ query for i in range(0, 225, 16)]
  assert len(windows) == (256 - 32) // 16 + 1 == 15
  wanted = np.exp(windows) / np.exp(windows).sum()
  padded = np.concatenate([[0], wanted, [0] * 4])
  wanted = [padded[4 * t : 4 * t + 5].max() for t in range(4)]
  window_scores = jax.jit(blocks.window_scores)
  found = window_scores(raw, np.array([[255]]))[0, 0, 0, 0]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  # A query earlier by one doesn't see the last window.
  found = window_scores(raw, np.array([[254]]))[0, 0, 0, 0]
  few = np.exp(windows[:14]) / np.exp(windows[:14]).sum()
  np.testing.assert_allclose(found[0], few[:4].max(), rtol=1e-5)


def test_the_baseline_counts_all_blocks():
  """Of K = 4, one is the first and two are local: one is chosen."""
  settings = infllm_v2(top_k=4, init_blocks=1, local_blocks=1)
  scores = jnp.array([[[[[0.9, 0.2, 0.8, 0.5, 0.1, 0.7]]]]])
  at = jnp.array([[64 * 5 + 3]])
  chosen = np.asarray(choose(scores, at, settings))[0, 0, 0, 0]
  assert sorted(chosen.tolist()) == [-1, -1, -1, 2]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"block": 0}, "expected block .* at least 1, found 0"),
    ({"top_k": 0}, "expected top_k .* at least 1, found 0"),
    ({"local": 0}, "expected local .* at least 1, found 0"),
    ({"init": -1}, "expected init .* at least 0, found -1"),
    ({"mix": 1.5}, r"expected mix .* in \[0, 1\], found 1.5"),
  ],
)
def test_refused(options, message):
  with pytest.raises(UserError, match=message):
    punctuation_sparse(**options)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"top_k": 10}, "expected top_k .* at least 11, found 10"),
    ({"top_k": 16, "local_blocks": -1}, "expected local_blocks"),
    ({"top_k": 16, "init_blocks": True}, "expected init_blocks"),
  ],
)
def test_refused_of_the_baseline(options, message):
  with pytest.raises(UserError, match=message):
    infllm_v2(**options)


def test_choice_has_no_gradient():
  def total(keys):
    marks, index = jnp.zeros((1, 1, 8), bool), jnp.arange(8)[None]
    found = blocks.sums(keys, marks, index, jnp.ones((1, 8), bool), 2)
    return blocks.pooled(found, 0.5).sum()

  gradient = jax.jit(jax.grad(total))(np.ones((1, 1, 1, 8, 2), np.float32))
  assert not np.asarray(gradient).any()
