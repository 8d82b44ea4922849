"""Attention rows and policies: by hand, densely, and a few at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.losses.attention import jensen_shannon
from mmrl.models import rows
from mmrl.models.kernels import attention
from mmrl.types import Attention

# One sequence of four positions; two query heads on one key head of size 2.
KEYS = np.array([[1, 0], [0, 1], [1, 1], [-1, 0.5]], np.float32)
QUERIES = {
  1: [[0.5, 0], [0, 1]],
  2: [[1, -1], [0.5, 0.5]],
  3: [[0, 2], [1, 0]],
}
# softmax(q @ k / sqrt 2), mean of both heads.
ROWS = {
  1: [0.458859, 0.541141, 0, 0],
  2: [0.434011, 0.216038, 0.349952, 0],
  3: [0.227162, 0.272838, 0.365472, 0.134528],
}


def make_golden(keys: np.ndarray, prompt_mask: list[bool]) -> Attention:
  """Positions 2 and 3 as answer to a prompt of padding, 0 and 1."""
  answer = jnp.array([QUERIES[2], QUERIES[3]], jnp.float32)
  return Attention(
    queries=answer[None, None, :, None],
    keys=jnp.asarray(keys[-2:])[None, None, :, None, None],
    prefix_keys=jnp.asarray(keys[:-2])[None, :, None, None],
    prefix_mask=jnp.array([prompt_mask]),
    last_query=jnp.array(QUERIES[1], jnp.float32)[None, None],
  )


@functools.partial(jax.jit, static_argnums=1)
def rows_of(one, row=""):
  """Of an attention, or of the policy that is made of it."""
  one = models.attention_policy(one, row=row) if row else one
  return models.attention_rows(one)


def policy(*args, row: str) -> np.ndarray:
  return np.asarray(rows_of(make_golden(*args), row))[0, 0]


def test_golden_rows():
  found = rows_of(make_golden(KEYS, [True, True]))
  np.testing.assert_allclose(found[0, 0], [ROWS[2], ROWS[3]], atol=1e-6)


# A key that is padding, on the left and before the answer; one real prompt
# token before the first, or none.
LEFT = np.concatenate([[[9.0, 9.0]], KEYS]).astype(np.float32)
BEHIND = np.insert(KEYS, 2, 9.0, axis=0)


@pytest.mark.parametrize(
  "row, keys, mask, wanted",
  [
    (
      *("self", KEYS, [True, True]),
      [[0.667659, 0.332341, 0, 0], [0.262472, 0.315247, 0.422281, 0]],
    ),
    ("emit", KEYS, [True, True], [ROWS[1], ROWS[2]]),
    (
      *("self", LEFT, [False, True, True]),
      [[0, 0.667659, 0.332341, 0, 0], [0, 0.262472, 0.315247, 0.422281, 0]],
    ),
    (
      *("self", BEHIND, [True, True, False]),
      [[0.667659, 0.332341, 0, 0, 0], [0.262472, 0.315247, 0, 0.422281, 0]],
    ),
    (
      *("emit", BEHIND, [True, True, False]),
      [[0.458859, 0.541141, 0, 0, 0], [0.434011, 0.216038, 0, 0.349952, 0]],
    ),
    ("self", KEYS, [True, False], [[1, 0, 0, 0]]),
    ("self", KEYS, [False, False], [[0, 0, 0, 0]]),
  ],
)
def test_golden_policy(row, keys, mask, wanted):
  found = policy(keys, mask, row=row)[: len(wanted)]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_policy_refuses():
  with pytest.raises(ValueError, match="'self' or 'emit', got 'other'"):
    models.attention_policy(make_golden(KEYS, [True, True]), row="other")


P, G, R, S, A, H, K, HEAD = 2, 3, 5, 7, 2, 4, 2, 6


def normal(seed: int, *shape):
  return jnp.asarray(np.random.RandomState(seed).randn(*shape), jnp.float32)


def make(seed: int = 0) -> Attention:
  place = np.arange(S)
  return Attention(
    queries=3 * normal(seed, P, G, R, A, H, HEAD),
    keys=normal(seed + 1, P, G, R, A, K, HEAD),
    prefix_keys=normal(seed + 2, P, S, A, K, HEAD),
    # Padding on the left; and on the right.
    prefix_mask=jnp.asarray([place > 1, place < 6]),
    last_query=3 * normal(seed + 3, P, A, H, HEAD),
  )


def maps_of(one: Attention):
  """Maps of every layer over whole sequences, [P, G, K, H / K, R, keys]."""
  shape = (P, G, S, A, K, HEAD)
  prefix = jnp.broadcast_to(one.prefix_keys[:, None], shape)
  keys = jnp.concatenate([prefix, one.keys], axis=2)
  mask = jnp.concatenate(
    [
      jnp.broadcast_to(one.prefix_mask[:, None, None], (P, G, R, S)),
      jnp.broadcast_to(jnp.tri(R, dtype=bool), (P, G, R, R)),
    ],
    axis=-1,
  )
  return [
    attention.weights(one.queries[..., a, :, :], keys[..., a, :, :], mask)
    for a in range(A)
  ]


def dense(one: Attention):
  """The mean of the maps of all layers and heads."""
  return sum(maps_of(one)).mean((2, 3)) / A


def of(function, seed=0):
  """Value and gradient, by all that is a number, of weighted sums."""
  one = make(seed)
  arrays = one.queries, one.keys, one.prefix_keys, one.last_query

  def total(arrays):
    names = ("queries", "keys", "prefix_keys", "last_query")
    changed = dict(zip(names, arrays, strict=True))
    found = function(dataclasses.replace(one, **changed))
    return jnp.vdot(found, normal(9, *found.shape)), found

  return jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)


def check_same(one, other, atol=2e-6):
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5)


def test_rows_are_means_of_maps():
  check_same(of(models.attention_rows), of(dense), atol=1e-5)
  found = np.asarray(rows_of(make()))
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("row", ["", "self", "emit"])
@pytest.mark.parametrize("start, count", [(0, 1), (2, 3), (4, 1)])
def test_some_rows_are_some_of_all(row, start, count):
  one = make()

  @jax.jit
  def some(one):
    one = models.attention_policy(one, row=row) if row else one
    return models.attention_rows(one, start, count)

  wanted = rows_of(one, row)[:, :, start : start + count]
  np.testing.assert_allclose(some(one), wanted, atol=1e-7)


@pytest.mark.parametrize("row", ["self", "emit"])
def test_gradient_is_finite_without_an_earlier_key(row):
  """0/0 in the unused branch of a `where` would make it NaN."""
  one = dataclasses.replace(make(), prefix_mask=jnp.zeros((P, S), bool))

  def total(queries):
    changed = dataclasses.replace(one, queries=queries)
    made = models.attention_policy(changed, row=row)
    return jnp.square(models.attention_rows(made)).sum()

  assert np.isfinite(jax.jit(jax.grad(total))(one.queries)).all()
  assert not np.asarray(rows_of(one, row))[:, :, 0].any()


# Numbers of all maps of one token, and so how many tokens go at a time.
PER_TOKEN = P * G * A * H * (S + R)


@pytest.mark.parametrize("tokens", small_models.first(3, 1, 2, 4))
@pytest.mark.parametrize("row", small_models.first("emit", "self"))
def test_a_few_at_a_time_changes_nothing(monkeypatch, row, tokens):
  """Two policies and an array: value and gradient, the last part uneven."""
  old = models.attention_policy(make(20), row=row)
  weights = normal(30, P, G, R)

  def function(one):
    def of_rows(p, q, weight):
      return weight * jensen_shannon(p, q)

    one = models.attention_policy(one, row=row)
    return models.map_rows(of_rows, one, old, weights)

  whole = of(function)
  monkeypatch.setattr(rows, "_CHUNK_VALUES", 2 * PER_TOKEN * tokens)
  check_same(of(function), whole)


def test_shapes_of_results(monkeypatch):
  monkeypatch.setattr(rows, "_CHUNK_VALUES", 2 * PER_TOKEN)
  one = make()
  found = jax.jit(
    lambda one: models.map_rows(lambda x: {"a": x, "b": x.sum(-1)}, one)
  )(one)
  wanted = rows_of(one)
  np.testing.assert_allclose(found["a"], wanted, atol=1e-7)
  np.testing.assert_allclose(found["b"], wanted.sum(-1), atol=1e-6)
  # Rows that exist are taken as they are.
  found = jax.jit(lambda x: models.map_rows(lambda x: x.max(-1), x))(wanted)
  np.testing.assert_array_equal(found, wanted.max(-1))


def test_what_is_smaller_is_kept():
  """Rows of a short prompt; queries and keys of a long one."""
  one = models.attention_policy(make(), row="self")
  short = jax.jit(rows.smaller)(one)
  np.testing.assert_array_equal(short, rows_of(one))
  many = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=1), one)
  keys = jnp.zeros((P, 400, A, K, HEAD))
  mask = jnp.ones((P, 400), bool)
  long = dataclasses.replace(
    many, prefix_keys=keys, prefix_mask=mask, last_query=one.last_query
  )
  assert rows.smaller(long) is long


def temporary_bytes(length: int) -> int:
  """Of the gradient of a divergence, with prompts of `length`."""

  def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)

  one = Attention(
    queries=shape(1, 8, 64, 1, 16, 8),
    keys=shape(1, 8, 64, 1, 2, 8),
    prefix_keys=shape(1, length, 1, 2, 8),
    prefix_mask=shape(1, length, dtype=bool),
    last_query=shape(1, 1, 16, 8),
    row="self",
  )

  def loss(queries, one, old):
    one = dataclasses.replace(one, queries=queries)
    return models.map_rows(jensen_shannon, one, old).sum()

  gradient = jax.jit(jax.grad(loss))
  compiled = gradient.lower(one.queries, one, one).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_prompt():
  """All maps of 64 tokens over 8,192 keys would take 270 MB a policy."""
  small, large = temporary_bytes(2048), temporary_bytes(8192)
  assert large < 1.5 * small


def test_heads_apart_are_averaged_after_the_function():
  """A function that isn't linear, of each head's rows by softmax."""
  one = make()
  apart = dataclasses.replace(one, apart=True)

  def function(rows):
    return (rows**2).sum(-1)

  maps = jax.jit(maps_of)(one)
  wanted = sum((x**2).sum(-1) for x in maps).mean((2, 3)) / A
  found = jax.jit(lambda x: rows.map_rows(function, x))(apart)
  np.testing.assert_allclose(found, wanted, atol=2e-6)
  together = jax.jit(lambda x: rows.map_rows(function, x))(one)
  assert not np.allclose(found, together, atol=1e-3)
  assert rows.smaller(apart) is apart


def test_heads_apart_are_as_many():
  one = dataclasses.replace(make(), apart=True)
  other = dataclasses.replace(one, queries=one.queries[:, :, :, :1])
  with pytest.raises(UserError, match="config.attention.heads: expected"):
    rows.map_rows(jnp.subtract, one, other)
