"""Adapters: where they are, and what they change."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.models import layers, parameters, vlm
from mmrl.models.config import Lora
from mmrl.models.families import FAMILIES
from mmrl.rollouts import sampler

DECODER = {
  f"text/layers/{name}"
  for name in ("q", "k", "v", "o", "mlp/gate", "mlp/up", "mlp/down")
}
MERGER = {"vision/merger/fc1", "vision/merger/fc2"}
GATED = {f"vision/blocks/mlp/{name}" for name in ("gate", "up", "down")}
PLAIN = {f"vision/blocks/mlp/{name}" for name in ("fc1", "fc2")}
BLOCKS = {"vision/blocks/qkv", "vision/blocks/proj"}
TOWERS = {
  "qwen2_vl": MERGER | BLOCKS | PLAIN,
  "qwen2_5_vl": MERGER | BLOCKS | GATED,
  "qwen3_vl": MERGER
  | BLOCKS
  | PLAIN
  | {"vision/deepstack/fc1", "vision/deepstack/fc2"},
}


def with_lora(config, targets=".*", rank=4, alpha=6, rs=False):
  return dataclasses.replace(config, lora=Lora(rank, alpha, targets, rs))


def adapted(config, base, *, zero: bool):
  """The base's parameters and a new adapter's, or one that has learned."""
  pairs = parameters.init_adapter(jax.random.key(1), config)
  if not zero:
    for path, leaf in pairs.items():
      if path.endswith("/lora_b"):
        values = np.random.default_rng(len(path)).normal(size=leaf.shape)
        pairs[path] = jnp.asarray(0.1 * values, jnp.float32)
  return parameters.merge(parameters.flat(base), pairs)


def merged(params):
  """Each W + scale A B, by NumPy; no pairs."""
  leaves = {k: np.asarray(v) for k, v in parameters.flat(params).items()}
  found = {}
  for path, leaf in leaves.items():
    module, _, name = path.rpartition("/")
    if name == "kernel" and f"{module}/lora_a" in leaves:
      a, b, scale = (leaves[f"{module}/{one}"] for one in layers.LORA)
      leaf = leaf + scale[..., None, None] * np.einsum(
        "...ir,...ro->...io", a, b
      )
    if not name.startswith("lora_"):
      found[path] = jnp.asarray(leaf)
  return parameters.merge(found)


@functools.cache
def case(family):
  config = small_models.small_config(family=family, tied=False)
  model = small_models.make_model(config)
  prompt = model.processor(small_models.conversations())
  return config, model.params, small_models.on_device(prompt)


@functools.partial(jax.jit, static_argnums=1)
def logits(params, config, prompt):
  return models.apply(params, config, prompt).logits


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "targets, wanted",
  [
    (".*", lambda family: DECODER | TOWERS[family]),
    ("text/.*", lambda family: DECODER),
    ("text/layers/(q|v)", lambda family: {"text/layers/q", "text/layers/v"}),
    # As a whole: the tower's qkv and the merger's aren't among them.
    (".*/(q|proj)", lambda family: {"text/layers/q", "vision/blocks/proj"}),
    ("vision/merger/.*", lambda family: MERGER),
  ],
)
def test_every_matched_layer_has_a_pair_and_no_other(family, targets, wanted):
  base, _, _ = case(family)
  config = with_lora(base, targets)
  shapes = parameters.flat(parameters.shapes(config))
  before = parameters.flat(parameters.shapes(base))
  pairs = {
    path: leaf.shape for path, leaf in shapes.items() if path not in before
  }
  assert {p.rpartition("/")[0] for p in pairs} == wanted(family)
  assert {p: before[p] for p in before} == {p: shapes[p] for p in before}
  for module in wanted(family):
    *stack, rows, columns = before[f"{module}/kernel"].shape
    assert pairs[f"{module}/lora_a"] == (*stack, rows, 4)
    assert pairs[f"{module}/lora_b"] == (*stack, 4, columns)
    assert pairs[f"{module}/lora_scale"] == tuple(stack)
  trainable, frozen = parameters.partition(parameters.shapes(config), ())
  assert set(trainable) == {p for p in pairs if not p.endswith("/lora_scale")}
  assert set(trainable) | set(frozen) == set(shapes)


@pytest.mark.full
@pytest.mark.parametrize("family", small_models.one_family(FAMILIES))
def test_a_new_adapter_changes_no_bit(family):
  base, params, prompt = case(family)
  config = with_lora(base)
  wanted = np.asarray(logits(params, base, prompt))
  for route in (base, config):
    found = logits(adapted(config, params, zero=True), route, prompt)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("family", small_models.one_family(FAMILIES))
def test_an_adapter_is_the_merged_kernel(family):
  """To the rounding of float32, and far from the base."""
  base, params, prompt = case(family)
  config = with_lora(base)
  learned = adapted(config, params, zero=False)
  found = np.asarray(logits(learned, config, prompt))
  np.testing.assert_allclose(
    found, logits(merged(learned), base, prompt), atol=1e-4, rtol=0
  )
  assert np.abs(found - np.asarray(logits(params, base, prompt))).max() > 0.1


@pytest.mark.full
def test_at_zero_b_learns_and_a_does_not():
  """d/dA has B as a factor, d/dB has A."""
  base, params, prompt = case("qwen2_5_vl")
  config = with_lora(base)
  trainable, frozen = parameters.partition(
    adapted(config, params, zero=True), ()
  )

  @jax.jit
  @jax.grad
  def gradient(trainable):
    found = models.apply(parameters.merge(trainable, frozen), config, prompt)
    return (found.logits[:, -1] ** 2).mean()

  for path, leaf in gradient(trainable).items():
    largest = np.abs(np.asarray(leaf)).reshape(-1, *leaf.shape[-2:]).max((1, 2))
    if path.endswith("/lora_a"):
      np.testing.assert_array_equal(largest, 0)
    else:
      # Each layer of a stack.
      assert (largest > 0).all(), path


@pytest.mark.full
@pytest.mark.parametrize("unrolled", [False, True])
def test_the_sampler_draws_from_the_adapted_model(monkeypatch, unrolled):
  """Its log-probabilities are the scorer's; other tokens than the base's."""
  base, params, prompt = case("qwen2_5_vl")
  config = with_lora(base)
  monkeypatch.setattr(vlm, "_UNROLLED_BYTES", 2**28 if unrolled else 0)

  def sample(params, config):
    return sampler.rollout(
      params, config, prompt, jax.random.key(0), answers=2, length=5
    )

  learned = adapted(config, params, zero=False)
  found = jax.jit(sample, static_argnums=1)(learned, config)
  scores = models.score(learned, config, found.prefix, found.tokens)
  mask = np.asarray(found.mask)
  np.testing.assert_allclose(
    np.asarray(found.fields["logprobs_sampler"])[mask],
    np.asarray(scores.logprobs)[mask],
    atol=1e-4,
  )
  other = jax.jit(sample, static_argnums=1)(params, base)
  assert (np.asarray(other.tokens) != np.asarray(found.tokens)).any()


def test_scale_is_of_lora_or_of_rslora():
  base, _, _ = case("qwen2_5_vl")
  for rs, scale in ((False, 6 / 4), (True, 6 / math.sqrt(4))):
    config = with_lora(base, "text/layers/q", rs=rs)
    found = parameters.init_adapter(jax.random.key(0), config)
    np.testing.assert_array_equal(
      found["text/layers/q/lora_scale"], np.full(3, scale, np.float32)
    )


def test_a_begins_as_pefts_and_by_its_path():
  base, _, _ = case("qwen2_5_vl")
  make = functools.partial(parameters.init_adapter, jax.random.key(0))
  whole = make(with_lora(base, "text/.*", rank=16))
  a = np.asarray(whole["text/layers/q/lora_a"])
  bound = 1 / math.sqrt(32)
  assert 0.95 * bound < np.abs(a).max() <= bound
  # Uniform: its deviation is the bound / sqrt(3); 3 x 32 x 16 numbers.
  np.testing.assert_allclose(a.std(), bound / math.sqrt(3), rtol=0.1)
  assert (np.asarray(whole["text/layers/q/lora_b"]) == 0).all()
  alone = make(with_lora(base, "text/layers/q", rank=16))
  np.testing.assert_array_equal(alone["text/layers/q/lora_a"], a)
  assert (a != np.asarray(whole["text/layers/v/lora_a"])).any()


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"rank": 0}, "expected rank to be a whole .* at least 1, found 0"),
    ({"rank": -1}, "found -1"),
    ({"rank": 2.0}, "expected rank to be a whole number .* found 2.0"),
    ({"rank": True}, "expected rank to be a whole number .* found True"),
    ({"alpha": 0}, "expected alpha to be a number above 0, found 0"),
    ({"alpha": -1.5}, "found -1.5"),
    ({"alpha": float("nan")}, "found nan"),
    ({"alpha": float("inf")}, "found inf"),
    ({"alpha": "16"}, "found '16'"),
    ({"rs": 1}, "expected rs to be true or false, found 1"),
    ({"targets": "("}, "expected targets to be a regular expression, found '"),
    ({"targets": ("text",)}, "expected targets to be a regular expression"),
  ],
)
def test_values_that_cannot_be(fields, message):
  # Made as Python makes it, without the tests' check of types.
  lora = object.__new__(Lora)
  given = {"rank": 4, "alpha": 6, "targets": ".*", "rs": False} | fields
  for name, value in given.items():
    object.__setattr__(lora, name, value)
  with pytest.raises(UserError, match=message) as error:
    lora.__post_init__()
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"targets": "text/layers"}, "matches none of text/layers/k, "),
    ({"targets": "text/head"}, "matches none of"),
    ({"targets": "vision/patch_embed"}, "matches none of"),
    ({"targets": "q_proj"}, "found 'q_proj', which matches none of"),
    # The keys' kernel is 32 x 16, the smallest of the decoder.
    (
      {"targets": "text/.*", "rank": 17},
      "a rank of at most 16, the smaller side of text/layers/k, found 17",
    ),
  ],
)
def test_layers_that_cannot_be(fields, message):
  base, _, _ = case("qwen2_5_vl")
  with pytest.raises(UserError, match=message):
    parameters.adapted_layers(with_lora(base, **fields))
  # As large as it may be.
  parameters.adapted_layers(with_lora(base, "text/.*", rank=16))
