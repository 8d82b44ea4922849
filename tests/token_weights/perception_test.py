"""Tests of ToR's weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.token_weights import perception

top_fraction = jax.jit(perception.top_fraction, static_argnames="fraction")
KEY = jax.random.key(0)
# Ten tokens, 30 % of which are three.
ENTROPIES = [0, 1.2, 0.3, 2.0, 0.1, 0, 0.9, 0.05, 0.7, 1.5]
SENSITIVITY = [0.1, 0.9, 0, 0.2, 0.8, 0.05, 0.3, 0.6, 0.01, 0.02]
# Two rows, of five and two tokens, with garbage behind; three of seven.
PADDED = {
  "entropies": [[[0, 1.2, 0.3, 2.0, 0.1]], [[0.9, 0.05, 9, 9, 9]]],
  "sensitivity": [[[0.1, 0.9, 0, 0.2, 0.8]], [[0.3, 0.6, 9, 9, 9]]],
  "mask": [[[1, 1, 1, 1, 1]], [[1, 1, 0, 0, 0]]],
}
LOSSES = jnp.array([[[-1, 0.5, 2, -0.4, 1]], [[0.3, -0.8, 5, 5, 5]]])


def weights_of(
  entropies, sensitivity, mask=None, pictured=None, key=KEY, **options
):
  """Jitted; the picture raises half of the log-probabilities."""
  entropies = jnp.asarray(entropies, jnp.float32)
  sensitivity = jnp.asarray(sensitivity, jnp.float32)
  mask = jnp.ones(entropies.shape) if mask is None else jnp.asarray(mask)
  if pictured is None:
    pictured = jnp.ones(len(mask), bool)
  old = jnp.full(mask.shape, -1.0)
  sign = (-1.0) ** jnp.arange(mask.shape[-1])
  weigh = functools.partial(perception.perception_reasoning, **options)
  return jax.jit(weigh)(
    entropies,
    old,
    old - sign[None, None] * sensitivity,
    jnp.asarray(pictured),
    mask.astype(bool),
    key,
  )


def places(chosen) -> list[int]:
  return np.flatnonzero(chosen).tolist()


def test_golden():
  ones = jnp.ones(10, bool)
  for scores, expected in ((ENTROPIES, [1, 3, 9]), (SENSITIVITY, [1, 4, 7])):
    assert places(top_fraction(jnp.array(scores), ones, 0.3, KEY)) == expected
  weights = weights_of([[ENTROPIES]], [[SENSITIVITY]])
  expected = [[[0, 1, 0, 1, 0.5, 0, 0, 0.5, 0, 1]]]
  np.testing.assert_array_equal(weights, expected)
  assert weights.mean() == pytest.approx(0.4)


def test_sensitivity_is_the_absolute_difference():
  """.3, .8, 0 and 2: the upper half is the second and the fourth."""
  weights = perception.perception_reasoning(
    jnp.array([[[9.0, 0, 0, 0]]]),
    jnp.array([[[-0.1, -2, -0.5, -1]]]),
    jnp.array([[[-0.4, -1.2, -0.5, -3]]]),
    jnp.ones(1, bool),
    jnp.ones((1, 1, 4), bool),
    KEY,
    reasoning_fraction=0.25,
    perception_fraction=0.5,
  )
  np.testing.assert_array_equal(weights, [[[1, 0.5, 0, 0.5]]])


@pytest.mark.parametrize("garbage", [9.0, np.nan, np.inf, -np.inf])
def test_padding_may_hold_anything(garbage):
  mask = jnp.array(PADDED["mask"], bool)
  spoiled = {
    name: jnp.where(mask, jnp.asarray(PADDED[name], jnp.float32), garbage)
    for name in ("entropies", "sensitivity")
  }
  weights = weights_of(**spoiled, mask=mask)
  expected = [[[0, 1, 0, 1, 0.5]], [[1, 0.5, 0, 0, 0]]]
  np.testing.assert_array_equal(weights, expected)
  assert weights.sum() / mask.sum() == pytest.approx(0.571429, abs=1e-6)


def test_a_row_without_picture_is_not_in_the_pool_of_perception():
  """Five tokens are: two of them are taken."""
  weights = weights_of(**PADDED, pictured=[True, False])
  expected = [[[0, 1, 0, 1, 0.5]], [[1, 0, 0, 0, 0]]]
  np.testing.assert_array_equal(weights, expected)


def test_without_pictures_only_reasoning_is_left():
  weights = weights_of(**PADDED, pictured=[False, False])
  expected = [[[0, 1, 0, 1, 0]], [[1, 0, 0, 0, 0]]]
  np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize(
  "denominator, expected", [("all", 0.071429), ("selected", 0.1)]
)
def test_denominators(denominator, expected):
  mask = jnp.array(PADDED["mask"], bool)
  weights = weights_of(**PADDED, denominator=denominator)
  mean = reduce.token_mean(mask)
  found = reduce.total(LOSSES * weights, mean)
  assert found == pytest.approx(expected, abs=1e-6)
  assert reduce.total(LOSSES, mean) == pytest.approx(0.228571, abs=1e-6)


def test_selected_are_those_of_positive_weight():
  """Three of seven where perception weighs nothing."""
  weights = weights_of(**PADDED, perception_weight=0.0, denominator="selected")
  expected = np.array([[[0, 1, 0, 1, 0]], [[1, 0, 0, 0, 0]]]) * 7 / 3
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("denominator", ["all", "selected"])
def test_all_tokens_alike_is_no_weight_at_all(denominator):
  weights = weights_of(
    **PADDED,
    reasoning_fraction=1.0,
    perception_fraction=1.0,
    perception_weight=1.0,
    denominator=denominator,
  )
  np.testing.assert_array_equal(weights, PADDED["mask"])


@pytest.mark.parametrize("denominator", ["all", "selected"])
def test_no_token_has_no_weight(denominator):
  empty = PADDED | {"mask": np.zeros((2, 1, 5))}
  assert (weights_of(**empty, denominator=denominator) == 0).all()


def test_ties_are_broken_by_the_key():
  """The one that stands out is always taken, the zeros in turn."""
  scores, ones = jnp.zeros(10).at[9].set(1.0), jnp.ones(10, bool)
  taken = np.zeros(10, int)
  for seed in range(300):
    chosen = np.asarray(top_fraction(scores, ones, 0.3, jax.random.key(seed)))
    assert chosen.sum() == 3
    taken += chosen
  assert taken[9] == 300
  # Each of nine is taken 2 / 9 of the time, 66.7 +- 7.2.
  assert (np.abs(taken[:9] - 66.7) < 4 * 7.2).all()


def test_the_same_key_chooses_the_same_and_padding_is_never_chosen():
  mask = jnp.arange(20) % 2 == 0
  for seed in range(20):
    key = jax.random.key(seed)
    one, two = (top_fraction(x, mask, 0.5, key) for x in (jnp.zeros(20),) * 2)
    np.testing.assert_array_equal(one, two)
    assert one.sum() == 5 and not (one & ~mask).any()


def test_the_two_sets_have_different_keys():
  """With all scores equal, not the same tokens twice."""
  zeros = np.zeros((4, 5, 10))
  weights = weights_of(zeros, zeros)
  assert (weights == 1).sum() == 60
  assert 20 < (weights == 0.5).sum() < 60


# The product is a whole number at 50, 90, 100 and 170, and not in float32.
@pytest.mark.parametrize(
  "n, k",
  [(0, 0), (1, 1), (3, 1), (7, 3), (50, 15), (90, 27), (100, 30), (170, 51)],
)
def test_count_is_a_whole_number(n, k):
  mask = jnp.arange(200) < n
  scores = jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32)
  chosen = top_fraction(scores, mask, 0.3, KEY)
  assert chosen.sum() == k
  assert places(chosen) == sorted(np.argsort(-scores[:n])[:k].tolist())


@pytest.mark.parametrize(
  "fraction, n, k",
  [
    (0.3, 2_000_000_000, 600_000_000),
    (0.3, 2_000_000_001, 600_000_001),
    (0.9999, 2_000_000_000, 1_999_800_000),
    (1 / 3, 3, 1),
    (1 / 3, 4, 2),
    (1.0, 7, 7),
    (1e-9, 7, 1),
  ],
)
def test_count_of_any_batch_and_fraction(fraction, n, k):
  assert perception._ceil_of(fraction, jnp.int32(n)) == k


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, 30.0])
@pytest.mark.parametrize("name", ["reasoning_fraction", "perception_fraction"])
def test_fraction_outside_its_range_is_refused(name, fraction):
  with pytest.raises(UserError, match=rf"{name} .* \(0, 1\], got {fraction}"):
    weights_of(**PADDED, **{name: fraction})


def test_other_denominator_is_refused():
  with pytest.raises(UserError, match="'all' or 'selected', got 'sum'"):
    weights_of(**PADDED, denominator="sum")
