"""A term that has a share of the gradient, in whole steps."""

import concurrent.futures

import jax
import pytest
import small_models

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.train import collect, loop
from mmrl.train import run as run_lib


def make_config(share, **options):
  config = config_lib.get_config()
  config.rollout.update(prompts=8, answers=4, length=6)
  config.train.minibatches = 2
  config.schedule.value = 1e-2
  # All answers of a group are of one length, or some are better.
  config.rewards.length = {
    "name": "soft_overlong",
    "weight": 1.0,
    "longest": 6,
    "buffer": 4,
  }
  return config_lib.add_ral(config, weight={"share": share} | options)


def steps(config, count):
  run = run_lib.build_run(config, jax.devices()[:1])
  state = run.initial_state()
  questions = loop.read_questions(run)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for step in range(1, count + 1):
      batch, values = collect.collect(
        *(run, state, next(questions), step, pool, small_models.no_more)
      )
      state, values = loop.learn(run, state, batch, values, step, 0)
      yield values
  questions.close()


@pytest.mark.full
def test_a_term_has_its_share():
  """Before the second of two updates, when its gradient is the first not 0.

  Where all advantages are 0, it has none. The weight of the first update of a
  step is what the step before has measured, 0 in the first step.
  """
  before, measured = 0.0, 0
  for values in steps(make_config(0.3, over=1, most=1e9), 3):
    share, weight = (
      values[f"{name}attention"] for name in ("gradient/share_", "weight/")
    )
    assert values["first/weight/attention"] == before
    if share:
      # A quotient of float32 sums.
      assert share == pytest.approx(0.3, abs=1e-4) and weight != before
      measured += 1
    else:
      assert weight == before
    before = weight
  assert measured


@pytest.mark.full
def test_the_largest_weight_holds():
  (values,) = steps(make_config(0.9, most=2.0), 1)
  assert values["weight/attention"] == 2.0
  assert values["gradient/share_attention"] < 0.9


def test_shares_must_be_measured():
  config = make_config(0.3)
  config.shares.every = 0
  with pytest.raises(UserError, match="config.losses.attention.weight: exp"):
    run_lib.build_run(config, jax.devices()[:1])
