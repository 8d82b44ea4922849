"""Tests of the reductions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.train import objective

# Four answers of 3, 2, 0 and 1 tokens; [P=4, G=1, R=3].
TERMS = jnp.array([[[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]], [[1, 1, 1]]])
MASK = jnp.array([[[1, 1, 1]], [[1, 1, 0]], [[0, 0, 0]], [[1, 0, 0]]], bool)
TERMS = jnp.where(MASK, TERMS, jnp.nan)  # padding may hold anything


def option(reduction, **options):
  return functools.partial(reduction, **options)


# Values worked by hand: tokens 1+2+3, 4+5 and 1, means 2, 4.5 and 1.
GOLDEN = [
  (reduce.token_mean, 2.666667),  # 16 / 6
  (reduce.token_sum, 16.0),
  (reduce.sequence_mean, 2.5),  # 7.5 / 3
  (option(reduce.sequence_mean, count_empty=True), 1.875),  # 7.5 / 4
  (reduce.sequence_sum, 5.333333),  # 16 / 3
  (option(reduce.sequence_sum, horizon=3), 1.777778),
  (option(reduce.sequence_sum, horizon=4), 1.333333),
  (option(reduce.sequence_sum, horizon=3, count_empty=True), 1.333333),
]

REDUCTIONS = [reduction for reduction, _ in GOLDEN]


def reduced(reduction, terms, mask, axis_name=None):
  weights = reduction(mask, axis_name=axis_name)
  return reduce.total(terms, weights, axis_name=axis_name)


gradient_of = jax.jit(jax.value_and_grad(reduced, argnums=1), static_argnums=0)


def test_answers_and_prompts_golden():
  """Three of four answers have a token, and of two pairs one has two."""
  pairs = MASK.reshape(2, 2, 3)
  of_answers = jnp.array([[1.0, 2], [np.nan, 6]])
  value, gradient = gradient_of(reduce.answer_mean, of_answers, pairs)
  assert value == 3
  np.testing.assert_allclose(gradient, np.array([[1, 1], [0, 1]]) / 3)
  pairs = jnp.concatenate([pairs, pairs[:1]])
  value, gradient = gradient_of(
    reduce.prompt_mean, jnp.array([5.0, np.nan, 7]), pairs
  )
  assert value == 6
  np.testing.assert_array_equal(gradient, [0.5, 0, 0.5])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_reductions_by_rank(rank):
  for name in reduce.BY_RANK[rank]:
    more = [jnp.ones(MASK.shape)] if name.startswith("weighted") else []
    if name == "segment_mean":
      more = [jnp.zeros(MASK.shape, jnp.int32)]
    found = getattr(reduce, name)(MASK, *more)
    assert found.shape == MASK.shape[:rank]


@pytest.mark.parametrize(("reduction", "expected"), GOLDEN)
def test_golden(reduction, expected):
  value, gradient = gradient_of(reduction, TERMS, MASK)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  weights = reduction(MASK)
  np.testing.assert_allclose(gradient, weights, rtol=1e-6)
  assert weights.dtype == jnp.float32


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_token_gives_zero(reduction):
  value, gradient = gradient_of(
    reduction, jnp.full_like(TERMS, np.nan), jnp.zeros_like(MASK)
  )
  assert value == 0
  assert (gradient == 0).all()


# Weights by hand: 2, 1, 0; 0.5, 0; and 0.25; those of padding don't count.
WEIGHTS = jnp.array([[[2, 1, 0]], [[0.5, 0, 9]], [[9, 9, 9]], [[0.25, 9, 9]]])
WEIGHTED = [
  (reduce.weighted_token_mean, 6.25 / 3.75),  # 2 x 1 + 2 + 0.5 x 4 + 0.25
  (reduce.weighted_sequence_mean, 19 / 9),  # (4 / 3 + 4 + 1) / 3
]


@pytest.mark.parametrize(("reduction", "expected"), WEIGHTED)
def test_weighted_golden(reduction, expected):
  """And the same on two devices, where there are fewer answers."""
  weigh = jax.jit(reduction)
  value = jax.jit(reduce.total)(TERMS, weigh(MASK, WEIGHTS))
  np.testing.assert_allclose(value, expected, rtol=1e-6)

  def one(terms, mask, weights):
    weights = reduction(mask, weights, "data")
    return reduce.total(terms, weights, axis_name="data")

  halves = (x.reshape(2, 2, 1, 3) for x in (TERMS, MASK, WEIGHTS))
  found = jax.jit(jax.vmap(one, axis_name="data"))(*halves)
  np.testing.assert_allclose(found, 2 * [expected], rtol=1e-6)
  ones = weigh(MASK, np.ones(MASK.shape, np.float32))
  plain = getattr(reduce, reduction.__name__.removeprefix("weighted_"))
  np.testing.assert_allclose(ones, jax.jit(plain)(MASK), rtol=1e-6)
  # Nothing to learn from, and an answer without weight.
  none = weigh(MASK, np.zeros(MASK.shape, np.float32))
  assert not np.asarray(none).any()
  without = WEIGHTS.at[0].set(0.0)
  rest = reduction(MASK[1:], WEIGHTS[1:])
  np.testing.assert_array_equal(reduction(MASK, without)[1:], rest)


HALVES = [x.reshape(2, 2, 1, 3) for x in (TERMS, MASK)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_devices_equal_one(reduction):
  """Sums of numerator and denominator, where lengths differ by device.

  On the axis of `vmap`; parallel_test has `shard_map` and `pmap`.
  """
  one = functools.partial(reduced, reduction, axis_name="data")
  found = jax.jit(jax.vmap(one, axis_name="data"))(*HALVES)
  expected, _ = gradient_of(reduction, TERMS, MASK)
  np.testing.assert_allclose(found, 2 * [expected], rtol=1e-6)


def test_largest_is_that_of_all_devices():
  largest = functools.partial(reduce.largest, axis_name="data")
  terms, mask = HALVES
  found = jax.vmap(largest, axis_name="data")(terms, mask.astype(jnp.float32))
  np.testing.assert_array_equal(found, [5, 5])


@pytest.mark.parametrize("horizon", [0, -3])
def test_horizon_must_be_positive(horizon):
  with pytest.raises(UserError, match=f"must be positive, got {horizon}"):
    reduce.sequence_sum(MASK, horizon=horizon)


# How a config names them.


def build(*reductions):
  kl = {"name": "reference_kl", "weight": 1.0}
  specs = {f"kl{i}": kl | {"reduce": x} for i, x in enumerate(reductions)}
  provided = ("logprobs", "logprobs_ref", "mask")
  return objective.bind_terms(
    objective.resolve_terms(specs), provided=provided, remedies={}
  )


def test_specs():
  """A name or a dict; equal ones share their weights."""
  whole = {"name": "sequence_sum", "horizon": 3, "count_empty": True}
  other = {"name": "sequence_sum", "horizon": 4}
  specs = "sequence_sum", {"name": "sequence_sum"}, whole, dict(whole), other
  terms = build(*specs)
  weights = objective.reduction_coefficients(terms, MASK, {})
  assert len(weights) == 4
  np.testing.assert_array_equal(weights["token_mean"], reduce.token_mean(MASK))
  expected = [16 / 3, 16 / 3, 4 / 3, 4 / 3, 4 / 3]
  for term, value in zip(terms, expected, strict=True):
    found = reduce.total(TERMS, weights[term.reduction])
    np.testing.assert_allclose(found, value, rtol=1e-6)
  assert terms == build(*specs)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("mean", "kl0.reduce: mmrl.losses.reduce has no 'mean'; .*token_sum"),
    ("total", "kl0.reduce: mmrl.losses.reduce has no 'total'"),
    ({"horizon": 3}, "kl0.reduce: mmrl.losses.reduce has no None"),
    (
      {"name": "token_mean", "horizon": 3},
      "kl0.reduce: token_mean has no option horizon; valid options: none",
    ),
    (
      {"name": "sequence_sum", "axis_name": "data"},
      "kl0.reduce: sequence_sum has no option axis_name; valid options: hor",
    ),
    (3, "kl0.reduce: expected one of .*sequence_sum.* found 3"),
    (None, "kl0.reduce: expected one of .* found None"),
  ],
)
def test_bad_specs_are_refused(spec, message):
  with pytest.raises(UserError, match=f"config.losses.{message}") as error:
    build(spec)
  assert "\n" not in str(error.value)
