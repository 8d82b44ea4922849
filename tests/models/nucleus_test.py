"""Entropies of nuclei."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.models import nucleus
from mmrl.rollouts import sampling
from mmrl.types import Logits

# Probabilities, what is kept, entropy of q, the same sum of p, all entropy.
CASES = [
  ([0.5, 0.3, 0.12, 0.05, 0.03], 4, 1.115916, 1.111984, 1.217180),
  ([0.6, 0.34, 0.03, 0.03], 3, 0.772105, 0.778487, 0.883684),
  ([0.96, 0.02, 0.01, 0.01], 1, 0.0, 0.039189, 0.209533),
  ([0.25, 0.25, 0.25, 0.25], 4, 1.386294, 1.386294, 1.386294),
  ([1.0, 0.0, 0.0], 1, 0.0, 0.0, 0.0),
]


def by_sorting(p, top_p: float, renormalise: bool) -> float:
  """The definition, in float64."""
  p = np.sort(np.float64(p))[::-1]
  p = p[(np.cumsum(p) - p < top_p) & (p > 0)]
  if renormalise:
    p = p / p.sum()
  return -(p * np.log(p)).sum()


nucleus_entropy = jax.jit(
  nucleus.nucleus_entropy, static_argnames=("top_p", "renormalise")
)
keep_top_p = jax.jit(sampling.keep_top_p, static_argnums=1)


def entropy_of(p, **options) -> float:
  """Of logits that are the logarithms plus some number."""
  p = np.pad(np.float64(p), (0, 5 - len(p)))
  with np.errstate(divide="ignore"):
    logits = np.log(p) + 3
  return nucleus_entropy(jnp.asarray(logits, jnp.float32), **options)


@pytest.mark.parametrize("p, kept, ours, unscaled, whole", CASES)
def test_golden(p, kept, ours, unscaled, whole):
  close = functools.partial(np.testing.assert_allclose, atol=2e-6)
  close(entropy_of(p), ours)
  close(entropy_of(p, renormalise=False), unscaled)
  close(entropy_of(p, top_p=1.0), whole)
  # One of each tie is as good as another.
  order = np.argsort(p)[::-1][:kept]
  q = np.array(p)[order] / np.array(p)[order].sum()
  close(-(q * np.log(q)).sum(), ours)
  if kept == 1:
    assert entropy_of(p) == 0


# How many of four tokens of 0.1 are needed beside one of 0.6.
@pytest.mark.parametrize("top_p", [0.55, 0.65, 0.75, 0.85, 0.95])
@pytest.mark.parametrize("renormalise", [True, False])
def test_ties_are_kept_as_needed(top_p, renormalise):
  p = [0.1, 0.1, 0.6, 0.1, 0.1]
  found = entropy_of(p, top_p=top_p, renormalise=renormalise)
  expected = by_sorting(p, top_p, renormalise)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  # The sampler draws from these, the first of the ties.
  kept = np.isfinite(keep_top_p(np.log(np.float32(p)), top_p))
  needed = round(10 * (top_p - 0.55))
  np.testing.assert_array_equal(kept, np.array([0, 1, -1, 2, 3]) < needed)
  q = np.array(p)[kept] / (np.array(p)[kept].sum() if renormalise else 1)
  np.testing.assert_allclose(found, -(q * np.log(q)).sum(), atol=2e-6)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 50.0])
def test_equals_sorting(top_p, scale):
  """From nearly uniform to nearly certain, with probabilities that are 0."""
  rng = np.random.default_rng(0)
  logits = np.float32(scale * rng.normal(size=(20, 300)))
  p = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  for renormalise in (True, False):
    found = nucleus_entropy(
      jnp.asarray(logits), top_p=top_p, renormalise=renormalise
    )
    expected = [by_sorting(row, top_p, renormalise) for row in p]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_exactly_zero_where_all_others_are_banned():
  banned = jnp.array([4.0, -1e30, -1e30])
  for renormalise in (True, False):
    assert nucleus_entropy(banned, renormalise=renormalise) == 0


@functools.cache
def make_logits(tied: bool = True) -> tuple[Logits, np.ndarray]:
  """[P, G, R] tokens of a small model, and their logits."""
  config = small_models.small_config(tied=tied)
  params = small_models.make_params(config)
  hidden = np.random.default_rng(1).normal(size=(8, 3, 5, 32))
  hidden = jnp.asarray(2 * hidden, jnp.float32)
  logits = models.lazy_logits(params, config, hidden, 0.8)
  whole = jax.jit(models.logits, static_argnums=1)(params, config, hidden)
  whole = np.array(whole) / 0.8
  whole[..., list(config.banned_token_ids)] = -np.inf
  return logits, whole


# All at once, one at a time, and a last chunk that repeats two of four.
@pytest.mark.parametrize("rows", [1000, 1, 59])
@pytest.mark.parametrize("tied", [True, False])
def test_chunks_change_nothing(monkeypatch, rows, tied):
  logits, whole = make_logits(tied)
  monkeypatch.setattr(nucleus, "_CHUNK_VALUES", rows * whole.shape[-1])
  found = jax.jit(nucleus.nucleus_entropies)(logits)
  expected = nucleus_entropy(jnp.asarray(whole))
  assert found.shape == (8, 3, 5)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_devices_change_nothing(monkeypatch):
  """Each has the tokens of its own prompts, in chunks of its own."""
  logits, whole = make_logits()
  expected = jax.jit(nucleus.nucleus_entropies)(logits)
  monkeypatch.setattr(nucleus, "_CHUNK_VALUES", 4 * whole.shape[-1])
  sizes = {"data": 4, "fsdp": 2, "tensor": 1}
  layout = sharding.Layout(sharding.make_mesh(sizes))
  program = layout.jit(nucleus.nucleus_entropies)
  found = program(layout.reshard(logits))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_tokens_times_entries():
  entries, count = 32768, 4096
  shape = functools.partial(jax.ShapeDtypeStruct, dtype="float32")
  logits = Logits(shape((count, 8)), shape((entries, 8)), "vd", (3,), 1.0)
  compiled = jax.jit(nucleus.nucleus_entropies).lower(logits).compile()
  used = compiled.memory_analysis().temp_size_in_bytes
  assert used < 0.6 * 4 * entries * count


@pytest.mark.parametrize("top_p", [0.0, 1.1, 95.0])
def test_mass_outside_its_range_is_refused(top_p):
  with pytest.raises(UserError, match=rf"in \(0, 1\], got {top_p}"):
    nucleus.nucleus_entropies(make_logits()[0], top_p=top_p)
