"""Tests of the visual entropy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl.machines import sharding
from mmrl.models import tower
from mmrl.probes import entropy
from mmrl.probes.scores import Scorer
from mmrl.types import Prompt

spectral_entropy = jax.jit(entropy.spectral_entropy)
EYE = np.eye(3).tolist()


def exactly(features) -> float:
  """In float64, from singular values."""
  features = np.float64(features)
  values = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
  q = values / values.sum()
  q = q[q > 0]
  return -(q * np.log(q)).sum()


def entropy_of(features, mask=None) -> float:
  features = jnp.asarray(features, jnp.float32)
  mask = jnp.ones(len(features), bool) if mask is None else jnp.array(mask)
  return spectral_entropy(features, mask.astype(bool))


NO = [np.nan, np.nan]


@pytest.mark.parametrize(
  ("features", "mask", "expected"),
  [
    # Eigenvalues 0.872678 and 0.127322 of the sum.
    ([[1, 0], [0, 1], [1, 1], [2, 0]], None, 0.381264),
    ([NO, [1, 0], [0, 1], [1, 1], NO, [2, 0]], [0, 1, 1, 1, 0, 1], 0.381264),
    (EYE, None, 0.693147),  # two equal ones: the rows sum to zero
    ([[1, 0], [-1, 0], [3, 0]], None, 1e-9),  # of rank one: rounding
    # Nothing to see is exactly 0.
    ([[3, 4]], None, 0),
    ([[3, 4], [1, 2]], [0, 1], 0),
    ([[0.1, 0.7]] * 3, None, 0),
    ([[0.1, 0.7]] * 2 + [[5, 5]] + [[0.1, 0.7]] * 5, [1, 1, 0] + [1] * 5, 0),
    (EYE, [0, 0, 0], 0),
  ],
)
def test_golden(features, mask, expected):
  # As it is, and the other product: more channels than patches.
  for wide in (features, np.pad(features, ((0, 0), (0, 9)))):
    found = entropy_of(wide, mask)
    assert found == pytest.approx(expected, abs=2e-6 if expected else 0)


@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_scale_and_offset_change_nothing(shape):
  features = np.random.default_rng(0).normal(size=shape)
  expected = exactly(features)
  for scale, offset in ((1, 0), (1e-4, 0), (100, 1000)):
    found = entropy_of(scale * features + offset)
    assert found == pytest.approx(expected, rel=1e-3)


@functools.cache
def make_inputs(family: str, rows: int):
  """Four prompts: one picture, two, none, and a video and a picture."""
  config = small_models.small_config(family=family)
  processor = small_models.make_processor(config)
  prompt = processor(small_models.mixed(), rows=rows)
  prompt = small_models.on_device(prompt)
  params = small_models.make_params(config)
  visual = jax.jit(lambda x: tower.vision(params, config, x))(prompt.patches)
  return Scorer(config, 1.0, (-1,), "self"), prompt, visual


def run(scorer, prompt, visual, layout=None):
  def probe(prompt, visual):
    return entropy.visual_entropy(scorer, prompt, visual).visual_entropy

  jit = layout.jit if layout else jax.jit
  return jit(probe)(prompt, visual)


def pictures_of(prompt: Prompt, visual, width: int) -> list[list[np.ndarray]]:
  """Features of each run of visual tokens, by prompt."""
  index, visual = np.asarray(prompt.visual_index), np.asarray(visual)
  found = []
  for p, row in enumerate(index):
    features = visual[p * len(visual) // len(index)][..., :width]
    edges = np.flatnonzero(np.diff(np.r_[0, row >= 0, 0]))
    found.append([features[row[a:b]] for a, b in edges.reshape(-1, 2)])
  return found


@pytest.mark.parametrize("rows", small_models.first(2, 1, 4))
@pytest.mark.parametrize(
  "family", small_models.one_family(["qwen2_5_vl", "qwen3_vl"])
)
def test_mean_over_the_pictures_of_a_prompt(family, rows):
  """Packed together or not, with the channels of DeepStack or without."""
  scorer, prompt, visual = make_inputs(family, rows)
  pictures = pictures_of(prompt, visual, 32)
  # The video's two frames of patches have their times between them.
  video = 2 if family == "qwen3_vl" else 1
  assert [len(p) for p in pictures] == [1, 2, 0, 1 + video]
  found = run(scorer, prompt, visual)
  assert np.isnan(found[2])
  for i in (0, 1, 3):
    expected = np.mean([exactly(features) for features in pictures[i]])
    # Pictures of two tokens have a spectrum of one line.
    assert expected > 0.1 or all(len(features) < 3 for features in pictures[i])
    np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_deepstack_and_padding_change_nothing():
  scorer, prompt, visual = make_inputs("qwen3_vl", 2)
  assert visual.shape[-1] == 3 * 32
  expected = run(scorer, prompt, visual)
  used = jnp.zeros(visual.shape[:2], bool)
  row = jnp.repeat(jnp.arange(2), 2)[:, None]
  place = jnp.where(prompt.visual_index >= 0, prompt.visual_index, 10**6)
  used = used.at[row, place].set(True, mode="drop")
  assert not used.all()
  spoiled = jnp.where(used[..., None], visual, jnp.nan)
  spoiled = spoiled.at[..., 32:].set(jnp.nan)
  np.testing.assert_array_equal(run(scorer, prompt, spoiled), expected)
  moved = small_models.pad_prompt(jax.device_get(prompt), left=3, right=5)
  moved = dataclasses.replace(
    small_models.on_device(moved), patches=prompt.patches
  )
  found = run(scorer, moved, visual)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("rows", small_models.first(2, 4))
def test_devices_change_nothing(rows):
  scorer, prompt, visual = make_inputs("qwen2_5_vl", rows)
  expected = run(scorer, prompt, visual)
  sizes = {"data": 2, "fsdp": 1, "tensor": 1}
  layout = sharding.Layout(sharding.make_mesh(sizes, jax.devices()[:2]))
  inputs = layout.put(jax.device_get((prompt, visual)))
  found = run(scorer, *inputs, layout)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
