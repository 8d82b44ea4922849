"""Placebos: the same values, given to other answers."""

import dataclasses

import jax.numpy as jnp
import looks
import numpy as np
import pytest

from mmrl import build, losses
from mmrl.controls.placebo import PLACEBOS, hash_answers, permute
from mmrl.errors import UserError
from mmrl.prompts import regions
from mmrl.rewards import needs
from mmrl.rollouts import answers as answers_lib
from mmrl.train import objective

VALUES = jnp.array([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
LENGTHS = np.array([[1, 3, 2], [4, 4, 1]])
MASK = jnp.asarray(np.arange(4) < LENGTHS[..., None])
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 99, MASK.shape))


def test_length_golden():
  """The longest has the largest; of two as long either may have it."""
  found = permute("length", VALUES, TOKENS, MASK)
  assert found[0].tolist() == [1.0, 3.0, 2.0]
  assert found[1, 2] == 0 and sorted(found[1].tolist()) == [0.0, 0.0, 5.0]


@pytest.mark.parametrize("kind", PLACEBOS)
def test_the_values_of_a_group_stay(kind):
  found = permute(kind, VALUES, TOKENS, MASK)
  np.testing.assert_array_equal(np.sort(found), np.sort(VALUES))


@pytest.mark.parametrize("kind", PLACEBOS)
def test_values_of_tokens_go_with_their_answer(kind):
  each = jnp.broadcast_to(VALUES[..., None], MASK.shape)
  found = permute(kind, each, TOKENS, MASK)
  wanted = permute(kind, VALUES, TOKENS, MASK)
  np.testing.assert_array_equal(
    found, jnp.broadcast_to(wanted[..., None], MASK.shape)
  )


def test_padding_and_place_never_matter():
  wide = [jnp.pad(x, ((0, 0), (0, 0), (0, 5))) for x in (TOKENS + 1, MASK)]
  noise = wide[0] + 7 * ~wide[1]
  np.testing.assert_array_equal(
    hash_answers(noise, wide[1]), hash_answers(TOKENS + 1, MASK)
  )


def test_random_is_independent_of_values_and_length():
  """Correlations over 2,000 groups of four; their error is 1 / sqrt(8,000)."""
  rng = np.random.default_rng(1)
  values = jnp.asarray(rng.normal(size=(2000, 4)))
  lengths = rng.integers(1, 9, (2000, 4, 1))
  mask = jnp.asarray(np.arange(8) < lengths)
  tokens = jnp.asarray(rng.integers(0, 999, mask.shape))
  found = np.asarray(permute("random", values, tokens, mask))
  for other in (np.asarray(values), lengths[..., 0]):
    other = other - other.mean(1, keepdims=True)
    assert abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("kind, near", [("randm", "random"), (1, "")])
def test_kinds_are_known(kind, near):
  spec = {"weight": 1.0, "placebo": kind}
  with pytest.raises(UserError, match=f"x.placebo: expected one of.*{near}"):
    answers_lib.take_settings(spec, "x", ())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"placebo": "rolled"},
      "or rolled=True beside a function that reads a reg",
    ),
    ({"rolled": True}, "attention_jsd has no option rolled; valid options"),
  ],
)
def test_a_term_without_a_region_has_none_to_roll(options, message):
  spec = {"name": "attention_jsd", "weight": 1.0, "reduce": "token_mean"}
  with pytest.raises(UserError, match=f"config.losses.a.*{message}"):
    objective.resolve_terms({"a": spec | options})


def test_data_without_a_region_has_none_to_roll():
  """Rolled or not."""
  spec = {"name": "evidence_kl", "rolled": True}
  given = ("attention", "prompt", "rewards", "tokens", "mask")
  bound = build.bind(losses, spec, "config.losses.a", provided=given)

  class Source:
    def regions(self):
      return [("q1", True), ("q2", False), ("q3", False)]

  with pytest.raises(
    UserError, match="config.losses.a: .* none in q2 and 1 mo"
  ):
    needs.require_all([bound], Source())


def test_a_term_reads_advantages():
  spec = {"name": "likelihood", "weight": 1.0, "reduce": "token_mean"}
  with pytest.raises(UserError, match="a.placebo: expected a term that reads"):
    objective.resolve_terms({"a": spec | {"placebo": "random"}})


def test_a_region_is_rolled_by_half_of_the_visual_tokens():
  """And back by another half; text stays."""
  prompt = looks.ask()
  other = regions.rolled(prompt)
  visual = np.asarray(prompt.visual_index) >= 0
  for name in ("region", "evidence"):
    before, after = (np.asarray(getattr(x, name)) for x in (prompt, other))
    for p, places in enumerate(visual):
      half = places.sum() // 2
      np.testing.assert_array_equal(
        after[p][places], np.roll(before[p][places], half)
      )
      np.testing.assert_array_equal(after[p][~places], before[p][~places])
  assert dataclasses.replace(
    other, region=prompt.region, evidence=prompt.evidence
  )
