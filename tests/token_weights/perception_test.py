"""Tests of ToR's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import compiled

from mmrl.errors import UserError
from mmrl.token_weights import perception

reasoning = compiled(perception.perception_reasoning)
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


def weights_of(
  entropies, sensitivity, mask=None, pictured=None, key=KEY, **options
):
  """Jitted; the picture raises half of the log-probabilities."""
  entropies, sensitivity = np.float32(entropies), np.float32(sensitivity)
  mask = np.ones(entropies.shape) if mask is None else np.asarray(mask)
  pictured = np.ones(len(mask), bool) if pictured is None else pictured
  old = np.full(mask.shape, -1.0, np.float32)
  sign = np.float32((-1.0) ** np.arange(mask.shape[-1]))
  return reasoning(
    entropies,
    old,
    old - sign * sensitivity,
    np.asarray(pictured),
    mask.astype(bool),
    key,
    **options,
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


def test_sensitivity_is_the_absolute_difference():
  """.3, .8, 0 and 2: the upper half is the second and the fourth."""
  weights = reasoning(
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


@pytest.mark.parametrize(
  ("pictured", "second"),
  [
    ([True, False], 0.5),  # of a pool of five tokens two are taken
    ([False, False], 0),
  ],
)
def test_answers_without_a_picture_are_not_in_the_pool(pictured, second):
  weights = weights_of(**PADDED, pictured=pictured)
  expected = [[[0, 1, 0, 1, second]], [[1, 0, 0, 0, 0]]]
  np.testing.assert_array_equal(weights, expected)


def test_selected_are_those_of_positive_weight():
  """Three of seven where perception weighs nothing."""
  weights = weights_of(**PADDED, perception_weight=0.0, denominator="selected")
  expected = np.array([[[0, 1, 0, 1, 0]], [[1, 0, 0, 0, 0]]]) * 7 / 3
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


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


def test_the_two_sets_have_different_keys():
  """With all scores equal, not the same tokens twice."""
  zeros = np.zeros((4, 5, 10))
  weights = weights_of(zeros, zeros)
  assert (weights == 1).sum() == 60
  assert 20 < (weights == 0.5).sum() < 60


@pytest.mark.parametrize(
  "fraction, n, k",
  [
    # The product is a whole number at these, and not in float32.
    *((0.3, n, 3 * n // 10) for n in (50, 90, 100, 170)),
    *((0.3, n, k) for n, k in ((0, 0), (1, 1), (3, 1), (7, 3))),
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


@pytest.mark.parametrize(
  ("options", "message"),
  [
    *(
      ({name: fraction}, rf"{name} .* \(0, 1\], got {fraction}")
      for name in ("reasoning_fraction", "perception_fraction")
      for fraction in (0.0, -0.1, 1.5, 30.0)
    ),
    ({"denominator": "sum"}, "'all' or 'selected', got 'sum'"),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    weights_of(**PADDED, **options)


@pytest.mark.parametrize("garbage", [9.0, np.nan, np.inf])
def test_tokens_off_the_mask_are_not_chosen(garbage):
  mask = jnp.array([True, False, True, False])
  scores = jnp.where(mask, jnp.array([1.0, 0, 2, 0]), garbage)
  assert places(top_fraction(scores, mask, 0.5, KEY)) == [2]
  assert places(top_fraction(scores, mask, 1.0, KEY)) == [0, 2]


def test_all_tokens_may_be_chosen():
  weights = weights_of(
    **PADDED, reasoning_fraction=1.0, perception_fraction=1.0
  )
  np.testing.assert_array_equal(weights, np.array(PADDED["mask"]))
