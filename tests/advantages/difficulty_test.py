"""Tests of the deviations shared by prompts of similar difficulty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.advantages import difficulty, group

advantages_of = jax.jit(
  difficulty.difficulty_aware,
  static_argnames=("bins", "weights", "length_normalize", "epsilon", "ddof"),
)
quantile_groups = jax.jit(difficulty.quantile_groups, static_argnames="bins")
quartile_groups = jax.jit(difficulty.quartile_groups)
quantiles = jax.jit(difficulty.quantiles, static_argnames="parts")
sequence_confidence = jax.jit(
  difficulty.sequence_confidence, static_argnames="length_normalize"
)
shared_std_advantages = jax.jit(
  difficulty.shared_std_advantages, static_argnames=("bins", "epsilon", "ddof")
)
group_normalised = jax.jit(
  group.group_normalised, static_argnames=("scale", "ddof")
)
REWARDS = jnp.array(
  [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], jnp.float32
)
ENTROPY = jnp.array([0.2, 0.9, 0.6, 1.4], jnp.float32)
CONFIDENCE = jnp.array([-3, -8, -1, -5], jnp.float32)
# Two tokens per answer, of which the second is padding.
MASK = jnp.broadcast_to(jnp.array([True, False]), (4, 4, 2))
LOGPROBS = jnp.broadcast_to(CONFIDENCE[:, None, None], (4, 4, 2))
ALL = jnp.ones(4, bool)


def padded(values):
  """Eight values, and which of them count."""
  found = np.full(8, np.nan, np.float32)
  found[: len(values)] = values
  return jnp.asarray(found), jnp.asarray(np.arange(8) < len(values))


@pytest.mark.parametrize(
  ("entropies", "expected"),
  [
    ([0.4, 1, 0.7, 0.1, 0.9], [0, 2, 1, 0, 2]),  # quartiles 0.4 and 0.9
    ([0.4, 1, 0.7, 0.1, 0.9, 0.2], [1, 2, 1, 0, 2, 0]),  # 0.25, 0.85
    (4 * [0.5], 4 * [0]),
    ([0.7], [0]),
    ([0.2, 0.9, 0.6, 1.4], [0, 1, 1, 2]),
    # Without a picture: in the middle, and in no quartile.
    ([0.4, np.nan, 1, 0.7, np.nan, 0.1, 0.9], [0, 1, 2, 1, 1, 0, 2]),
    (2 * [np.nan], [1, 1]),
  ],
)
def test_quartile_groups_golden(entropies, expected):
  found = quartile_groups(*padded(entropies))
  np.testing.assert_array_equal(found[: len(expected)], expected)


@pytest.mark.parametrize(
  ("values", "bins", "expected"),
  [
    # edges -4.333333, -2.666667
    ([-5, -1, -3, -2, -8, -4], 3, [0, 2, 1, 2, 0, 1]),
    # edges -4.75, -3.5, -2.25
    ([-5, -1, -3, -2, -8, -4], 4, [0, 3, 2, 3, 0, 1]),
    ([-2, -2, -2, -1], 3, [2, 2, 2, 2]),
    ([-3, -8, -1, -5], 2, [1, 0, 1, 0]),  # edge -4
    ([-3, -8, -1], 1, [0, 0, 0]),
    ([-3], 4, [3]),
  ],
)
def test_quantile_groups_golden(values, bins, expected):
  found = quantile_groups(*padded(values), bins=bins)
  np.testing.assert_array_equal(found[: len(expected)], expected)


@pytest.mark.parametrize("parts", [2, 3, 4, 7, 12])
def test_quantiles_are_those_of_numpy(parts):
  values = np.random.default_rng(0).normal(size=50).astype(np.float32)
  valid = np.random.default_rng(1).uniform(size=50) < 0.7
  expected = np.quantile(values[valid], np.arange(1, parts) / parts)
  for garbage in (np.nan, -9.0):
    dirty = np.where(valid, values, np.float32(garbage))
    found = quantiles(jnp.asarray(dirty), jnp.asarray(valid), parts=parts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bins", [3, 7, 10, 12])
def test_bins_hold_equally_many_to_the_last_bit(bins):
  """Every edge is a value; j / bins in float32 would miss some."""
  count = 6 * bins + 1
  values = np.random.default_rng(2).permutation(count).astype(np.float32) / 3
  groups = quantile_groups(
    jnp.asarray(values), jnp.ones(count, bool), bins=bins
  )
  sizes = np.bincount(groups, minlength=bins)
  np.testing.assert_array_equal(sizes, [6] * (bins - 1) + [7])


def test_equal_values_share_a_bin():
  """-1.3 interpolated between -1.3 and -1.3 must be -1.3."""
  values = jnp.full(19, -1.3)
  for count in range(1, 20):
    valid = jnp.asarray(np.arange(19) < count)
    assert (quantile_groups(values, valid, bins=7) == 6).all()
    assert (quartile_groups(values, valid) == 0).all()


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, [-1.3, -1.75]),
    ({"length_normalize": False}, [-1.3, -1.75]),
    ({"length_normalize": True}, [-0.6, -0.75]),
  ],
)
def test_sequence_confidence_golden(options, expected):
  logprobs = np.array(
    [
      [[-0.1, -0.2, -0.3], [-1, -1, np.nan]],
      [[-0.5, np.nan, np.nan], [-2, -0.5, -0.5]],
    ],
    np.float32,
  )
  mask = ~np.isnan(logprobs)
  confidence = functools.partial(sequence_confidence, **options)
  np.testing.assert_allclose(confidence(logprobs, mask), expected, rtol=1e-6)
  # An answer without tokens isn't the most confident one: it is left out.
  empty = np.zeros((2, 1, 3), np.float32)
  more = confidence(
    np.concatenate([logprobs, empty], 1), np.concatenate([mask, empty > 0], 1)
  )
  np.testing.assert_allclose(more, expected, rtol=1e-6)
  assert (confidence(logprobs, np.zeros_like(mask)) == 0).all()


@pytest.mark.parametrize(
  ("bin_of", "invalid", "expected"),
  [
    (
      [0, 1, 1, 2],
      None,
      [
        [1.499997, -0.499999, -0.499999, -0.499999],
        [0.966090, 0.966090, -0.966090, -0.966090],
        [0.483045, 0.483045, 0.483045, -1.449135],
        [0, 0, 0, 0],
      ],
    ),
    (
      [0, 1, 1, 2],
      2,
      [
        [1.499997, -0.499999, -0.499999, -0.499999],
        [0.866024, 0.866024, -0.866024, -0.866024],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
      ],
    ),
  ],
)
def test_shared_std_golden(bin_of, invalid, expected):
  valid = np.arange(4) != (4 if invalid is None else invalid)
  rewards = np.where(valid[:, None], REWARDS, np.float32(np.nan))
  found = shared_std_advantages(rewards, jnp.array(bin_of), valid, bins=3)
  np.testing.assert_allclose(found, expected, atol=2e-6)


MIXED = [
  [1.432182, -0.477394, -0.477394, -0.477394],
  [1.035905, 1.035905, -1.035905, -1.035905],
  [0.474003, 0.474003, 0.474003, -1.422010],
  [0, 0, 0, 0],
]


# bins=0 gives as few as 2 for 6 prompts.
@pytest.mark.parametrize("bins", [0, 2])
def test_mix_golden(bins):
  """Padding and dropped prompts aren't numbers, or larger than any."""

  def with_dropped(values, value=np.nan):
    values = np.asarray(values)
    dropped = np.full_like(values[:1], value)
    return np.concatenate([values[:2], dropped, values[2:], dropped])

  found = advantages_of(
    with_dropped(REWARDS),
    with_dropped(ENTROPY, jnp.inf),
    with_dropped(np.where(MASK, LOGPROBS, np.float32(np.nan))),
    with_dropped(MASK, False),
    bins=bins,
  )
  expected = with_dropped(MIXED, 0)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert (np.asarray(found)[[2, 5]] == 0).all()


def test_nothing_but_dropped_prompts_gives_zero():
  mask = jnp.zeros_like(MASK)
  assert (advantages_of(REWARDS, ENTROPY, LOGPROBS, mask) == 0).all()


def batch(prompts: int):
  rng = np.random.default_rng(3)
  mask = np.arange(6) < rng.integers(0, 7, (prompts, 4))[..., None]
  mask[::5] = False
  return (
    jnp.asarray(rng.integers(0, 3, (prompts, 4)) / 2, jnp.float32),
    jnp.asarray(rng.uniform(size=prompts), jnp.float32),
    jnp.asarray(-rng.uniform(size=mask.shape), jnp.float32),
    jnp.asarray(mask),
  )


def test_epsilon_is_added_to_the_deviation():
  """Rewards 0 and 2 deviate by 1: 1 / (1 + 3), which is not 1 / root 4."""
  rewards, bins = jnp.array([[0.0, 2.0]]), jnp.zeros(1, jnp.int32)
  values = shared_std_advantages(
    rewards, bins, ALL[:1], bins=1, epsilon=3.0, ddof=0
  )
  np.testing.assert_allclose(values, [[-0.25, 0.25]], rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(
  ("weights", "bins", "scale"),
  [
    ((1.0, 0.0, 0.0), 2, "group"),
    # One bin for all: without pictures all are in the middle.
    ((0.0, 1.0, 0.0), 2, "batch"),
    ((0.0, 0.0, 1.0), 1, "batch"),
  ],
)
@pytest.mark.parametrize("ddof", [1, 0])
def test_one_weight_alone_is_grpo(weights, bins, scale, ddof):
  rewards, entropy, logprobs, mask = batch(30)
  if scale == "batch" and bins > 1:
    entropy = jnp.full_like(entropy, np.nan)
  found = advantages_of(
    *(rewards, entropy, logprobs, mask), weights=weights, bins=bins, ddof=ddof
  )
  plain = group_normalised(rewards, mask, scale=scale, ddof=ddof)
  # Two programs: deviations of four rewards round by a few eps.
  np.testing.assert_allclose(found, plain, rtol=1e-6)


@pytest.mark.parametrize(("prompts", "bins"), [(119, 2), (120, 3)])
def test_default_is_a_bin_for_forty_prompts(prompts, bins):
  default, same, more = (
    str(
      jax.make_jaxpr(functools.partial(difficulty.difficulty_aware, **options))(
        *batch(prompts)
      )
    )
    for options in ({}, {"bins": bins}, {"bins": bins + 1})
  )
  assert default == same != more


def test_length_normalize_changes_the_bins():
  """One long answer among short ones: the least likely, or the most."""
  mask = np.arange(9)[None, None] < np.array([9, 1, 1, 1])[:, None, None]
  mask = np.broadcast_to(mask, (4, 4, 9))
  each = np.array([-0.5, -1, -2, -3], np.float32)[:, None, None]
  logprobs = np.where(mask, each, np.float32(np.nan))
  options = {"weights": (0.0, 0.0, 1.0), "bins": 2}
  found = [
    advantages_of(REWARDS, ENTROPY, logprobs, mask, **options, **mean)
    for mean in ({}, {"length_normalize": True})
  ]
  for bin_of, values in zip([[0, 1, 1, 0], [1, 1, 0, 0]], found, strict=True):
    expected = shared_std_advantages(REWARDS, jnp.array(bin_of), ALL, bins=2)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("answers", "options", "message"),
  [
    (1, {}, "difficulty_aware needs at least 2 answers per prompt, got 1"),
    (4, {"bins": -1}, "bins must be at least 0, got -1"),
    (4, {"weights": (0.5, 0.5)}, r"three numbers .*, got 2"),
    (4, {"ddof": 2}, r"ddof must be 0 \(n\) or 1 \(n - 1\), got 2"),
  ],
)
def test_what_cannot_be_is_refused(answers, options, message):
  data = REWARDS[:, :answers], ENTROPY, LOGPROBS[:, :answers], MASK[:, :answers]
  function = functools.partial(difficulty.difficulty_aware, **options)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(function, *data)
