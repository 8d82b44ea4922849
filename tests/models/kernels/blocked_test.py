"""Attention over runs: the dense computation is the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl.models.kernels import blocked

HEADS, KEY_HEADS, SIZE, BLOCK = 4, 2, 4, 8
# Lengths of the runs of each row: blocks that a run fills, that several share
# and that one crosses; padding behind them, and rows of nothing else.
ROWS = {
  "one": [[40], [], []],
  "many small": [[1, 2, 3, 4, 5, 6, 7, 8], [], []],
  "uneven": [[3, 17, 1, 19], [8, 8, 8, 16], [29]],
  "some padding": [[5, 9], [], [16, 1]],
}
COUNT = 40


def make_runs(rows, count=COUNT) -> np.ndarray:
  """Pictures in a row: each attends to itself."""
  runs = np.zeros((len(rows), count, 1, 2), np.int32)
  for row, lengths in enumerate(rows):
    start = 0
    for length in lengths:
      runs[row, start : start + length, 0] = start, start + length
      start += length
  return runs


def causal(*starts) -> np.ndarray:
  """Sequences with padding on the left and of one token on the right."""
  runs = np.zeros((len(starts), COUNT, 1, 2), np.int32)
  for row, start in enumerate(starts):
    for at in range(start, COUNT - 1):
      runs[row, at, 0] = start, at + 1
  return runs


def answers(*starts) -> np.ndarray:
  """Four answers of ten to prompts of 13: the prompt, and themselves."""
  runs = np.zeros((len(starts), COUNT, 2, 2), np.int32)
  for row, start in enumerate(starts):
    runs[row, :, 0] = start, 13
    for at in range(COUNT):
      runs[row, at, 1] = 13 + at // 10 * 10, 13 + at + 1
  return runs


CASES = {name: (make_runs(rows), COUNT) for name, rows in ROWS.items()} | {
  "causal": (causal(0, 7, 30), COUNT),
  "answers": (answers(0, 5, 12), 13 + COUNT),
}


def draw(rows: int, keys: int = COUNT, dtype="float32"):
  """Queries, keys and values, far from uniform attention."""
  rng = np.random.RandomState(0)
  shapes = (COUNT, HEADS), (keys, KEY_HEADS), (keys, KEY_HEADS)
  return tuple(
    jnp.asarray(2 * rng.randn(rows, *shape, SIZE), dtype) for shape in shapes
  )


@jax.jit
def dense(queries, keys, values, runs):
  place = jnp.arange(keys.shape[1])[None, None, None]
  seen = (place >= runs[..., :1]) & (place < runs[..., 1:])
  seen = seen.any(2)
  rep = HEADS // KEY_HEADS
  keys, values = (jnp.repeat(x, rep, axis=2) for x in (keys, values))
  scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) / np.sqrt(SIZE)
  scores = jnp.where(seen[:, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1) * seen[:, None]
  return jnp.einsum("bhqk,bkhd->bqhd", weights, values)


@functools.partial(jax.jit, static_argnames="block")
def attend(*arrays, block=BLOCK):
  return blocked.attend_runs(*arrays, block=block)


@functools.cache
def value_and_gradient(function, **options):
  """One program for all cases of a shape."""

  def loss(arrays, runs, slope):
    found = function(*arrays, runs, **options)
    return jnp.vdot(found, slope), found

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("block", small_models.first(7, 1, 8, 16, 64))
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradient(case, block):
  runs, keys = CASES[case]
  arrays = draw(len(runs), keys)
  slope = np.random.RandomState(1).randn(*arrays[0].shape)
  given = arrays, jnp.asarray(runs), jnp.asarray(slope, jnp.float32)
  (_, found), ours = value_and_gradient(attend, block=block)(*given)
  (_, wanted), theirs = value_and_gradient(dense)(*given)
  np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=3e-6)
  nothing = (runs[..., 0] == runs[..., 1]).all(-1)
  assert not np.asarray(found)[nothing].any()
  for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_neighbours_do_not_leak():
  """However large what stands beside a run: it is a world of its own."""
  runs = make_runs([[5, 6, 13]])
  queries, keys, values = draw(1)
  before = attend(queries, keys, values, jnp.asarray(runs))
  bad = np.zeros(COUNT, bool)
  bad[:5] = bad[24:] = True
  keys, values = (
    jnp.where(bad[:, None, None], 1e20, x) for x in (keys, values)
  )
  after = attend(queries, keys, values, jnp.asarray(runs))
  np.testing.assert_array_equal(after[0, 5:24], before[0, 5:24])


def test_large_scores_and_bfloat16():
  runs = jnp.asarray(make_runs([[40]]))
  queries, keys, values = draw(1)
  found = attend(100 * queries, 100 * keys, values, runs)
  wanted = dense(100 * queries, 100 * keys, values, runs)
  np.testing.assert_allclose(found, wanted, atol=1e-4)
  runs = jnp.asarray(make_runs([[11, 20]]))
  arrays = draw(1, dtype="bfloat16")
  found = attend(*arrays, runs)
  assert found.dtype == jnp.bfloat16
  wanted = dense(*(x.astype("float32") for x in arrays), runs)
  np.testing.assert_allclose(found.astype("float32"), wanted, atol=0.03)


def test_any_mix_runs_the_same_program():
  program = jax.jit(lambda *arrays: attend(*arrays))
  for rows in (ROWS["one"], ROWS["many small"], [[], [], []]):
    program(*draw(3), jnp.asarray(make_runs(rows)))
  assert program._cache_size() == 1


def temporary_bytes(count: int) -> int:
  """XLA's own figure for a value and its gradients."""
  rows = jax.ShapeDtypeStruct((1, count, HEADS, SIZE), jnp.float32)
  keys = jax.ShapeDtypeStruct((1, count, KEY_HEADS, SIZE), jnp.float32)
  runs = jax.ShapeDtypeStruct((1, count, 1, 2), jnp.int32)

  def loss(queries, keys, values, runs):
    return attend(queries, keys, values, runs, block=64).sum()

  gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  compiled = gradient.lower(rows, keys, keys, runs).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear():
  """A dense map of 8,192 patches would take 1 GB alone."""
  small, large = temporary_bytes(2048), temporary_bytes(8192)
  assert large < 5 * small
  assert large < 8192 * 64 * HEADS * 4 * 4
