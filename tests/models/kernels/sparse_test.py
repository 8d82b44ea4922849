"""Sparse attention: its forms against each other, and what has a gradient."""

import dataclasses
import functools

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import kernels
import numpy as np
import pytest

from mmrl.models.kernels import attention, blocks, gathered, sparse, sparse_tpu
from mmrl.models.kernels.blocks import Sparse

P, G, S, R, H, K, HEAD = 3, 2, 45, 11, 4, 2, 8
SETTINGS = Sparse(block=4, init=3, local=6, top_k=2, mix=0.5)
PLACE = np.arange(S)
# Padding on the left, on the right, on both sides.
MASK = jnp.asarray([PLACE >= 6, PLACE < 30, (PLACE > 2) & (PLACE < 41)])


def arrays(seed=0):
  """Queries, keys and values of prompts; the same of answers; punctuation."""
  of_prompt = [
    kernels.normal(seed + i, P, S, heads, HEAD)
    for i, heads in enumerate((H, K, K))
  ]
  of_answers = [
    kernels.normal(seed + 3 + i, P, G, R, heads, HEAD)
    for i, heads in enumerate((H, K, K))
  ]
  rng = np.random.RandomState(seed)
  marks = [jnp.asarray(rng.rand(*s) < 0.2) for s in ((P, S), (P, G, R))]
  return of_prompt, of_answers, marks


@functools.partial(jax.jit, static_argnames=("settings", "form"))
def causal(queries, keys, values, marks, settings, form=None):
  keys, values = (jnp.swapaxes(x, 1, 2)[:, None] for x in (keys, values))
  offset = -jnp.argmax(MASK, -1)
  own = sparse.own(keys, values, MASK, marks[:, None], offset, settings)
  out, _ = sparse.attend(
    queries[:, None], own, None, settings, by_gathering=form
  )
  return jnp.where(MASK[..., None, None], out[:, 0], 0)


@functools.partial(jax.jit, static_argnames="settings")
def answers(of_prompt, of_answers, marks, settings):
  """The answers' output, in whichever form the sizes ask for."""
  _, keys, values = of_prompt
  queries, *own = of_answers
  out, _ = sparse.attend_answers(
    queries, keys, values, MASK, *own, tuple(marks), settings
  )
  return out


@pytest.fixture
def few_queries(monkeypatch):
  """Four parts of the prompts' queries, the last one short; always gathered."""
  monkeypatch.setattr(gathered, "_QUERIES", 12)
  monkeypatch.setattr(attention, "DENSE_VALUES", 0)


def both_forms(function, inputs):
  """Values and gradients by the mask, and gathered."""

  @jax.jit
  def run(inputs):
    value, back = jax.vjp(function, inputs)
    return value, back(jnp.cos(jnp.arange(value.size)).reshape(value.shape))

  return run(inputs)


def check(one, other):
  """Float32 sums in another order, of values of up to 40."""
  for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.full
def test_forms_agree_on_prompts(few_queries):
  inputs, _, marks = arrays()

  def by(form):
    return both_forms(
      lambda x: causal.__wrapped__(*x, marks[0], SETTINGS, form=form),
      inputs,
    )

  check(by(True), by(False))


@pytest.mark.full
def test_forms_agree_on_answers(monkeypatch):
  of_prompt, of_answers, marks = arrays()

  def of(inputs):
    # Not what `jit` has kept of the other form.
    return answers.__wrapped__(*inputs, marks, SETTINGS)

  masked = both_forms(of, (of_prompt, of_answers))
  monkeypatch.setattr(attention, "DENSE_VALUES", 0)
  monkeypatch.setattr(gathered, "_QUERIES", 4)
  check(both_forms(of, (of_prompt, of_answers)), masked)


def test_with_all_blocks_it_is_dense():
  """By the mask to the bit, as it is the same program; gathered closely."""
  of_prompt, of_answers, marks = arrays()
  settings = dataclasses.replace(SETTINGS, top_k=99)
  wanted = jax.jit(attention.attend_causal)(*of_prompt, MASK)
  wanted = jnp.where(MASK[..., None, None], wanted, 0)
  found = causal(*of_prompt, marks[0], settings)
  np.testing.assert_array_equal(found, wanted)
  found = causal(*of_prompt, marks[0], settings, form=True)
  np.testing.assert_allclose(found, wanted, atol=2e-6)
  _, *prompt = of_prompt
  queries, *own = of_answers
  dense = jax.jit(attention.attend_answers)
  wanted = dense(queries, *prompt, MASK, *own)
  found = answers(of_prompt, of_answers, marks, settings)
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.full
@pytest.mark.parametrize("form", [False, True])
def test_gradient_of_the_last_query(form):
  """None of keys that it hasn't chosen, or that come later; some of others."""
  (queries, keys, values), _, marks = arrays()
  at = 35
  position = at - np.argmax(MASK, -1)

  def value(queries, keys, values):
    out = causal(queries, keys, values, marks[0], SETTINGS, form=form)
    return (out[:, at] ** 2).sum()

  of_queries, *of_keys = jax.jit(jax.grad(value, (0, 1, 2)))(
    queries, keys, values
  )
  assert np.asarray(of_queries[:, at]).any()
  assert not np.asarray(of_queries.at[:, at].set(0)).any()
  own_keys = jnp.swapaxes(keys, 1, 2)[:, None]
  offset = -jnp.argmax(MASK, -1)
  own = sparse.own(
    own_keys, own_keys, MASK, marks[0][:, None], offset, SETTINGS
  )
  _, chosen = sparse.attend(queries[:, None], own, None, SETTINGS)
  for p in range(P):
    if not MASK[p, at]:
      continue
    for head in range(K):
      seen = blocks.seen(
        chosen[p, 0, at, head],
        jnp.asarray(position[p]),
        jnp.where(MASK[p], PLACE - np.argmax(MASK[p]), -1),
        SETTINGS,
      )
      assert 0 < seen.sum() < position[p] + 1
      for gradient in of_keys:
        touched = np.asarray(gradient[p, :, head]).any(-1)
        np.testing.assert_array_equal(touched, seen)


@pytest.mark.parametrize("sees", ["marks", "mix"])
def test_what_the_mix_is_of(sees):
  """Without punctuation the mix changes nothing; with it, it does."""
  inputs, _, (marks, _) = arrays()
  if sees == "mix":
    marks = jnp.zeros_like(marks)
  one, other = (
    causal(*inputs, marks, dataclasses.replace(SETTINGS, mix=mix))
    for mix in (1.0, 0.0)
  )
  assert np.array_equal(one, other) == (sees == "mix")


@pytest.mark.full
def test_the_baseline(few_queries):
  """InfLLM-v2's windows: both forms, and a mask by hand."""
  settings = dataclasses.replace(
    blocks.infllm_v2(top_k=2, init_blocks=0, local_blocks=0)
  )
  length = 300
  queries, keys, values = (
    kernels.normal(i, 1, length, heads, HEAD)
    for i, heads in enumerate((H, K, K))
  )
  keys_, values_ = (jnp.swapaxes(x, 1, 2)[:, None] for x in (keys, values))
  real, nothing = jnp.ones((1, length), bool), jnp.zeros((1, 1, length), bool)
  zero = jnp.zeros((1,), jnp.int32)
  own = sparse.own(keys_, values_, real, nothing, zero, settings)
  found, chosen = (
    sparse.attend(queries[:, None], own, None, settings, by_gathering=form)
    for form in (True, False)
  )
  np.testing.assert_allclose(found[0], chosen[0], atol=3e-6)
  # The last query: its own block, and the best of four.
  for head in range(K):
    windows = [
      np.asarray(keys[0, i : i + 32, head]).mean(0) for i in range(0, 269, 16)
    ]
    own_queries = np.asarray(queries[0, -1, 2 * head : 2 * head + 2])
    scores = own_queries @ np.stack(windows).T / np.sqrt(HEAD)
    scores = (np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)).sum(0)
    best = np.argmax(
      [scores[max(4 * t - 1, 0) : 4 * t + 4].max() for t in range(4)]
    )
    assert best in chosen[1][0, 0, -1, head]


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(sparse_tpu, "_ROWS", 8)
  monkeypatch.setattr(sparse_tpu, "_COLUMNS", 16)


@pytest.mark.full
def test_the_kernel_is_the_gathered_form(small_tiles):
  inputs, _, marks = arrays()

  def by_kernel(inputs):
    queries, keys, values = inputs
    keys, values = (jnp.swapaxes(x, 1, 2)[:, None] for x in (keys, values))
    offset = -jnp.argmax(MASK, -1)
    own = sparse.own(keys, values, MASK, marks[0][:, None], offset, SETTINGS)
    _, chosen = sparse.attend(queries[:, None], own, None, SETTINGS)

    def gather(queries, keys, values, chosen, real, offset):
      own = sparse.own(keys, values, real, marks[0][:, None], offset, SETTINGS)
      return sparse.attend(queries, own, None, SETTINGS, by_gathering=True)[0]

    kernel = sparse_tpu.make(gather, SETTINGS, interpret=True)
    out = kernel(queries[:, None], keys, values, chosen, MASK, offset)
    return jnp.where(MASK[..., None, None], out[:, 0], 0)

  check(
    both_forms(by_kernel, inputs),
    both_forms(lambda x: causal(*x, marks[0], SETTINGS), inputs),
  )


@pytest.mark.full
def test_tiles_that_are_visited(small_tiles):
  """Every tile with a key that one of the tile's queries sees, and few more."""
  length = 48
  settings = dataclasses.replace(SETTINGS, top_k=1)
  rng = np.random.RandomState(0)
  position = jnp.arange(length) - 5
  top = rng.randint(0, 9, (length, K, 1))
  chosen = jnp.asarray(
    np.where(top * 4 + 3 <= position[:, None, None], top, -1)
  )
  order, count = sparse_tpu.visits(
    chosen, position, jnp.asarray(-5), settings, length // 16
  )
  at = jnp.arange(length)[None] - 5
  for head in range(K):
    seen = blocks.seen(chosen[:, head], position, at, settings)
    needed = np.asarray(seen).reshape(6, 8, 3, 16).any((1, 3))
    for row in range(6):
      visited = set(order[head, row, : count[head, row]].tolist())
      assert visited >= set(np.flatnonzero(needed[row]).tolist())
      assert max(visited, default=0) * 16 <= row * 8 + 7


@pytest.mark.full
def test_the_tpu_program_holds_the_kernel(monkeypatch):
  pytest.importorskip("libtpu", reason="compiles for a TPU: extra `tpu`")
  jax.devices()  # The CPU has read its flags.
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  chips = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
  chip = jax.sharding.SingleDeviceSharding(chips[0])
  settings = Sparse(block=16, init=16, local=128, top_k=2, mix=0.5)

  def loss(queries, keys, values, mask, marks):
    out, _ = sparse.attend_causal(
      queries, keys, values, mask > 0, marks > 0, settings
    )
    return out.astype(jnp.float32).sum()

  def shape(*sizes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=chip)

  flags, pair = shape(1, 2048, dtype=jnp.int32), shape(1, 2048, 2, 128)
  gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
  program = gradient.lower(
    shape(1, 2048, 4, 128), pair, pair, flags, flags
  ).compile()
  assert "punctuation_sparse" in program.as_text()
