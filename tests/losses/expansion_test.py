"""RAL's term near theta_old, as docs/attention_term.md derives it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.losses.attention import jensen_shannon

KEYS = 12
RNG = np.random.default_rng(0)
LOGITS, DRIFT = RNG.normal(size=(2, 3, KEYS))  # of three heads


def softmax(e):
  x = np.exp(e - e.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def divergence(p, q):
  m = (p + q) / 2
  return 0.5 * (p * np.log(p / m) + q * np.log(q / m)).sum()


def fisher(p):
  return np.diag(p) - np.outer(p, p)


def gradient(p, q):
  """With respect to the logits of p."""
  g = 0.5 * np.log(2 * p / (p + q))
  return p * (g - p @ g)


def errors(size):
  """Relative errors of value and gradient, in float64, at a drift."""
  e, d = LOGITS[0], size * DRIFT[0]
  q, p = softmax(e), softmax(e + d)
  value = d @ fisher(q) @ d / 8
  slope = fisher(q) @ d / 4
  found = gradient(p, q)
  return np.array(
    [
      divergence(p, q) / value - 1,
      np.linalg.norm(found - slope) / np.linalg.norm(slope),
    ]
  )


def test_the_expansion_is_of_the_order_that_it_says():
  """What is left out is smaller by the drift: halved, it is half as much."""
  for size in (0.1, 0.01, 1e-3):
    whole, half = errors(size), errors(size / 2)
    assert (np.abs(whole) < size).all()
    np.testing.assert_allclose(half / whole, 0.5, atol=0.2 * size + 0.01)


@pytest.mark.parametrize("size", [0.1, 0.01])
def test_the_library_follows_it(size):
  """In float32, whose rounding is 1e-7 / size of the difference of rows."""
  e, d = LOGITS[0], size * DRIFT[0]
  q = jnp.asarray(softmax(e), jnp.float32)

  def loss(logits):
    return jensen_shannon(jax.nn.softmax(logits), q)

  value, slope = jax.jit(jax.value_and_grad(loss))(np.float32(e + d))
  rounding = 2e-6 / size
  np.testing.assert_allclose(
    value, d @ fisher(softmax(e)) @ d / 8, rtol=size + rounding
  )
  wanted = fisher(softmax(e)) @ d / 4
  difference = np.linalg.norm(slope - wanted) / np.linalg.norm(wanted)
  assert difference < size + rounding


def test_a_mean_of_heads():
  """p - q = mean_h F_h d_h, gradients are F_h ((p - q) / q) / 4H."""
  size = 1e-4
  rows, moved = softmax(LOGITS), softmax(LOGITS + size * DRIFT)
  q, p = rows.mean(0), moved.mean(0)
  step = np.mean([fisher(a) @ d for a, d in zip(rows, DRIFT, strict=True)], 0)
  step *= size
  np.testing.assert_allclose(
    divergence(p, q), (step**2 / q).sum() / 8, rtol=10 * size
  )
  for a, b in zip(rows, moved, strict=True):
    slope = fisher(b) @ (0.5 * np.log(2 * p / (p + q))) / len(rows)
    wanted = fisher(a) @ (step / q) / (4 * len(rows))
    error = np.linalg.norm(slope - wanted) / np.linalg.norm(wanted)
    assert error < 10 * size


def test_the_hessian_that_the_script_takes_is_a_quarter_of_fishers():
  """By a forward pass over the gradient, at equal rows and a key of none."""
  q = softmax(LOGITS[0])
  rows = jnp.asarray(np.append(q, 0.0), jnp.float32)
  seen = np.arange(KEYS + 1) < KEYS

  def loss(logits):
    p = jax.nn.softmax(jnp.where(seen, logits, -1e30))
    return jensen_shannon(p, rows)

  e, d = (
    jnp.asarray(np.append(x, 0.0), jnp.float32) for x in (LOGITS[0], DRIFT[0])
  )
  bend = jax.jit(lambda e, d: jax.jvp(jax.grad(loss), (e,), (d,)))
  slope, bent = bend(e, d)
  np.testing.assert_allclose(slope, 0.0, atol=1e-7)
  np.testing.assert_allclose(
    bent[:-1], fisher(q) @ DRIFT[0] / 4, rtol=1e-4, atol=1e-7
  )
