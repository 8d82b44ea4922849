"""Answers in a line, against NumPy; and attention of some of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.models.kernels import attention, working

P, G = 3, 4
DONE = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0]], bool)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.full
def test_the_unfinished_come_first_and_go_back():
  chosen = working.choose(jnp.asarray(DONE), 6)
  assert chosen.index[0, :4].tolist() == [1, 8, 9, 11]
  x = np.arange(P * G * 2).reshape(P, G, 2)
  taken = working.take(jnp.asarray(x), chosen)
  wanted = x.reshape(-1, 2)[np.asarray(chosen.index[0])]
  np.testing.assert_array_equal(taken[0], wanted)
  new = working.put(jnp.asarray(x), chosen, -taken - 1)
  wanted = x.reshape(-1, 2).copy()
  wanted[np.asarray(chosen.index[0])] *= -1
  wanted[np.asarray(chosen.index[0])] -= 1
  np.testing.assert_array_equal(new.reshape(-1, 2), wanted)
  there = working.spread(taken, chosen)
  np.testing.assert_array_equal(there[~DONE], x[~DONE])


@pytest.mark.full
def test_layers_may_lead():
  chosen = working.choose(jnp.asarray(DONE), 4)
  x = normal(0, 2, P, G, 3)
  taken = working.take(x, chosen, axis=1)
  for layer in range(2):
    np.testing.assert_array_equal(taken[layer], working.take(x[layer], chosen))
  new = working.put(x, chosen, taken + 1, axis=1)
  np.testing.assert_allclose((new - x).sum((0, 3)), 6 * ~DONE, atol=1e-5)


def test_some_answers_attend_as_in_the_batch():
  """Each to its own prompt, of which one has no answer left."""
  heads, kv_heads, size, length, own = 4, 2, 8, 5, 6
  queries = normal(1, P, G, 1, heads, size)
  before = [normal(n, P, kv_heads, length, size) for n in (2, 3)]
  mask = jnp.arange(length)[None] < jnp.array([[5], [3], [4]])
  keys, values = (normal(n, P, G, kv_heads, own, size) for n in (4, 5))
  seen = jnp.arange(own)[None] < 4
  attend = jax.jit(attention.attend_prefix)
  wanted = attend(queries, *before, mask, keys, values, seen)
  chosen = working.choose(jnp.asarray(DONE), 5)
  queries, keys, values = (
    working.take(x, chosen) for x in (queries, keys, values)
  )
  found = attend(queries, *before, mask, keys, values, seen, chosen)
  # Sums of other shapes may be in another order.
  np.testing.assert_allclose(found, working.take(wanted, chosen), atol=1e-6)
