"""Draws of one token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl.rollouts import sampling

PROBABILITIES = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))
DRAWS = 20_000


sample = small_models.compiled(sampling.sample)


def uniform(seed: int, count: int):
  return jax.random.uniform(jax.random.key(seed), (count, 2))


def draw(**options):
  """How often each token is drawn."""
  logits = jnp.broadcast_to(LOGITS, (DRAWS, 5))
  tokens = sample(uniform(0, DRAWS), logits, **options)
  assert tokens.dtype == jnp.int32
  return np.bincount(tokens, minlength=5)


def chi_square(counts, probabilities):
  kept = probabilities > 0
  assert counts[~kept].sum() == 0
  wanted = DRAWS * probabilities[kept] / probabilities.sum()
  return (np.square(counts[kept] - wanted) / wanted).sum()


# 18.5 is the 0.1 % point of a chi-square with four degrees of freedom.
@pytest.mark.parametrize(
  "options, kept",
  [
    ({}, [1, 1, 1, 1, 1]),
    ({"top_k": 2}, [0, 1, 0, 1, 0]),
    ({"top_k": 5}, [1, 1, 1, 1, 1]),
    ({"top_k": 9}, [1, 1, 1, 1, 1]),
    ({"top_p": 0.75}, [0, 1, 1, 1, 0]),
    ({"top_k": 3, "top_p": 0.6}, [0, 1, 0, 1, 0]),
  ],
)
def test_frequencies_are_probabilities(options, kept):
  counts = draw(**options)
  assert chi_square(counts, PROBABILITIES * np.array(kept)) < 18.5


@pytest.mark.parametrize(
  "p, kept",
  [
    # Sorted: .4, .3, .15, .1, .05; sums .4, .7, .85, .95, 1.
    (0.01, {1}),
    (0.39, {1}),
    (0.41, {1, 3}),
    (0.69, {1, 3}),
    (0.71, {1, 2, 3}),
    (0.86, {1, 2, 3, 4}),
    (0.96, {0, 1, 2, 3, 4}),
  ],
)
def test_top_p_keeps_the_smallest_set(p, kept):
  filtered = np.asarray(sampling.keep_top_p(LOGITS, p))
  assert set(np.nonzero(np.isfinite(filtered))[0].tolist()) == kept
  chosen = sorted(kept)
  np.testing.assert_array_equal(filtered[chosen], np.asarray(LOGITS)[chosen])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_top_k_keeps_k_of_equal_tokens(k):
  """One of 0.4, three of 0.18: the first of them go with it."""
  logits = jnp.log(jnp.array([0.18, 0.06, 0.18, 0.4, 0.18]))
  kept = np.isfinite(sampling.keep_top_k(logits, k))
  np.testing.assert_array_equal(kept, np.array([1, 4, 2, 0, 3]) < k)


def test_each_row_is_filtered_by_its_own():
  logits = jnp.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
  wanted = [[3.0, 2.0, -np.inf], [-np.inf, 2.0, 3.0]]
  np.testing.assert_array_equal(sampling.keep_top_k(logits, 2), wanted)
  np.testing.assert_array_equal(sampling.keep_top_p(logits, 0.9), wanted)


def test_top_k_of_one_is_greedy():
  logits = jnp.asarray(np.random.RandomState(0).randn(50, 20), jnp.float32)
  one = sample(uniform(0, 50), logits, top_k=1)
  greedy = sample(uniform(1, 50), logits, greedy=True)
  np.testing.assert_array_equal(one, greedy)
  np.testing.assert_array_equal(greedy, jnp.argmax(logits, -1))


@pytest.mark.full
def test_draws_from_a_wide_vocabulary():
  """1,000 tokens in eight blocks, the last one in part; one in three can't be
  drawn. Blocks and tokens each come as often as they must."""
  logits = np.random.RandomState(0).randn(1000) * 2
  logits[::3] = -np.inf
  probabilities = np.exp(logits) / np.exp(logits).sum()
  count = 200_000
  rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (20_000, 1000))
  draw = jax.jit(sampling.categorical)
  tokens = np.concatenate(
    [draw(uniform(seed, 20_000), rows) for seed in range(10)]
  )
  counts = np.bincount(tokens, minlength=1000)
  assert len(counts) == 1000
  assert counts[::3].sum() == 0
  deviation = np.sqrt(count * probabilities * (1 - probabilities))
  error = np.abs(counts - count * probabilities)
  assert (error <= 5 * deviation + 1).all()


@pytest.mark.full
@pytest.mark.parametrize("place", [0, 127, 128, 299])
def test_the_only_possible_token_is_drawn(place):
  logits = jnp.full((500, 300), -jnp.inf).at[:, place].set(-7.0)
  tokens = sample(uniform(0, 500), logits)
  np.testing.assert_array_equal(tokens, place)
