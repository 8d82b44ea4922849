"""Tests of overlong filtering: answers that were cut off teach nothing."""

import concurrent.futures
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import advantages, build, data, token_weights
from mmrl import config as config_lib
from mmrl.machines import sharding
from mmrl.prompts.processor import Processor
from mmrl.train import collect, objective
from mmrl.train import run as run_lib
from mmrl.train import step as step_lib
from mmrl.types import Prompt, Rollout, Scores

# Two questions, three answers; 9 ends one. The second's are all cut off.
TOKENS = np.array(
  [[[1, 9, 0], [1, 2, 3], [2, 2, 9]], [[1, 1, 1], [2, 2, 2], [3, 3, 3]]]
)
MASK = TOKENS > 0
ENDED = np.array([[True, False, True], [False, False, False]])
REWARDS = np.float32([[1, 0, 0], [1, 0, 0]])
LOGPROBS = jnp.full(TOKENS.shape, -1.0)
FIELDS = {
  "logprobs_old": LOGPROBS,
  # The highest of all is in an answer that was cut off.
  "entropies_old": jnp.array(
    [[[5, 1, 0], [9, 9, 9], [1, 1, 2]], [[8, 8, 8]] * 3], jnp.float32
  ),
}

TERMS = ("clipped_ratio", "attention_jsd")
PROVIDED = (
  *("mask", "advantages", "token_weights", "logprobs", "logprobs_old"),
  *("attention", "attention_old"),
)


def bind(package, name, **options):
  return build.bind(
    package,
    {"name": name, **options},
    name,
    provided=(*FIELDS, "rewards", "mask", "advantages"),
  )


def make_run() -> run_lib.Run:
  """A run without a model, whose programs give what is written above."""
  layout = sharding.on_one(jax.devices()[0])
  reward = small_models.reward("accuracy", 1.0, lambda text, *_: float(text))
  rollout = Rollout(
    tokens=jnp.asarray(TOKENS),
    mask=jnp.asarray(MASK),
    logprobs=LOGPROBS,
    visual=jnp.zeros((2, 1, 1)),
    prefix=None,
  )
  run = mock.Mock(run_lib.Run)
  run.configure_mock(
    layout=layout,
    experts=None,
    params=None,
    params_teacher=None,
    frozen_vision=True,
    rewards=[reward],
    model_config=types.SimpleNamespace(eos_token_id=9),
  )
  run.processor = mock.Mock(
    Processor, config=run.model_config, decode=lambda *_: list("100100")
  )
  run.programs = types.SimpleNamespace(
    rollout=lambda *_: rollout,
    probe=lambda *_: (dict(FIELDS), {"attention/region": jnp.float32(0.5)}),
    prepare=step_lib.make_prepare(
      bind(advantages, "group_normalised", ddof=0),
      [bind(token_weights, "entropy_quantile", quantile=0.8)],
      layout,
    ),
  )
  return run


def collected(masked: bool):
  config = config_lib.get_config()
  config.rollout.update(prompts=2, answers=3, length=3)
  config.rollout.mask_truncated = masked
  prompt = Prompt(*(jnp.zeros((2, 1)) for _ in range(7)))
  example = data.Example("question", "1", [], "kind")
  samples = mock.Mock(data.Samples, prompt=prompt, examples=[example] * 2)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return collect.collect(
      config, make_run(), mock.Mock(step_lib.State), samples, 1, pool
    )


def test_answers_that_were_cut_off_count_in_advantages_alone():
  """Advantages are of all three answers, the highest entropy of the others."""
  plain, before = collected(False)
  batch, values = collected(True)
  np.testing.assert_array_equal(plain.mask, MASK)
  np.testing.assert_array_equal(batch.mask, MASK & ENDED[..., None])
  deviation = np.sqrt(2) / 3
  expected = np.array([[2, -1, -1]] * 2) / 3 / deviation
  for one in (plain, batch):
    found = one.fields["advantages"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_array_equal(
    batch.fields["token_weights"], np.eye(1, 18).reshape(2, 3, 3)
  )
  assert not plain.fields["token_weights"][0, 0].any()
  assert values["rollout/masked"] == pytest.approx(4 / 6)
  assert values["rollout/ended"] == pytest.approx(2 / 6)
  assert set(values) - set(before) == {"rollout/masked"}
  for name in ("reward/accuracy", "reward/mixed_groups"):
    assert values[name] == before[name]


def test_nothing_but_answers_that_were_cut_off_is_no_gradient():
  """Not NaN: as if all groups had been dropped."""
  whole = {"weight": 1.0, "reduce": "token_mean"}
  specs = {name: whole | {"name": name} for name in TERMS}
  terms = objective.build_terms(specs, provided=PROVIDED, remedies={})
  fields = FIELDS | {
    "mask": jnp.zeros(MASK.shape, bool),
    "advantages": jnp.asarray(REWARDS),
    "token_weights": jnp.ones(MASK.shape),
    "attention_old": jnp.full((*MASK.shape, 2), 0.5),
  }
  weights = objective.reduction_weights(terms, fields["mask"], fields)

  def loss(logprobs, attention):
    scores = Scores(logprobs, jnp.ones(MASK.shape), attention)
    return objective.objective(terms, scores, fields, weights)

  attention = jnp.full((*MASK.shape, 2), jnp.array([0.1, 0.9]))
  slopes, metrics = jax.grad(loss, (0, 1), has_aux=True)(LOGPROBS, attention)
  assert all((x == 0).all() for x in (*slopes, *metrics.values()))
