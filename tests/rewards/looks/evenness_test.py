"""LASER's rewards: by hand, and in loops over dense maps."""

import jax
import jax.numpy as jnp
import looks
import numpy as np
import pytest
import small_models

from mmrl import build, rewards
from mmrl.errors import UserError
from mmrl.models import rows
from mmrl.probes.scores import Scorer
from mmrl.probes.sinks import visual_sinks
from mmrl.rewards.looks.evenness import sink_suppression, visual_evenness


def evenness(values, length=None, **options):
  values = np.array(values, np.float32)[None, None]
  length = values.shape[-1] if length is None else length
  mask = np.arange(values.shape[-1])[None, None] < length
  return np.asarray(even(values, mask, **options)).item()


even = jax.jit(visual_evenness, static_argnames=("window", "stride"))
suppress = jax.jit(sink_suppression)


def test_evenness_golden():
  """Windows .3, .2, .1: e^0, e^(-5/3), e^(-10/3), each less 0.015.

  (0.985 + 0.173876 e^-0.75 + 0.020674 e^-1.5) / (1 + e^-0.75 + e^-1.5) / 10.
  """
  options = {"window": 2, "stride": 1}
  found = evenness([0.4, 0.2, 0.2, 0.0], **options)
  assert found == pytest.approx(0.0632113, abs=1e-6)
  # The last window doesn't fit; that of padding doesn't count.
  assert evenness([0.4, 0.2, 0.2, 9], 3, window=2, stride=2) == pytest.approx(
    0.0985, abs=1e-6
  )
  scaled = evenness([0.04, 0.02, 0.02, 0.0], **options)
  assert scaled == pytest.approx(found, rel=1e-6)
  assert evenness([0.7] * 30) == pytest.approx(0.0985, abs=1e-6)
  assert evenness([0.7] * 11) == pytest.approx(0.0985, abs=1e-6)
  for length in (0, 1, 10):
    assert evenness([0.7] * 30, length) == 0
  assert evenness([0.7] * 10) == 0
  assert evenness([0.0] * 30) == 0


def suppression(ratios, length):
  prompt = looks.ask()
  ratios = np.array(ratios, np.float32)[None, None]
  ratios = np.broadcast_to(ratios, (3, 1, ratios.shape[-1]))
  mask = np.broadcast_to(np.arange(ratios.shape[-1]) < length, ratios.shape)
  return np.asarray(suppress(ratios, prompt, mask))[:, 0].tolist()


def test_suppression_golden():
  """r = 2.9 and 0.5: (e^-1 + 1) / 2."""
  assert suppression([2.9, 0.5, 9.9], 2) == pytest.approx(3 * [0.683940])
  assert suppression([0.0, 0.9], 2) == pytest.approx(3 * [1.0])
  assert suppression([0.0, 0.9], 0) == [0, 0, 0]


def plain(stage, deviations):
  """Attention on others than sinks, ratio, and both rewards, in loops."""
  shape = stage.mask.shape
  even, ratio = np.zeros(shape), np.zeros(shape)
  scores = np.zeros((2, *shape[:2]))
  for p in range(shape[0]):
    seen = np.flatnonzero(np.asarray(stage.prompt.visual_index[p]) >= 0)
    last = stage.last[p].mean(0)[seen]
    sinks = seen[last > last.mean() + deviations * last.std()]
    others = [s for s in seen if s not in sinks]
    for g in range(shape[1]):
      length = int(stage.mask[p, g].sum())
      for t in range(length):
        row = stage.rows[p, g, t].mean(0)
        even[p, g, t] = row[others].mean()
        ratio[p, g, t] = (
          row[sinks].mean() / row[seen].mean() if len(sinks) else 0
        )
      if length:
        gaps = np.maximum(ratio[p, g, :length] - 0.9, 0)
        scores[1, p, g] = np.exp(-0.5 * gaps).mean()
      if length > 10:
        starts = range(0, length - 9, 5)
        means = np.array([even[p, g, s : s + 10].mean() for s in starts])
        weight = np.exp(-1.5 * np.arange(len(means)) / max(len(means) - 1, 1))
        gain = np.exp(-5 * (1 - means / means.max())) - 0.015
        scores[0, p, g] = 0.1 * (weight * gain).sum() / weight.sum()
  return even, ratio, scores


sinks_of = jax.jit(visual_sinks, static_argnums=0, static_argnames="deviations")


def found(stage, deviations):
  """The same, as a run computes it."""
  sinks = sinks_of(
    *(stage.scorer(), stage.params, stage.prompt, stage.visual, stage.tokens),
    deviations=deviations,
  )
  gains = even(sinks.visual_attention_old, stage.mask)
  none = suppress(sinks.sink_ratio_old, stage.prompt, stage.mask)
  return (*sinks, np.stack([gains, none]))


@pytest.mark.full
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_equal_plain_ones_over_dense_maps(family):
  stage = looks.make(family)
  wanted = plain(stage, 0.5)
  mask = np.asarray(stage.mask)
  # There are sinks, and answers of over ten tokens.
  assert (wanted[1] > 1).any() and (wanted[2][0] > 0).sum() == 3
  got = found(stage, 0.5)
  for one, other in zip(got[:2], wanted[:2], strict=True):
    np.testing.assert_allclose(np.where(mask, one, 0), other, rtol=1e-4)
  np.testing.assert_allclose(got[2], wanted[2], rtol=1e-4, atol=1e-7)


@pytest.mark.full
def test_no_sinks_and_padding():
  stage = looks.make()
  _, ratio, scores = found(stage, 1e9)
  assert (ratio == 0).all()
  assert (np.asarray(scores[1])[np.asarray(stage.mask).any(-1)] == 1).all()
  other = found(looks.make(left=3, room=9), 0.5)[2]
  np.testing.assert_allclose(other, found(stage, 0.5)[2], rtol=1e-4, atol=1e-7)


@pytest.mark.full
def test_layers_are_summed_as_they_are_run(monkeypatch):
  """Each chosen layer by itself, and rows a few at a time."""
  stage = looks.make()
  seen = jnp.asarray(stage.prompt.visual_index >= 0, jnp.float32)
  scorer = stage.scorer(layers=(0, 2))

  def sums():
    def weighed(params, prompt, visual, tokens):
      return scorer.weighed_rows(
        *(params, prompt, visual, tokens),
        lambda last: jnp.stack([seen, jnp.ones_like(last)], -1),
      )

    return jax.jit(weighed)(
      *(stage.params, stage.prompt, stage.visual, stage.tokens)
    )

  whole = sums()
  start = seen.shape[1]
  for i, layer in enumerate((0, 2)):
    dense = stage.rows[:, :, :, layer]
    on_seen = np.einsum("pgrs,ps->pgr", dense[..., :start], seen)
    on_own = dense[..., start:].sum(-1)
    np.testing.assert_allclose(whole[..., i, 0], on_seen, atol=1e-5)
    np.testing.assert_allclose(whole[..., i, 2], on_own, atol=1e-5)
    np.testing.assert_allclose(whole[..., i, 1:].sum(-1), 1, atol=1e-5)
  monkeypatch.setattr(rows, "_CHUNK_VALUES", 200)
  np.testing.assert_allclose(sums(), whole, atol=1e-6)


@pytest.mark.parametrize(
  "package, spec, message",
  [
    (rewards, {"name": "visual_evenness", "window": 0}, "window and stride"),
    (rewards, {"name": "visual_evenness", "stride": 0}, "window and stride"),
    (
      rewards,
      {"name": "visual_evenness", "sharpness": -1.0},
      ".*sharpness of at",
    ),
    (
      rewards,
      {"name": "sink_suppression", "allowed": -1.0},
      "allowed and sharp",
    ),
    (
      rewards,
      {"name": "sink_suppression", "sharpness": -1.0},
      "allowed and sha",
    ),
  ],
)
def test_options_outside_their_range_are_refused(package, spec, message):
  with pytest.raises(UserError, match=f"x: expected {message}"):
    build.resolve(package, spec, "x")


def test_deviations_are_at_least_0():
  scorer = Scorer(small_models.small_config(), 1.0, (-1,), "self")
  visual, tokens = jnp.zeros((3, 1, 32)), jnp.zeros((3, 2, 1), jnp.int32)
  with pytest.raises(UserError, match="deviations must be at least 0, got -1"):
    visual_sinks(scorer, {}, looks.ask(), visual, tokens, deviations=-1.0)
