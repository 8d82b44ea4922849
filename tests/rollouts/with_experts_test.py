"""Tests of expert trajectories as further answers of a group."""

import dataclasses
import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import config as config_lib
from mmrl import data
from mmrl.advantages import expert_group_normalised
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.with_experts import append, choose
from mmrl.train import run as run_lib
from mmrl.types import Batch, Prefix, Prompt
from rollouts.refilled_test import (
  LENGTH,
  QUESTIONS,
  collect_batch,
  grpo_config,
  learn,
)

# Two questions, two answers and two experts, three tokens.


class FakeExperts(data.Trajectories):
  """Rows by the name of the question, of no file."""

  ROWS = {"a": [[7, 8, 9], [7, 8, 0]], "b": [[5, 0, 0], [0, 0, 0]]}

  def __init__(self):
    pass

  def rows(self, examples):
    tokens = np.array([self.ROWS[e.name] for e in examples], np.int32)
    return data.trajectories.Rows(tokens, tokens > 0, [])


def fake_answers(layout: sharding.Layout) -> Answers:
  tokens = np.array([[[1, 2, 3], [1, 2, 0]], [[4, 0, 0], [4, 4, 0]]], np.int32)
  logprobs = -tokens.astype(np.float32)
  ended = np.array([[True, False], [False, True]])
  batch = Batch(
    prompt=Prompt(*7 * [None]),
    visual=None,
    tokens=layout.put(tokens),
    mask=layout.put(tokens > 0),
    fields=layout.put({"ended": ended, "logprobs_sampler": logprobs}),
    prefix=Prefix(*5 * [None]),
  )
  examples = [data.Example(name, "?", [], "!") for name in "ab"]
  return Answers.of(examples, batch, layout)


def make_layout(devices: int) -> sharding.Layout:
  sizes = {"data": devices, "fsdp": 1, "tensor": 1}
  return sharding.Layout(sharding.make_mesh(sizes, jax.devices()[:devices]))


@pytest.mark.parametrize("devices", [1, 2])
def test_append_by_hand(devices):
  layout = make_layout(devices)
  answers = fake_answers(layout)
  found = append(answers, FakeExperts(), layout)
  expected = [
    [[1, 2, 3], [1, 2, 0], [7, 8, 9], [7, 8, 0]],
    [[4, 0, 0], [4, 4, 0], [5, 0, 0], [0, 0, 0]],
  ]
  batch, whole = found.batch, np.array(expected) > 0
  for x in (found, batch):
    np.testing.assert_array_equal(x.tokens, expected)
    np.testing.assert_array_equal(x.mask, whole)
  fields = batch.fields
  assert set(fields) == {"ended", "logprobs_sampler", "sampled"}
  np.testing.assert_array_equal(fields["sampled"], 2 * [[1, 1, 0, 0]])
  # A trajectory has its end; what is no trajectory has none.
  np.testing.assert_array_equal(fields["ended"], [[1, 0, 1, 1], [0, 1, 1, 0]])
  old, logprobs = answers.batch.fields, fields["logprobs_sampler"]
  np.testing.assert_array_equal(logprobs[:, :2], old["logprobs_sampler"])
  np.testing.assert_array_equal(logprobs[:, 2:], 0)
  for x in (batch.tokens, batch.mask, *fields.values()):
    assert x.sharding.is_equivalent_to(layout.prompts, x.ndim)


SETTINGS = {
  "accuracy": "accuracy",
  "form": "format",
  "solved": 0.5,
  "quantile": 0.0,
}
RIGHT = [[0, 0, 1, 1], [0, 0, 1, 1]]
# Of the trajectories' tokens; what stands off their masks is never read.
LOGPROBS = np.log(
  [
    [[0.5, 0.25, 0.75], [0.125, 0.375, np.nan]],
    [[1, np.nan, np.nan], 3 * [np.nan]],
  ]
)


@pytest.mark.parametrize(
  "changes, dropped, kept, used, probability",
  [
    # The mean probability is (0.5 + 0.25 + 0.75 + 0.125 + 0.375 + 1) / 6.
    ({}, (), [[1, 1], [1, 0]], 1.0, 0.5),
    # The means of the logarithms are -0.79, -1.53 and 0.
    ({"quantile": 0.4}, (), [[1, 0], [1, 0]], 1.0, 0.625),
    (
      {"accuracy": [[0, 0, 1, 0], [0, 0, 0, 1]]},
      (),
      [[1, 0], [0, 0]],
      0.5,
      0.5,
    ),
    (
      {"accuracy": [[0, 1, 1, 1], [1, 1, 1, 1]], "solved": 1.0},
      (),
      [[1, 1], [0, 0]],
      0.5,
      0.4,
    ),
    ({"format": [[1, 1, 0, 1], [1, 1, 0, 1]]}, (), [[0, 1], [0, 0]], 0.5, 0.25),
    # Without a reward for the form, none is read.
    ({"form": ""}, (), [[1, 1], [1, 0]], 1.0, 0.5),
    ({"accuracy": np.zeros((2, 4))}, (), [[0, 0], [0, 0]], 0.0, 0.0),
    # A group that was dropped has no expert, nor counts in a quantile.
    ({}, (0,), [[0, 0], [1, 0]], 0.5, 1.0),
    ({"quantile": 0.9}, (1,), [[1, 0], [0, 0]], 0.5, 0.5),
  ],
)
def test_choose_by_hand(changes, dropped, kept, used, probability):
  changes, parts = dict(changes), {}
  for name, default in (("accuracy", RIGHT), ("format", np.ones((2, 4)))):
    parts[name] = np.array(changes.pop(name, default), np.float32)
  layout = make_layout(1)
  answers = append(fake_answers(layout), FakeExperts(), layout)
  answers = dataclasses.replace(answers, parts=parts)
  chosen = np.ones((2, 2), bool)
  chosen[list(dropped)] = False
  own = np.full((2, 2, 3), np.nan)
  logprobs = np.concatenate([own, LOGPROBS], axis=1).astype(np.float32)
  found, values = choose(answers, chosen, logprobs, **SETTINGS | changes)
  np.testing.assert_array_equal(found, np.array(kept, bool))
  assert values == pytest.approx(
    {"experts/used": used, "experts/probability": probability}
  )


# Whole steps of the model that ships with the library.

COUNT, GROUP = 2, QUESTIONS


def formed(answer: str) -> str:
  return f"<think>blue</think><answer>{answer}</answer>"


# Of the first four questions of easy-VQA, whose answers are rectangle, blue,
# yes and no. Two right ones; a wrong one and a right one; a right one of
# another form and a right one; none.
FILE = {
  0: [formed("rectangle"), "<think></think><answer>rectangle</answer>"],
  1: [formed("green"), formed("blue")],
  2: ["<answer>yes</answer>", formed("yes")],
}
RIGHT_ONES = np.array([[1, 1], [0, 1], [0, 1], [0, 0]], bool)
WRONG = {0: [formed("circle")], 1: [formed("red")], 3: [formed("circle")]}


def write(folder, name, lines):
  path = folder / name
  rows = [
    {"name": f"easy_vqa/train/{i}", "text": text}
    for i, texts in lines.items()
    for text in texts
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return write(tmp_path_factory.mktemp("experts"), "experts.jsonl", FILE)


@functools.cache
def make_config(path: str = "", rounds: int = 0):
  """GRPO, or with a file of experts TGRL; groups may be drawn again."""
  config = grpo_config()
  config.rewards.accuracy.weight = 1.0
  config.shares = {"every": 1000, "prompts": 1}
  if rounds:
    config_lib.wrap_rollout(
      config, name="refilled", rounds=rounds, reward="accuracy"
    )
  if path:
    config_lib.wrap_rollout(
      config,
      name="with_experts",
      path=path,
      accuracy="accuracy",
      format="format",
      count=COUNT,
      solved=1.0,
    )
    config.advantage = {"name": "expert_group_normalised"}
    config.losses.policy = {
      "name": "expert_shaped",
      "weight": 1.0,
      "reduce": "token_mean",
    }
  return config


@functools.cache
def build(path: str = "", rounds: int = 0) -> run_lib.Run:
  return run_lib.build_run(make_config(path, rounds), jax.devices()[:1])


def one_step(run: run_lib.Run):
  """Batch, parameters and metrics of one update."""
  batch, values = collect_batch(run)
  state, values = learn(run, batch, values)
  return jax.device_get(batch), jax.device_get(state.trainable), values


def half_right(run: run_lib.Run, right=(), wrong=()) -> run_lib.Run:
  """The run where experts' texts are right in `FILE`, and half of all others.

  To the questions `right` is any answer right that isn't empty, to `wrong` none
  but the experts'.
  """
  known = {text: 0.0 for texts in WRONG.values() for text in texts}
  known |= {text: 1.0 for texts in FILE.values() for text in texts}

  def accuracy(text, length, example):
    if text in known:
      return known[text]
    number = int(example.name.rsplit("/")[-1])
    if number in right:
      return float(length > 0)
    return float(zlib.crc32(text.encode()) % 2 and number not in wrong)

  graded = small_models.reward("accuracy", 1.0, accuracy)
  _, *others = run.method.rewards
  return small_models.with_rewards(run, graded, *others)


def check_advantages(batch):
  """They are those of sampled answers and experts together."""
  rewards, sampled, found = (
    jnp.asarray(batch.fields[x]) for x in ("rewards", "sampled", "advantages")
  )
  expected = expert_group_normalised(rewards, jnp.asarray(batch.mask), sampled)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_experts_are_the_last_of_each_group(path):
  run = build(path)
  batch, trainable, values = one_step(run)
  assert batch.tokens.shape == (QUESTIONS, GROUP + COUNT, LENGTH)
  np.testing.assert_array_equal(
    batch.fields["sampled"], QUESTIONS * [[1] * GROUP + [0] * COUNT]
  )
  own, others = batch.mask[:, :GROUP], batch.mask[:, GROUP:]
  assert own.any(-1).all()
  assert values["reward/accuracy"] == 0
  kept = RIGHT_ONES
  np.testing.assert_array_equal(others.any(-1), kept)
  for p, k in zip(*np.nonzero(kept), strict=True):
    (text,) = run.processor.decode(
      batch.tokens[p, GROUP + k][None], others[p, k][None]
    )
    assert text == FILE[p][k]
  np.testing.assert_allclose(
    batch.fields["rewards"][:, GROUP:][kept], 1.1, rtol=1e-6
  )
  check_advantages(batch)
  assert (batch.fields["advantages"][:, GROUP:][kept] > 0).all()
  assert values["experts/used"] == kept.any(1).mean()
  likely = np.exp(batch.fields["logprobs_old"][:, GROUP:][others]).mean()
  assert values["experts/probability"] == pytest.approx(likely, rel=1e-5)
  # An expert's tokens have no sampler; the policy's own are measured.
  assert values["rollout/sampler_scorer_gap"] < 1e-4
  assert values["gradient/norm"] > 0
  own_rewards = batch.fields["rewards"][:, :GROUP]
  assert values["reward/total"] == pytest.approx(own_rewards.mean(), rel=1e-5)
  start = run.initial_state().trainable
  assert any(np.any(x != start[k]) for k, x in trainable.items())


@pytest.mark.full
def test_no_expert_kept_is_grpo(tmp_path):
  """Sampled answers are those of the run without a file, and so is the step."""
  wrong = build(write(tmp_path, "wrong.jsonl", WRONG))
  batch, trainable, values = one_step(half_right(wrong))
  plain, expected, before = one_step(half_right(build()))
  np.testing.assert_array_equal(batch.tokens[:, :GROUP], plain.tokens)
  np.testing.assert_array_equal(batch.mask[:, :GROUP], plain.mask)
  assert not batch.mask[:, GROUP:].any() and values["experts/used"] == 0
  assert plain.fields["advantages"].any()
  np.testing.assert_allclose(
    batch.fields["advantages"][:, :GROUP],
    plain.fields["advantages"],
    rtol=1e-5,
    atol=1e-6,
  )
  start = build().initial_state().trainable
  for name, x in expected.items():
    moved = np.abs(x - start[name]).max()
    assert moved > 0, name
    # Parameters of size one: what is added to them is rounded, too.
    np.testing.assert_allclose(
      trainable[name], x, atol=1e-4 * moved + 2e-7, rtol=0, err_msg=name
    )
  for name in ("gradient/norm", "policy/entropy"):
    assert values[name] == pytest.approx(before[name], rel=1e-4)
  assert {k: v for k, v in values.items() if k.startswith("reward/")} == {
    k: v for k, v in before.items() if k.startswith("reward/")
  }


@pytest.mark.full
def test_with_groups_that_are_drawn_again(path):
  """A group that is dropped has no expert; the others have theirs."""
  run = half_right(build(path, 1), right=(0,), wrong=(1, 4, 5, 6, 7))
  batch, _, values = one_step(run)
  accuracy = batch.fields["rewards"][:, :GROUP] >= 1
  # The first ones are graded as they were before they were dropped.
  assert accuracy[0].all() and not accuracy[1].any()
  mixed = accuracy.any(1) & ~accuracy.all(1)
  assert mixed[2]
  np.testing.assert_array_equal(batch.mask[:, :GROUP].any((1, 2)), mixed)
  np.testing.assert_array_equal(
    batch.mask[:, GROUP:].any(-1), mixed[:, None] & RIGHT_ONES
  )
  check_advantages(batch)
  assert values["rollout/refills"] == 1
  assert values["rollout/unfilled"] == (~mixed).mean()
  assert values["gradient/norm"] > 0


@pytest.mark.parametrize(
  "field, value, message",
  [
    (
      "accuracy",
      "exact",
      r"config.rollout: accuracy: expected one of config.rewards, accuracy,"
      " format, found 'exact'",
    ),
    ("accuracy", "", r"rollout: accuracy: expected one of .*, found ''"),
    ("format", "exact", r"rollout: format: expected one of .*, found 'exact'"),
    ("count", 0, r"config.rollout: count: expected at least 1, found 0"),
    ("solved", 7.0, r"config.rollout: solved must be in \(0, 1\], got 7.0"),
    ("quantile", 1.5, r"config.rollout: quantile must be in \[0, 1\), got 1.5"),
  ],
)
def test_settings_that_cannot_be(field, value, message, path):
  config = make_config(path).copy_and_resolve_references()
  config.rollout[field] = value
  with pytest.raises(UserError, match=message):
    run_lib.build_run(config, jax.devices()[:1])
