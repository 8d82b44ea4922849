"""Tests of EASE's term."""

import jax
import jax.numpy as jnp
import looks
import numpy as np
import pytest
import small_models

from mmrl import build, losses
from mmrl.errors import UserError
from mmrl.losses.attention import evidence_kl, sample_tokens
from mmrl.types import Prompt

REWARDS = jnp.array([[1.0, 0.5], [0.9, 1.0], [1.0, 1.0]])
term = jax.jit(
  evidence_kl, static_argnames=("gate", "background", "sampled_tokens")
)


def golden_prompt():
  """Two visual tokens between two of text; the left one is marked."""
  return Prompt(
    tokens=jnp.zeros((1, 4), jnp.int32),
    mask=jnp.ones((1, 4), bool),
    positions=jnp.zeros((1, 4, 3), jnp.int32),
    visual_index=jnp.array([[-1, 0, 1, -1]]),
    next_position=jnp.array([4]),
    region=jnp.array([[0.0, 1.0, 0.0, 0.0]]),
    patches=small_models.no_patches(1),
    evidence=jnp.array([[0.0, 0.976720, 0.023280, 0.0]]),
  )


def golden(rows, rewards, **options):
  rows = np.array(rows, np.float32)[None, None]
  mask = np.ones(rows.shape[:3], bool)
  tokens = np.arange(rows.shape[2])[None, None]
  rewards = np.array([[rewards]], np.float32)
  found = term(rows, golden_prompt(), rewards, tokens, mask, **options)
  return np.asarray(found[0, 0])


ROW = [0.3, 0.2, 0.1, 0.15, 0.25]


def test_golden():
  """p = 2/3, 1/3; q = 0.9 e + 0.05 = 0.929048, 0.070952.

  2/3 ln(0.666667/0.929048) + 1/3 ln(0.333333/0.070952) = 0.294465; against a
  uniform target 2/3 ln 4/3 + 1/3 ln 2/3 = 0.056633.
  """
  np.testing.assert_allclose(golden([ROW], 0.6), [0.294465], atol=2e-6)
  uniform = golden([ROW], 0.6, background=1.0)
  np.testing.assert_allclose(uniform, [0.056633], atol=2e-6)
  equal = [0.0, 0.929048, 0.070952, 0.0, 0.0]
  np.testing.assert_allclose(golden([equal], 0.6), [0.0], atol=1e-6)
  # What falls on text, or on nothing, doesn't matter.
  scaled = [0.9, 0.02, 0.01, 0.0, 0.07]
  np.testing.assert_allclose(golden([scaled], 0.6), [0.294465], atol=2e-6)
  assert golden([[1.0, 0, 0, 0, 0]], 0.6) == [0.0]


def test_only_rewards_above_the_gate_count():
  assert golden([ROW], 0.5) == [0]
  assert golden([ROW], 0.51) > 0
  assert golden([ROW], 0.51, gate=0.6) == [0]


def plain(stage, rewards, gate=0.5, background=0.1, layer=-1):
  """The term of every token, in loops over dense maps."""
  prompt, found = stage.prompt, np.zeros(stage.mask.shape)
  for p, g, t in np.argwhere(stage.mask):
    seen = np.flatnonzero(np.asarray(prompt.visual_index[p]) >= 0)
    target = np.asarray(prompt.evidence[p], np.float64)[seen]
    if rewards[p, g] <= gate or not target.sum():
      continue
    target = (1 - background) * target + background / len(seen)
    row = stage.rows[p, g, t, layer][seen]
    row = row / row.sum()
    found[p, g, t] = sum(
      x * np.log(x / y) for x, y in zip(row, target, strict=True)
    )
  return found


@pytest.mark.full
@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_equals_a_plain_one_over_dense_maps(family, layer):
  stage = looks.make(family)
  scores = stage.scores(layers=(layer,))
  found = term(
    scores.attention, stage.prompt, REWARDS, stage.tokens, stage.mask
  )
  wanted = plain(stage, np.asarray(REWARDS), layer=layer)
  # The second answer is below the gate, the last question without a region.
  assert (wanted[0, 1] == 0).all() and (wanted[2] == 0).all()
  assert (wanted[1] > 1e-3).sum() == 13
  # Attention in float32, whose softmax is rounded to 1e-6 of 1.
  np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.full
def test_padding_never_matters():
  one, other = looks.make(), looks.make(left=5, room=7)
  found = [
    np.asarray(
      term(
        stage.scores().attention,
        stage.prompt,
        REWARDS,
        jnp.where(stage.mask, stage.tokens, fill),
        stage.mask,
        sampled_tokens=4,
      )
    )
    for stage, fill in ((one, 7), (other, 9))
  ]
  np.testing.assert_allclose(found[1][..., : looks.R], found[0], rtol=1e-5)
  assert (found[1][..., looks.R :] == 0).all()


@pytest.mark.full
def test_descending_moves_attention_to_the_region():
  stage = looks.make()
  attention = stage.scores().attention

  def loss(queries):
    moved = attention.__class__(**(vars(attention) | {"queries": queries}))
    values = evidence_kl(moved, stage.prompt, REWARDS, stage.tokens, stage.mask)
    return values.sum()

  rise = jax.jit(jax.value_and_grad(loss))
  value, slope = rise(attention.queries)
  assert np.isfinite(slope).all()
  assert rise(attention.queries - 0.1 * slope)[0] < value


@pytest.mark.full
def test_sampled_tokens_are_a_fair_choice():
  """k of each answer; over many answers each place as often as others."""
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, 1000, (500, 8, 10)), jnp.int32)
  length = rng.integers(0, 11, (500, 8, 1))
  mask = jnp.asarray(np.arange(10) < length)
  chosen = np.asarray(sample_tokens(tokens, mask, 3))
  np.testing.assert_array_equal(chosen.sum(-1), np.minimum(length[..., 0], 3))
  assert not chosen[~np.asarray(mask)].any()
  full = chosen[length[..., 0] == 10]
  # Of about 360 answers; a share of 0.3 has a deviation of 0.024.
  np.testing.assert_allclose(full.mean(0), 0.3, atol=0.1)
  # Scaled up, the mean over tokens is that of all in expectation.
  rows = looks.make().scores().attention
  stage = looks.make()
  few = term(
    *(rows, stage.prompt, REWARDS, stage.tokens, stage.mask),
    sampled_tokens=2,
  )
  assert (np.asarray(few[1, 0]) > 0).sum() == 2
  every = term(rows, stage.prompt, REWARDS, stage.tokens, stage.mask)
  at = np.asarray(few) > 0
  np.testing.assert_allclose(few[1, 0][at[1, 0]], 6 * every[1, 0][at[1, 0]])


@pytest.mark.parametrize(
  "options, message",
  [
    (
      {"background": 0.0},
      "config.losses.x: background must be in .0, 1., got 0",
    ),
    ({"background": 1.5}, "background must be in"),
    ({"sampled_tokens": 0}, "sampled_tokens must be at least 1, got 0"),
    ({"without": "ignore"}, "expected one of 'refuse', 'skip', found 'ignore'"),
  ],
)
def test_options_outside_their_range_are_refused(options, message):
  spec = {"name": "evidence_kl", **options}
  with pytest.raises(UserError, match=message):
    build.resolve(losses, spec, "config.losses.x")


def test_regions_are_needed_unless_they_are_left_out():
  needs = evidence_kl.needs_region
  assert needs() and needs(gate=0.1) and not needs(without="skip")
