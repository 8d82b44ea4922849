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
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.source import Source
from mmrl.train import collect, objective
from mmrl.train import run as run_lib
from mmrl.train import step as step_lib
from mmrl.train.method import Method
from mmrl.train.state import State
from mmrl.types import Batch, Prompt, Scores

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


class Written(Source):
  """The answers that are written above."""

  group = TOKENS.shape[1]

  def collect(self, request):
    prompt = Prompt(*(jnp.zeros((2, 1)) for _ in range(7)))
    fields = {"ended": jnp.asarray(ENDED), "logprobs_sampler": LOGPROBS}
    batch = Batch(
      prompt=prompt,
      visual=jnp.zeros((2, 1, 1)),
      tokens=jnp.asarray(TOKENS),
      mask=jnp.asarray(MASK),
      fields=fields,
    )
    layout = sharding.on_one(jax.devices()[0])
    return Answers.of(request.samples.examples, batch, layout), {}


def make_run(masked: bool) -> run_lib.Run:
  """A run without a model, whose programs give what is written above."""
  config = config_lib.get_config()
  config.rollout.update(prompts=2, answers=3, length=3)
  config.rollout.mask_truncated = masked
  layout = sharding.on_one(jax.devices()[0])
  method = Method(
    probes=[],
    probes_apart={},
    measures=[],
    advantage=bind(advantages, "group_normalised", ddof=0),
    rewards=[
      small_models.reward("accuracy", 1.0, lambda text, *_: float(text))
    ],
    token_weights=[bind(token_weights, "entropy_quantile", quantile=0.8)],
    terms=[],
    models={},
    fields=frozenset(),
  )
  run = mock.Mock(run_lib.Run)
  run.configure_mock(
    config=config,
    layout=layout,
    fixed={},
    asked={},
    frozen_vision=True,
    method=method,
    source=Written(),
    processor=mock.Mock(Processor, decode=lambda *_: list("100100")),
  )
  run.programs = types.SimpleNamespace(
    probe=lambda *_: (dict(FIELDS), {"attention/region": jnp.float32(0.5)}),
    probes_apart={},
    prepare=step_lib.make_prepare(method, layout, mask_truncated=masked),
  )
  return run


def collected(masked: bool):
  example = data.Example("question", "1", [], "kind")
  samples = mock.Mock(data.Samples, examples=[example] * 2)
  run, state = make_run(masked), mock.Mock(State)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return collect.collect(run, state, samples, 1, pool, small_models.no_more)


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


@pytest.mark.full
def test_nothing_but_answers_that_were_cut_off_is_no_gradient():
  """Not NaN: as if all groups had been dropped."""
  whole = {"weight": 1.0, "reduce": "token_mean"}
  specs = {name: whole | {"name": name} for name in TERMS}
  terms = objective.bind_terms(
    objective.resolve_terms(specs), provided=PROVIDED, remedies={}
  )
  fields = FIELDS | {
    "advantages": jnp.asarray(REWARDS),
    "token_weights": jnp.ones(MASK.shape),
    "attention_old": jnp.full((*MASK.shape, 2), 0.5),
  }
  prompt = Prompt(*7 * [None])
  mask = jnp.zeros(MASK.shape, bool)
  batch = small_models.make_batch(prompt, TOKENS, mask, **fields)
  weights = objective.reduction_coefficients(terms, batch.mask, batch.fields)

  def loss(logprobs, attention):
    scores = Scores(logprobs, jnp.ones(MASK.shape), attention)
    return objective.objective(terms, batch.context(scores), weights)

  attention = jnp.full((*MASK.shape, 2), jnp.array([0.1, 0.9]))
  slopes, (metrics, _) = jax.grad(loss, (0, 1), has_aux=True)(
    LOGPROBS, attention
  )
  assert all((x == 0).all() for x in (*slopes, *metrics.values()))
