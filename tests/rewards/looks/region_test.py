"""SAYO's reward: the note's values, and loops over dense maps."""

import dataclasses

import jax
import jax.numpy as jnp
import looks
import numpy as np
import pytest

from mmrl import build, probes, rewards
from mmrl.errors import UserError
from mmrl.rewards.looks import region as region_lib
from mmrl.rewards.looks.region import region_attention, target_attention

top_fraction = jax.jit(region_lib.top_fraction, static_argnums=2)
ratio_of = jax.jit(region_lib.region_ratio)

ENTROPIES = [0.2, 1.4, 0.7, 1.4, 0.1, 2.0, 0.3, 0.9, 0.05, 1.1]


@pytest.mark.parametrize(
  "count, wanted",
  [(10, {1, 3, 5}), (7, {1, 5}), (4, {1}), (1, {0}), (0, set())],
)
@pytest.mark.parametrize("room", [1, 4])
def test_uncertain_tokens_golden(count, wanted, room):
  """`count` candidates, and the last token, which is none."""
  fill = [9.0] * (10 - count + room)
  entropies = np.array([[ENTROPIES[:count] + fill]], np.float32)
  mask = np.arange(10 + room)[None, None] < count + 1
  chosen = top_fraction(entropies, mask, 0.3)
  assert set(np.flatnonzero(chosen)) == wanted
  # An answer without a token.
  assert not top_fraction(entropies, mask & False, 0.3).any()


def test_the_number_of_tokens_is_a_floor_of_whole_numbers():
  for fraction, count, wanted in (
    (0.7, 10, 7),
    (0.3, 10, 3),
    (0.29, 100, 29),
    (1.0, 5, 5),
    (0.01, 5, 1),
  ):
    mask = np.ones((1, 1, count + 1), bool)
    chosen = top_fraction(np.zeros(mask.shape, np.float32), mask, fraction)
    assert np.asarray(chosen).sum() == wanted, fraction


ROWS = np.array(
  [
    [0.10, 0.05, 0.20, 0.15, 0.10, 0.40, 0, 0],
    [0.02, 0.30, 0.10, 0.08, 0.10, 0.20, 0.20, 0],
    [0.20, 0.10, 0.10, 0.10, 0.10, 0.20, 0.10, 0.10],
  ]
)


def prompt_of(image, region):
  """A prompt of 8 positions with visual tokens and a region."""
  place = np.arange(8)
  prompt = looks.ask()
  return dataclasses.replace(
    prompt,
    visual_index=jnp.asarray(np.where(np.isin(place, image), place, -1)[None]),
    region=jnp.asarray(np.isin(place, region)[None] * 0.25, jnp.float32),
  )


def ratio(rows, image, region, chosen):
  rows = np.atleast_2d(rows)
  sums = [
    rows[:, list(kind)].sum(-1).astype(np.float32)[None, None]
    for kind in (region, image)
  ]
  chosen = np.isin(np.arange(len(rows)), chosen)[None, None]
  prompt = prompt_of(list(image), list(region))
  values, valid = map(np.asarray, ratio_of(*sums, prompt, chosen))
  return values.item(), valid.item()


def test_ratio_golden():
  image, region = range(1, 5), range(1, 3)
  for chosen, wanted, score in (
    ([0, 1], 0.183308, 0.591654),
    ([1], 0.310938, 0.655469),
    ([0, 1, 2], 0.137706, 0.568853),
  ):
    value, valid = ratio(ROWS, image, region, chosen)
    assert valid and value == pytest.approx(wanted, abs=1e-6)
    assert (1 + value) / 2 == pytest.approx(score, abs=1e-6)
  # Attention on the picture times a constant.
  less = ROWS * np.where(np.isin(np.arange(8), image), 0.3, 1)
  value, _ = ratio(less, image, region, [0, 1])
  assert value == pytest.approx(0.183308, abs=1e-6)
  assert ratio(ROWS, image, image, [0, 1])[0] == 0
  assert ratio(ROWS, image, [], [0, 1]) == (0, False)
  assert ratio(ROWS, image, region, []) == (0, False)
  beside = [0.5, 0, 0, 0.25, 0.25, 0, 0, 0]
  assert ratio(beside, image, region, [0])[0] == pytest.approx(-1, abs=1e-6)
  text = [0.5, 0, 0, 0, 0, 0.5, 0, 0]
  assert ratio(text, image, region, [0]) == (0, True)
  # More in the region, and as much on the picture.
  moved = ROWS + 0.05 * (
    np.isin(np.arange(8), 1) * 1.0 - np.isin(np.arange(8), 4)
  )
  assert ratio(moved, image, region, [0, 1])[0] > 0.183308


def found(stage, row="self", **options):
  scores = stage.scores(row=row)
  seen = probes.looks(scores, stage.prompt)
  inputs = (*seen, scores.entropies, stage.prompt, stage.mask)
  return (
    np.asarray(region_attention(*inputs, **options)),
    np.asarray(target_attention(*inputs, **options)),
  )


def plain(stage, row="self"):
  """The reward in loops; NaN where there is nothing to compare."""
  entropies = np.asarray(stage.scores().entropies)
  rows = stage.rows[:, :, :, -1]
  values = np.full(stage.mask.shape[:2], np.nan)
  for p, g in np.ndindex(values.shape):
    region = np.flatnonzero(np.asarray(stage.prompt.region[p]) > 0)
    image = np.flatnonzero(np.asarray(stage.prompt.visual_index[p]) >= 0)
    count = int(stage.mask[p, g].sum()) - 1
    if count < 1 or not len(region):
      continue
    order = sorted(range(count), key=lambda t: -entropies[p, g, t])
    weights = []
    for t in order[: max(1, 3 * count // 10)]:
      if row == "self":
        weights.append(rows[p, g, t])
      else:
        weights.append(rows[p, g, t - 1] if t else stage.last[p, -1])
    a, v = (np.mean([w[kind] for w in weights]) for kind in (region, image))
    values[p, g] = np.tanh(np.log((a + 1e-8) / (v + 1e-8)))
  return values


@pytest.mark.full
@pytest.mark.parametrize("row", ["self", "emit"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_equals_a_plain_one_over_dense_maps(family, row):
  stage = looks.make(family)
  reward, score = found(stage, row)
  wanted = plain(stage, row)
  # The last question has no region, one answer only one token.
  assert np.isfinite(wanted).sum() == 3
  np.testing.assert_allclose(score, (1 + wanted) / 2, atol=1e-5)
  np.testing.assert_allclose(reward, np.nan_to_num(wanted), atol=2e-5)


@pytest.mark.full
def test_padding_never_matters():
  one, other = looks.make(), looks.make(left=6, room=3)
  for a, b in zip(found(one), found(other), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_several_boxes_are_one_region():
  """The second question of the stage has two."""
  region = np.asarray(looks.ask().region[1]) > 0
  # Of 4 x 4 cells of 8 pixels: 2 x 2, and 3 rows x 2 columns; cells of the
  # other picture aren't marked.
  assert region.sum() == 4 + 6


@pytest.mark.parametrize(
  "spec, message",
  [
    ({"fraction": 0.0}, "fraction must be in .0, 1., got 0.0"),
    ({"fraction": 1.1}, "fraction must be in .0, 1., got 1.1"),
    ({"without": "skip"}, "expected one of 'refuse', 'zero', found 'skip'"),
  ],
)
def test_options_outside_their_range_are_refused(spec, message):
  with pytest.raises(UserError, match=message):
    build.resolve(rewards, {"name": "region_attention", **spec}, "x")
  needs = region_attention.needs_region
  assert needs() and needs(fraction=0.5) and not needs(without="zero")
