"""Worked numbers of how RL has changed a model, and of the mix of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.strategies import direction

RL = jnp.log(jnp.array([0.6, 0.3, 0.1]))
BASE = jnp.log(jnp.array([0.3, 0.5, 0.2]))
# ln 2, ln 0.6, ln 0.5.
CHANGES = [0.693147, -0.510826, -0.693147]
HALF = jnp.float32(0.5)


def mixed(rl, base, g, temperature=1.0):
  logits = direction.extrapolated_logits(rl, base, g)
  return jax.nn.softmax(logits / temperature)


# The mix.


@pytest.mark.parametrize(
  ("g", "temperature", "wanted"),
  [
    (0.0, 1.0, [0.6, 0.3, 0.1]),
    # .6^1.1 / .3^.1, ..., over their sum.
    (0.1, 1.0, [0.629574, 0.279080, 0.091346]),
    # .36 / .3 = 1.2, .09 / .5 = 0.18, .01 / .2 = 0.05, over 1.43.
    (1.0, 1.0, [0.839161, 0.125874, 0.034965]),
    (0.1, 0.5, [0.821320, 0.161390, 0.017290]),
  ],
)
def test_mix_golden(g, temperature, wanted):
  np.testing.assert_allclose(mixed(RL, BASE, g, temperature), wanted, atol=1e-6)


@pytest.mark.parametrize("g", [0.0, 0.05, 3.0])
def test_equal_models_mix_to_themselves(g):
  """As RL alone does without a step, bit for bit."""
  for base in (RL, BASE) if g == 0 else (RL,):
    found = direction.extrapolated_logits(RL, base, g)
    np.testing.assert_array_equal(found, RL)


@pytest.mark.parametrize("g", [0.0, 0.1, 2.0])
def test_what_either_model_never_says_is_never_drawn(g):
  """Not +inf where base has none, nor NaN where neither has."""
  rl = jnp.log(jnp.array([0.7, 0.3, 0.0, 0.0]))
  base = jnp.log(jnp.array([0.5, 0.0, 0.4, 0.1]))
  np.testing.assert_array_equal(mixed(rl, base, g), [1, 0, 0, 0])
  both = jnp.log(jnp.array([0.5, 0.0, 0.5, 0.0]))
  np.testing.assert_array_equal(mixed(rl, both, g), [1, 0, 0, 0])


# The gates.


def test_changes_by_hand():
  mask = jnp.ones((1, 1, 3), bool)
  found = direction.delta_logp(RL[None, None], BASE[None, None], mask)
  np.testing.assert_allclose(found[0, 0], CHANGES, atol=1e-6)
  gates = direction.direction_gate(RL, BASE, -0.3)
  np.testing.assert_array_equal(gates, [False, True, True])


def test_changes_of_impossible_tokens():
  infinite = jnp.array([-jnp.inf, -jnp.inf, 0.0])
  other = jnp.array([-jnp.inf, 0.0, -jnp.inf])
  mask = jnp.ones((1, 1, 3), bool)
  found = direction.delta_logp(infinite[None, None], other[None, None], mask)
  np.testing.assert_array_equal(found[0, 0], [0, -np.inf, np.inf])
  gates = direction.direction_gate(infinite, other, -0.3)
  np.testing.assert_array_equal(gates, [False, True, False])


@pytest.mark.parametrize(
  ("kind", "rl", "base", "value"),
  [
    ("entropy", RL, BASE, 1.029653),
    ("entropy", BASE, RL, 0.897946),
    ("kl", RL, BASE, 0.193326),
    ("kl", BASE, RL, 0.186098),
    ("js", RL, BASE, 0.189712),
    ("js", BASE, RL, 0.189712),
  ],
)
def test_gates_golden(kind, rl, base, value):
  """Open at the value, closed a little above it."""

  def gate(threshold):
    token = jnp.int32(0)
    return direction.replacement_gate(kind, rl, base, token, threshold, HALF)

  assert gate(value - 2e-6)
  assert not gate(value + 2e-6)


def test_gate_of_direction_reads_the_token():
  tokens = jnp.arange(3)
  rows = (jnp.broadcast_to(x, (3, 3)) for x in (RL, BASE))
  found = direction.replacement_gate("logp", *rows, tokens, -0.6, jnp.zeros(3))
  np.testing.assert_array_equal(found, [False, False, True])


def test_random_gate_opens_for_its_share():
  numbers = jnp.array([0.0, 0.19, 0.2, 0.99])
  rows = (jnp.broadcast_to(x, (4, 3)) for x in (RL, BASE))
  found = direction.replacement_gate(
    "random", *rows, jnp.zeros(4, jnp.int32), 0.2, numbers
  )
  np.testing.assert_array_equal(found, [True, True, False, False])


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_divergence_of_what_one_model_never_says(kind):
  """Infinite where pi_RL > 0 = pi_base; no NaN where both are 0."""
  gate = functools.partial(direction.replacement_gate, kind)
  here = jnp.log(jnp.array([0.5, 0.5, 0.0]))
  there = jnp.log(jnp.array([1.0, 0.0, 0.0]))
  assert gate(here, there, jnp.int32(0), 1e6, HALF)
  assert gate(there, there, jnp.int32(0), 0.0, HALF)
  assert not gate(there, there, jnp.int32(0), 1e-6, HALF)


# Statistics.


@pytest.mark.parametrize("garbage", [9.0, np.nan, -np.inf])
def test_statistics_by_hand(garbage):
  """Sorted: -.6, -.3, .05, .1, 1.5; the 5 % quantile is -.6 + .2 * .3."""
  change = jnp.array([[[0.1, -0.3, 0.05], [1.5, -0.6, garbage]]])
  mask = jnp.array([[[True] * 3, [True, True, False]]])
  stats = jax.jit(direction.direction_stats)
  found = stats(change - 1.0, jnp.full_like(change, -1.0), mask)
  np.testing.assert_allclose(found["quantiles"], [-0.54, 0.05, 1.22], atol=1e-6)
  np.testing.assert_allclose(found["mean"], 0.15, atol=1e-6)
  np.testing.assert_allclose(found["share_beyond"], 0.6)
