"""Tests of the policy without pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl.models import tower
from mmrl.models.kernels import attention
from mmrl.probes import blind
from mmrl.probes.scores import Scorer
from mmrl.types import Batch

FAMILIES = small_models.one_family(["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
PICTURED = [True, True, False, True]


def text_only(conversation: list[dict]) -> list[dict]:
  """The conversation without its pictures and videos."""
  return [
    message
    | {"content": [p for p in message["content"] if p["type"] == "text"]}
    for message in conversation
  ]


def make_inputs(family: str, rows: int = 1):
  """A scorer, its parameters, four prompts, and their texts alone."""
  config = small_models.small_config(family=family)
  processor = small_models.make_processor(config)
  chats = small_models.mixed()
  prompt = processor(chats, rows=rows)
  text = processor([text_only(chat) for chat in chats])
  return (
    Scorer(config, 0.7, (-1,), "self"),
    small_models.make_params(config),
    small_models.on_device(prompt),
    small_models.on_device(text),
  )


def make_batch(scorer, params, prompt, visual) -> Batch:
  """Any answers."""
  shape = (len(prompt.mask), 2, 5)
  tokens = np.random.default_rng(0).integers(0, 256, shape)
  prefix = scorer.prefill(params, prompt, visual)
  return small_models.make_batch(prompt, tokens, visual=visual, prefix=prefix)


MORE = [
  pytest.param(*values, marks=pytest.mark.full)
  for values in ((2, True), (1, False))
]


# Pictures may be packed in several rows; block by block attention takes real
# tokens to stand side by side.
@pytest.mark.full
@pytest.mark.parametrize(("rows", "dense"), [(1, True), *MORE])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_text_alone(family, rows, dense, monkeypatch):
  """Of pictures and videos, with the times that a family writes for those.

  The probe beside `behaviour`, and prompts that never had a picture.
  """
  if not dense:
    monkeypatch.setattr(attention, "DENSE_VALUES", 0)
  scorer, params, prompt, text = make_inputs(family, rows)

  @jax.jit
  def run(params, prompt, text):
    visual = tower.vision(params, scorer.config, prompt.patches)
    batch = make_batch(scorer, params, prompt, visual)
    scores = scorer(params, batch.prefix, batch.tokens)
    prefix = scorer.prefill(params, text, jnp.zeros_like(visual))
    expected = scorer(params, prefix, batch.tokens).logprobs
    found = blind.image_blind(scorer, params, prompt, batch.tokens, scores)
    return scores.logprobs, expected, found

  old, expected, found = run(params, prompt, text)
  np.testing.assert_array_equal(found.pictured, PICTURED)
  np.testing.assert_allclose(found.logprobs_blind, expected, atol=3e-5)
  change = jnp.abs(found.logprobs_blind - old).max((1, 2))
  np.testing.assert_array_equal(change > 1e-2, PICTURED)
  # Without a picture it is the same, bit for bit.
  np.testing.assert_array_equal(change > 0, PICTURED)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_is_what_the_processor_makes_of_the_text(family):
  scorer, _, prompt, _ = make_inputs(family)
  config = scorer.config
  found = blind.without_pictures(prompt, config)
  processor = small_models.make_processor(config)
  chats = [text_only(c) for c in small_models.mixed()]
  length = prompt.mask.shape[1]
  text = processor(chats, lengths=[length])
  for name in (
    "tokens",
    "mask",
    "positions",
    "visual_index",
    "next_position",
    "region",
    "evidence",
  ):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(text, name), err_msg=name
    )


@pytest.mark.full
def test_padding_on_the_right_and_what_it_holds_change_nothing():
  """Marks that stand in the padding aren't marks."""
  scorer, _, prompt, _ = make_inputs("qwen2_5_vl")
  config = scorer.config
  one = blind.without_pictures(prompt, config)
  moved = small_models.pad_prompt(jax.device_get(prompt), left=2, right=3)
  tokens = np.where(moved.mask, moved.tokens, config.vision_start_token_id)
  moved = small_models.on_device(moved)
  moved = dataclasses.replace(moved, tokens=jnp.asarray(tokens))
  two = blind.without_pictures(moved, config)
  for row in range(len(PICTURED)):
    for name in ("tokens", "positions"):
      a, b = (np.asarray(getattr(x, name))[row] for x in (one, two))
      a, b = a[np.asarray(one.mask)[row]], b[np.asarray(two.mask)[row]]
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(one.next_position, two.next_position)


def test_the_tower_does_not_run(monkeypatch):
  scorer, params, prompt, _ = make_inputs("qwen3_vl")
  monkeypatch.setattr(tower, "vision", None)

  def probe(params, prompt):
    visual = jnp.zeros((1, prompt.mask.size, 96))
    batch = make_batch(scorer, params, prompt, visual)
    scores = scorer(params, batch.prefix, batch.tokens)
    return blind.image_blind(scorer, params, prompt, batch.tokens, scores)

  found = jax.eval_shape(probe, params, prompt)
  assert found.logprobs_blind.shape == (4, 2, 5)
