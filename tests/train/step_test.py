"""Tests of the training step: whole updates of a whole model."""

import concurrent.futures
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
import toys

from mmrl import config as config_lib
from mmrl import data
from mmrl.data import pipeline
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.models import parameters
from mmrl.rollouts.source import Request
from mmrl.train import collect, loop
from mmrl.train import parts as parts_lib
from mmrl.train import run as run_lib
from mmrl.types import Batch
from mmrl.workdir import log as log_lib

UPDATES = 4


def make_config(weight: float | None = None, row: str = "self"):
  """GRPO, or with a weight RAL, on the model that ships with the library.

  Plain momentum instead of Adam: where a gradient is zero but for rounding,
  Adam makes a whole step of the rounding.
  """
  config = config_lib.get_config()
  config.models.policy.remat = False
  config.rollout.prompts = config.rollout.answers = UPDATES
  config.rollout.length = 6
  config.rollout.temperature = 2.0  # answers differ, whatever the weights
  config.train.minibatches = UPDATES
  config.attention.row = row
  config.shares.every = 1000
  config.optimizer = {"name": "sgd", "momentum": 0.9}
  config.schedule = {"name": "constant_schedule", "value": 0.02}
  return config if weight is None else config_lib.add_ral(config, weight)


@functools.cache
def build(weight: float | None, row: str) -> run_lib.Run:
  return run_lib.build_run(make_config(weight, row), jax.devices()[:1])


def make_samples(run: run_lib.Run) -> data.Samples:
  """Noise and a question about it."""

  def example(i: int) -> data.Example:
    part = {
      "type": "image",
      "image": small_models.picture(32, 32, seed=i),
      "region": (0.0, 0.0, 16.0, 16.0),
    }
    text = {"type": "text", "text": "what is it?"}
    messages = [{"role": "user", "content": [part, text]}]
    return data.Example(f"question {i}", "what is it?", messages, "noise")

  examples = [example(i) for i in range(UPDATES)]
  rows = [(e, run.processor.encode(e.messages, e.name)) for e in examples]
  return pipeline.collate(
    rows, run.processor, lengths=(), patches=(), pack=run.pack
  )


def with_advantages(batch: Batch) -> Batch:
  """Whatever the answers were, some are better than others."""
  advantages = np.random.default_rng(0).normal(size=batch.mask.shape[:2])
  advantages -= advantages.mean(axis=1, keepdims=True)
  return batch.with_fields(advantages=jnp.asarray(advantages, jnp.float32))


@functools.cache
def collected(row: str) -> Batch:
  """A rollout batch of the model as it is at the start."""
  run = build(1.0, row)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    batch, _ = collect_of(run, run.initial_state(), make_samples(run), 1, pool)
  return with_advantages(batch)


def collect_of(run: run_lib.Run, state, samples: data.Samples, step, pool):
  """A step of a run that never asks for further questions."""
  return collect.collect(run, state, samples, step, pool, small_models.no_more)


@functools.cache
def trajectory(weight: float | None, row: str):
  """Parameters and metrics after each update on one rollout batch."""
  run, batch = build(weight, row), collected(row)
  state, states = run.initial_state(), []
  for i in range(UPDATES):
    state, measured = run.programs.update(state, run.fixed, batch, np.int32(i))
    # The next update is given the state's memory.
    states.append((jax.tree.map(jnp.copy, state), jax.device_get(measured)))
  return states


def largest_difference(one, two) -> float:
  differences = jax.tree.map(
    lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), one, two
  )
  return max(jax.tree.leaves(differences))


@pytest.mark.full
def test_weight_zero_is_the_program_without_the_term():
  batch = collected("self")
  without, zero, one = (
    run.programs.update.lower(
      run.initial_state(), run.fixed, batch, np.int32(0)
    ).as_text()
    for run in (build(None, "self"), build(0.0, "self"), build(1.0, "self"))
  )
  assert zero == without and one != without


@pytest.mark.full
def test_attention_term_acts_from_the_second_update_on():
  """At theta_old it is zero in value and gradient: one update is GRPO's."""
  start, _ = parameters.partition(build(None, "self").params, ("vision/.*",))
  plain, looking = trajectory(None, "self"), trajectory(1.0, "self")
  moved = largest_difference(plain[0][0].trainable, start)
  differences = [
    largest_difference(one.trainable, two.trainable)
    for (one, _), (two, _) in zip(plain, looking, strict=True)
  ]
  assert differences[0] < 1e-4 * moved
  assert all(d > 1e-3 * moved for d in differences[1:])


@pytest.mark.full
@pytest.mark.parametrize(
  "row", ["self", pytest.param("emit", marks=pytest.mark.full)]
)
def test_divergence_is_zero_at_the_first_update_and_not_after(row):
  """Old and current attention come from one function at one precision."""
  measured = [m for _, m in trajectory(1.0, row)]
  assert 0 <= measured[0]["attention/jsd_mean"] <= 1e-10
  assert abs(measured[0]["loss/attention"]) <= 1e-10
  assert measured[0]["policy/ratio_deviation"] <= 1e-5
  assert abs(measured[0]["loss/kl"]) <= 1e-8
  for later in measured[1:]:
    assert later["attention/jsd_mean"] > 1e-8
    assert later["loss/attention"] != 0


@pytest.mark.full
def test_rows_self_and_emit_are_two_policies():
  one, two = (
    collected(row).fields["attention_old"] for row in ("self", "emit")
  )
  assert one.shape == two.shape
  assert largest_difference(one, two) > 1e-3
  for rows in (one, two):
    np.testing.assert_allclose(
      rows.sum(-1), np.ones(rows.shape[:-1]), rtol=1e-5
    )


PERCENT = [f"rollout/sampler_scorer_outside_{n}_percent" for n in (1, 10)]


def sampled(run: run_lib.Run) -> Batch:
  """Answers as they are before the probes."""
  request = Request(
    state=run.initial_state(),
    samples=make_samples(run),
    key=jax.random.key(1),
    more=small_models.no_more,
    grade=lambda answers: answers,
  )
  answers, _ = run.source.collect(request)
  return answers.batch


@pytest.mark.full
def test_tokens_that_the_scorer_finds_off_are_counted():
  """None in float32; then the record of the first tokens is moved.

  exp(-0.05) = 1 - 4.9 %, exp(0.25) = 1 + 28 %.
  """
  run = build(1.0, "self")
  state, batch = run.initial_state(), sampled(run)

  def probed(logprobs):
    moved = batch.with_fields(logprobs_sampler=logprobs)
    _, measured = run.programs.probe(state, run.fixed, moved)
    return measured

  measured = probed(batch.fields["logprobs_sampler"])
  assert measured["rollout/sampler_scorer_gap"] < 1e-4
  assert [measured[name] for name in PERCENT] == [0, 0]
  # What stands behind the end of an answer never counts.
  recorded = jnp.where(batch.mask, batch.fields["logprobs_sampler"], 9.0)
  share = float(batch.mask[..., 0].sum() / batch.mask.sum())
  assert 0 < share < 1
  for shift, expected in ((0.05, [share, 0]), (-0.25, [share, share])):
    measured = probed(recorded.at[..., 0].add(shift))
    assert [measured[name] for name in PERCENT] == pytest.approx(expected)
    gap = measured["rollout/sampler_scorer_gap"]
    assert gap == pytest.approx(abs(shift), abs=1e-4)


@pytest.mark.full
def test_bfloat16_leaves_a_tenth_of_the_probability_rarely():
  """Random weights, 1,500 tokens: none is exact, under 1 % are 10 % off."""
  model = small_models.small_config(dtype="bfloat16", remat=False)
  chats = small_models.conversations()
  config = make_config()
  config.rollout.update(
    prompts=len(chats), answers=32, length=16, temperature=1.0
  )
  config.train.minibatches = 1
  parts = parts_lib.build_parts(
    config, model, sharding.on_one(jax.devices()[0]), {}
  )
  params = small_models.make_params(model)
  prompt = small_models.make_processor(model)(chats)
  samples = data.Samples(
    [data.Example("question", "?", [], "noise")] * len(chats),
    prompt,
    shrunk=0,
    grids=[None] * len(chats),
  )
  state = parts.first_state(params)
  request = Request(
    state,
    samples,
    jax.random.key(0),
    small_models.no_more,
    lambda answers: answers,
  )
  answers, _ = parts.source.collect(request)
  fixed = {"reference": params}
  _, measured = parts.programs.probe(state, fixed, answers.batch)
  one, ten = (measured[name] for name in PERCENT)
  assert ten < 0.01 and ten <= one
  assert measured["rollout/sampler_scorer_gap"] > 1e-3


@pytest.mark.full
def test_vision_tower_and_projector_stay():
  run = build(1.0, "self")
  first, last = run.initial_state(), trajectory(1.0, "self")[-1][0]
  assert run.frozen_vision
  assert {p.split("/")[0] for p in first.trainable} == {"text"}
  assert {p.split("/")[0] for p in first.frozen} == {"vision"}
  assert any(path.startswith("vision/merger/") for path in first.frozen)
  jax.tree.map(
    np.testing.assert_array_equal, last.params["vision"], run.params["vision"]
  )
  for path, leaf in last.trainable.items():
    assert not np.array_equal(leaf, first.trainable[path]), path


@pytest.mark.full
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_vision_has_no_optimizer_state(name):
  spec = {"momentum": 0.9} if name == "sgd" else {"weight_decay": 0.1}
  transform = parts_lib.make_optimizer(
    {"name": name} | spec, {"name": "constant_schedule", "value": 1.0}, 1.0
  )
  trainable, frozen = parameters.partition(
    build(1.0, "self").params, ("vision/.*",)
  )
  paths = jax.tree_util.tree_flatten_with_path(transform.init(trainable))[0]
  names = {
    str(key.key) for path, _ in paths for key in path if hasattr(key, "key")
  }
  assert names == set(trainable)
  assert not names & set(frozen)


@pytest.mark.full
def test_collect_and_learn_compile_in_the_first_steps_only():
  run = build(1.0, "self")
  state, samples = run.initial_state(), make_samples(run)
  compilations = log_lib.Compilations()
  jax.jit(lambda x: x + 1)(jnp.ones(3))
  assert compilations.count > 0  # it does count
  counts = []
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for step in range(1, 5):
      batch, values = collect_of(run, state, samples, step, pool)
      state, values = loop.learn(run, state, batch, values, step, 0)
      state = run.at_step(state, step)
      counts.append(compilations.count)
      assert all(np.isfinite(v) for v in values.values())
  assert counts[1] == counts[2] == counts[3]


@pytest.mark.full
def test_a_slow_reward_leaves_the_device_idle():
  """The share of a step in which it has work, once all is compiled."""
  run = build(1.0, "self")
  state, samples = run.initial_state(), make_samples(run)
  rollout = run.config.rollout

  def share(seconds, state):
    def reward(text, length, example):
      time.sleep(seconds / rollout.prompts / rollout.answers)
      return 0.0

    slow = small_models.reward("slow", 1.0, reward)
    slow = small_models.with_rewards(run, slow)
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(UPDATES + 1) as pool:
      batch, values = collect_of(slow, state, samples, 1, pool)
    collected = values["time/device"]
    state, values = loop.learn(slow, state, batch, values, 1, 0)
    assert 0 < collected < values["time/device"]
    return values["time/device"] / (time.perf_counter() - began), state

  _, state = share(0.0, state)
  quick, state = share(0.0, state)
  slow, _ = share(0.5, state)
  assert 0 < slow < quick <= 1


@functools.cache
def build_adam() -> run_lib.Run:
  """A rate, a decay and an average that nobody overlooks."""
  config = make_config(1.0)
  config.optimizer = {"name": "adamw", "weight_decay": 0.1}
  config.schedule = {"name": "constant_schedule", "value": 1e-2}
  config.models.average = {"name": "Average", "decay": 0.5, "every": 1}
  toys.install()
  config.losses.size = {"name": "size", "weight": 1.0, "reduce": "prompt_mean"}
  return run_lib.build_run(config, jax.devices()[:1])


@pytest.mark.full
def test_a_minibatch_without_a_signal_makes_no_step():
  """All rewards of it are equal, and the policy is the reference."""
  run, batch = build_adam(), collected("self")
  none = jnp.zeros_like(batch.fields["advantages"])
  second = batch.with_fields(advantages=none.at[1, 0].set(1.0))
  state = run.initial_state()
  before = jax.device_get(state)
  for minibatch in (0, 2, 3):
    state, measured = run.programs.update(
      state, run.fixed, second, np.int32(minibatch)
    )
    assert measured["gradient/skipped"] == 1
    # What Adam would have made whole steps of.
    assert 0 <= measured["gradient/norm"] < 1e-5
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
  state, measured = run.programs.update(state, run.fixed, second, np.int32(1))
  assert measured["gradient/skipped"] == 0
  assert largest_difference(state.trainable, before.trainable) > 1e-3
  # The policy has left the reference: the KL alone is a signal.
  state, measured = run.programs.update(state, run.fixed, second, np.int32(2))
  assert measured["gradient/skipped"] == 0
  assert int(state.averages["average"].updates) == 2


@pytest.mark.full
def test_loss_that_is_no_number_stops_the_run():
  run, batch = build(1.0, "self"), collected("self")
  bad = batch.fields["advantages"].at[1, 0].set(jnp.nan)
  batch = batch.with_fields(advantages=bad)
  with pytest.raises(
    UserError,
    match=r"\S+ is nan at step 7, update 2; .* checkpoint is of step 5",
  ):
    loop.learn(run, run.initial_state(), batch, {}, 7, 5)
