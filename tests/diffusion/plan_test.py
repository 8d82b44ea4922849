"""Plans of caches: worked values, and what they refuse."""

import dataclasses

import numpy as np
import pytest

from mmrl.diffusion import macs, plan
from mmrl.diffusion.plan import HGCConfig
from mmrl.errors import UserError

ONE = {"encoder_blocks": 1, "decoder_blocks": 1}
EVERY = tuple(range(20))
# MACs of Stable Diffusion 1.5 at 512 x 512, in T, as the paper's totals fit.
COST = macs.Cost(0.117, (0.117,), (0.222,))
FEATURES = np.array(
  [(1, 0), (1, 0.1), (1, 0.6), (0.5, 1), (0.4, 1), (0, 1), (0, 1)], float
)


def bits(text: str) -> list[bool]:
  return [x == "1" for x in text]


@pytest.mark.parametrize(
  ("density", "steps"),
  [
    (1, range(20)),
    (0.5, range(0, 20, 2)),
    (0.25, range(0, 20, 4)),
    (0.3, (0, 4, 7, 10, 14, 17)),
    (0.4, (0, 3, 5, 8, 10, 13, 15, 18)),
    (0.1, (0, 10)),
  ],
)
def test_a_density_refreshes_at_equal_distances(density, steps):
  assert [j for j in range(20) if plan.refresh(j, density)] == [*steps]


def test_the_tables_of_six_steps():
  made = plan.plan(HGCConfig((0, 2, 4), (0, 3), 3, 0.5, 0.5), steps=6, **ONE)
  assert made.control.tolist() == bits("101010")
  assert made.encoder[:, 0].tolist() == bits("100100")
  assert made.decoder[:, 0].tolist() == bits("101010")
  assert made.self_attention[:, 0].tolist() == bits("100010")
  assert made.cross_attention[:, 0].tolist() == bits("101000")
  assert made.branches.tolist() == [2, 2, 2, 1, 1, 1]
  assert made.gate == 3
  assert macs.macs(made, macs.Cost(1, (1,), (2,))) == 18
  assert macs.macs(plan.full(6, 1, 1), macs.Cost(1, (1,), (2,))) == 48


@pytest.mark.parametrize(
  ("changes", "total"),
  [
    ({}, 6.606),
    ({"inter": 1.0}, 9.936),
    ({"inter": 1.0, "intra": 1.0, "gate": 20}, 12.624),
    (
      {"key_control": EVERY, "key_encoder": EVERY}
      | {"inter": 1.0, "intra": 1.0, "gate": 20},
      18.24,
    ),
  ],
)
def test_macs_of_twenty_steps(changes, total):
  made = plan.plan(HGCConfig(**changes), steps=20, **ONE)
  assert macs.macs(made, COST) == pytest.approx(total, abs=1e-9)


def test_attention_that_is_read_costs_nothing():
  made = plan.plan(HGCConfig((0,), (0,), 2, 1.0, 0.5), steps=4, **ONE)
  cost = macs.Cost(0, (0,), (10,), decoder_cross=(2,), decoder_self=(3,))
  # Two branches with both, two without self-attention; one with it, one not.
  assert macs.macs(made, cost) == 2 * 10 + 2 * 7 + (10 - 2) + (10 - 2 - 3)


def test_key_steps_are_where_features_change():
  cosines = [plan._cosine(*FEATURES[i : i + 2][::-1]) for i in range(6)]
  np.testing.assert_allclose(
    cosines, [0.995037, 0.904432, 0.843661, 0.996546, 0.928477, 1], atol=1e-6
  )
  pick = plan.pick_key_steps
  assert pick(FEATURES, count=1) == (0,)
  assert pick(FEATURES, count=3) == (0, 2, 3)
  assert pick(FEATURES, count=4) == (0, 2, 3, 5)
  assert pick(FEATURES, tau=0.9) == pick(FEATURES, tau=0.95) == (0, 2, 3, 5)
  assert pick(FEATURES, tau=0.5) == (0, 3)
  assert pick(FEATURES, tau=-1.0) == (0,)
  assert pick(FEATURES, tau=1.1) == tuple(range(7))
  # Equal cosines: the earlier step. A feature of zeros is like nothing.
  assert pick(np.ones((4, 2)), count=2) == (0, 1)
  assert pick(np.array([[1.0, 0], [0, 0], [0, 1]]), tau=0.5) == (0, 1, 2)


def test_what_is_like_deepcache_computes_the_outer_blocks_always():
  made = plan.shallow(6, 3, 3, 2)
  assert made.encoder[:, 0].all() and made.decoder[:, 1].all()
  assert made.encoder[:, 1].tolist() == bits("100100")
  assert made.decoder[:, 0].tolist() == made.control.tolist() == bits("100100")
  assert made.gate == 6


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"key_control": (1, 2)}, "key_control: expected steps in order.*first is"),
    ({"key_encoder": ()}, "key_encoder: expected steps.*found none"),
    ({"key_encoder": (0, 2, 1)}, "key_encoder: expected steps in order"),
    (
      {"key_encoder": (0, 0)},
      "key_encoder: expected steps in order, each once",
    ),
    ({"key_control": (0, 20)}, "key_control: .* from 0 to 19, found 20"),
    ({"gate": 0}, "gate: expected a whole number from 1 to 20, found 0"),
    ({"gate": 21}, "gate: expected a whole number from 1 to 20, found 21"),
    ({"gate": True}, "gate: expected a whole number"),
    ({"inter": 0.0}, "inter: expected a density above 0 and up to 1, found 0"),
    ({"inter": 1.01}, "inter: expected a density"),
    ({"intra": -0.5}, "intra: expected a density"),
    ({"intra": float("nan")}, "intra: expected a density"),
    (
      {"inter": (0.5, 0.5)},
      "inter: expected one density, or one for each of 1",
    ),
  ],
)
def test_what_is_no_plan_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    plan.plan(HGCConfig(**fields), steps=20, **ONE)


def test_key_steps_by_both_or_neither_are_refused():
  for options in ({}, {"tau": 0.5, "count": 2}):
    with pytest.raises(UserError, match="expected one of tau and count"):
      plan.pick_key_steps(FEATURES, **options)
  with pytest.raises(UserError, match="count: expected a whole number"):
    plan.pick_key_steps(FEATURES, count=8)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("control", "plan.control: .* read before it is written"),
    ("encoder", "plan.encoder: .* read before it is written"),
    ("decoder", "plan.decoder: .* read before it is written"),
    ("self_attention", "plan.self_attention: .* before it is written"),
    ("branches", "plan.branches: expected 2 up to a gate"),
    ("cross_attention", "plan.cross_attention: expected it in each block"),
  ],
)
def test_tables_of_ones_own_are_checked(name, message):
  made = plan.full(4, 2, 2)
  other = np.zeros_like(getattr(made, name))
  with pytest.raises(UserError, match=message):
    dataclasses.replace(made, **{name: other}).check()
