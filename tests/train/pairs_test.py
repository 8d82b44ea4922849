"""Pairs and uneven groups of answers, through the loop."""

import importlib
import json

import jax
import numpy as np
from PIL import Image
import pytest

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.train import run as run_lib
from train import slots_test as slots

# The package has a function of this name.
sampled = importlib.import_module("mmrl.rollouts.sampled")
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def write(folder, *texts, other=()):
  """A file of questions with these texts, of which some have other pictures."""
  for name, colour in COLOURS.items():
    Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
  rows = [
    {"question": "is it red?", "images": ["red.png"], "answers": list(one)}
    | ({"rejected_images": ["blue.png"]} if i in other else {})
    for i, one in enumerate(texts)
  ]
  path = folder / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def build(config):
  config.evaluation.benchmarks = {}
  return run_lib.build_run(config, jax.devices()[:1])


PAIR = ("<answer>yes</answer>", "<answer>no</answer>")
SAME = ("<answer>yes</answer>",) * 2


@pytest.mark.full
def test_pairs_of_equal_texts_are_left_out_and_counted(tmp_path, capsys):
  """One of four; the mean is over the others, which begin at ln 2."""
  path = write(tmp_path, PAIR, PAIR, SAME, PAIR)
  config = slots.pairs(path, dpo="prompt_mean")
  _, _, batch, (first, second) = slots.steps(config, 2)
  said = (
    f"1 of 4 pairs are left out, as their texts are equal; the first is {path}"
  )
  assert f"{said}:3\n" in capsys.readouterr().out
  assert first["rollout/pairs"] == 0.75
  assert first["loss/dpo"] == pytest.approx(np.log(2), rel=1e-5)
  assert first["dpo/margin"] == 0 == first["dpo/accuracy"]
  assert second["dpo/margin"] > 0 and second["dpo/accuracy"] == 1
  assert second["dpo/logprob_chosen"] > first["dpo/logprob_chosen"]
  assert np.asarray(batch.mask).any(-1).sum() == 6
  np.testing.assert_array_equal(batch.fields["chosen"], [[True, False]] * 4)


@pytest.mark.parametrize(
  "texts, message",
  [
    (
      [PAIR, PAIR[:1]],
      "rows.jsonl:2: expected a chosen and a rejected text in",
    ),
    pytest.param(
      [(*PAIR, "x")],
      "rows.jsonl:1: expected a chosen and a rejected text in",
      marks=pytest.mark.full,
    ),
    ([SAME, SAME], "expected pairs of two different texts, found all 2 equal"),
  ],
)
def test_what_is_no_pair_is_refused(tmp_path, texts, message):
  config = slots.pairs(write(tmp_path, *texts), dpo="prompt_mean")
  with pytest.raises(UserError, match=message) as error:
    slots.steps(config)
  assert "\n" not in str(error.value)


def of_pictures(path, **losses):
  config = slots.pairs(path, **losses)
  config.rollout.pictures = True
  return config


@pytest.mark.full
def test_pairs_that_differ_in_pictures_too(tmp_path, capsys):
  """Two questions are four prompts; one has no other picture.

  The first loss is ln 3 where there are three samples, else ln 2.
  """
  path = write(tmp_path, PAIR, PAIR, other=[0])
  config = of_pictures(path, joint_preference="prompt_mean")
  config.losses.joint_preference.beta = 1.0
  _, _, batch, logged = slots.steps(config, 3)
  assert "1 of 2 pairs have no 'rejected_images'" in capsys.readouterr().out
  mask = np.asarray(batch.mask).any(-1).reshape(2, 2, 2)
  assert mask[:, 0].all() and not mask[:, 1, 1].any()
  assert sorted(mask[:, 1, 0].tolist()) == [False, True]
  np.testing.assert_array_equal(batch.fields["twin"], [False, True] * 2)
  first, *_, last = logged
  mean = (np.log(2) + np.log(3)) / 2
  assert first["loss/joint_preference"] == pytest.approx(mean, rel=1e-5)
  assert first["joint_preference/pictured"] == 0.5
  assert first["joint_preference/weight_vision"] == pytest.approx(1 / 3)
  assert first["joint_preference/weight_language"] == pytest.approx(5 / 12)
  assert last["joint_preference/margin_language"] > 0
  assert last["joint_preference/margin_vision"] != 0


@pytest.mark.full
def test_parts_of_a_minibatch_are_of_whole_pairs(tmp_path):
  path = write(tmp_path, *[PAIR] * 4, other=range(4))
  config = of_pictures(path, joint_preference="prompt_mean")
  config.train.accumulate = 4
  with pytest.raises(UserError, match="belong together in twos, got 1; make"):
    build(config)
  losses = []
  for parts in (1, 2):
    config = of_pictures(path, joint_preference="prompt_mean")
    _, _, _, logged = slots.steps(config, 2, accumulate=parts)
    losses.append(logged[-1])
  for name in ("loss/joint_preference", "joint_preference/margin_vision"):
    # Added in another order.
    assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-4, abs=1e-5)


@pytest.mark.full
def test_pictures_that_are_not_there_or_not_used_are_said(tmp_path, capsys):
  config = of_pictures(write(tmp_path, *[PAIR] * 4), dpo="prompt_mean")
  with pytest.raises(
    UserError, match="expected data with 'rejected_images', f"
  ):
    slots.steps(config)
  config.rollout.prompts = 3
  with pytest.raises(
    UserError, match="prompts: expected an even number, two fo"
  ):
    slots.steps(config)
  config = slots.pairs(
    write(tmp_path, *[PAIR] * 4, other=[1, 2]), dpo="prompt_mean"
  )
  slots.steps(config)
  assert (
    "'rejected_images' of 2 questions aren't used" in capsys.readouterr().out
  )


@pytest.mark.parametrize("rollout", ["sampled", "given"])
def test_a_preference_needs_pairs(tmp_path, rollout):
  """Two answers of any other kind aren't a chosen and a rejected one."""
  config = slots.make_config(dpo="prompt_mean")
  if rollout == "given":
    config = slots.given(config, write(tmp_path, PAIR, PAIR, PAIR, PAIR), 2)
  with pytest.raises(
    UserError, match="dpo needs chosen, which this run doesn't"
  ):
    build(config)


def test_best_and_worst():
  rewards = np.array([[0.5, 1, 0, 1], [1, 1, 1, 1], [0, -1, -1, 0]])
  found = sampled.best_and_worst(rewards)
  np.testing.assert_array_equal(found, [[1, 2], [0, 0], [0, 1]])


@pytest.mark.full
def test_pairs_of_a_sampled_group(monkeypatch):
  """Of three answers; groups without a difference are left out and counted."""
  config = slots.make_config(dpo="prompt_mean")
  config.rollout.answers = 3
  config.rewards = {
    "short": {
      "name": "soft_overlong",
      "weight": 1.0,
      "longest": 8,
      "buffer": 7,
    },
    "format": {"name": "answer_format", "weight": 1.0, "form": "think"},
  }
  config_lib.wrap_rollout(config, name="sampled_pairs", reward="format")
  seen = []
  choose = sampled.best_and_worst

  def spy(rewards):
    seen.append(rewards)
    return choose(rewards)

  monkeypatch.setattr(sampled, "best_and_worst", spy)
  _, _, batch, (values,) = slots.steps(config)
  (rewards,) = seen
  assert rewards.shape == (slots.PROMPTS, 3)
  differs = rewards.max(1) > rewards.min(1)
  assert values["rollout/pairs"] == differs.mean()
  assert values["reward/format_of_group"] == pytest.approx(rewards.mean())
  found = np.asarray(batch.fields["rewards"])
  assert batch.mask.shape[:2] == (slots.PROMPTS, 2)
  assert np.asarray(batch.mask).any(-1).all(-1).tolist() == differs.tolist()
  best = (rewards.max(1) + rewards.min(1)) / 2
  assert values["reward/format"] == pytest.approx(best.mean())
  assert found.shape == (slots.PROMPTS, 2)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"reward": "nonesuch"}, "one of config.rewards that reads texts"),
    (
      {"answers": 1},
      "config.rollout.answers: expected at least 2, of which one",
    ),
  ],
)
def test_groups_that_make_no_pairs_are_refused(changes, message):
  config = slots.make_config(dpo="prompt_mean")
  config.rollout.answers = changes.get("answers", 3)
  reward = changes.get("reward", "accuracy")
  config_lib.wrap_rollout(config, name="sampled_pairs", reward=reward)
  with pytest.raises(UserError, match=message):
    build(config)


@pytest.mark.full
def test_questions_may_have_fewer_answers(tmp_path):
  """One, two and three; means are over the six that are there."""
  texts = [
    "<answer>yes</answer>",
    "<answer>no</answer>",
    "<answer>red</answer>",
  ]
  path = write(tmp_path, texts[:1], texts[:2], texts, texts[:1])
  config = slots.given(slots.make_config(likelihood="sequence_mean"), path, 3)
  with pytest.raises(
    UserError, match=r"rows.jsonl:1: expected 3 .* found 1; set"
  ):
    slots.steps(config)
  config.rollout.fewer = True
  _, _, batch, (values,) = slots.steps(config)
  there = np.asarray(batch.mask).any(-1)
  assert sorted(there.sum(-1)) == [1, 1, 2, 3]
  assert values["rollout/answers"] == 7 / 4
  lengths = np.asarray(batch.mask).sum(-1)
  assert values["rollout/length"] == pytest.approx(lengths.sum() / 7)
  assert 0 < values["loss/likelihood"] < 20
  config.rollout.answers = 4
  with pytest.raises(
    UserError, match="answers: expected 3, the most texts that"
  ):
    slots.steps(config)
  config.rollout.answers = 2
  with pytest.raises(
    UserError, match=r"rows.jsonl:3: expected 1 to 2 .* found 3$"
  ):
    slots.steps(config)


@pytest.mark.full
def test_spans_and_epochs_reach_the_weights(tmp_path):
  """The second pass over four questions learns the answer block alone."""
  text = "<think>red</think><answer>yes</answer>"
  path = write(tmp_path, *[[text]] * 4)
  config = slots.given(
    slots.make_config(likelihood="weighted_token_mean"), path, 1
  )
  config.token_weights = {"spans": {"name": "span_weights"}}
  run, _, batch, logged = slots.steps(config, 2)
  tokens, weights = (
    np.asarray(x)[0, 0] for x in (batch.tokens, batch.fields["token_weights"])
  )
  think, close = (
    tokens.tolist().index(run.processor.tokenizer.convert_tokens_to_ids(tag))
    for tag in ("</think>", "</answer>")
  )
  expected = np.zeros(len(tokens))
  expected[think + 1 : close + 2] = 1  # and the end of sequence
  np.testing.assert_array_equal(weights, expected)
  assert logged[0]["loss/likelihood"] != logged[1]["loss/likelihood"]


@pytest.mark.parametrize(
  "reduce, weights, message",
  [
    (
      "token_mean",
      "low_probability",
      "config.token_weights: expected a loss that",
    ),
    (
      "weighted_token_mean",
      "future_kl",
      "found future_kl, which is known in an",
    ),
  ],
)
def test_weights_that_act_on_nothing_are_refused(reduce, weights, message):
  config = slots.make_config(likelihood=reduce)
  config.token_weights = {"own": {"name": weights}}
  with pytest.raises(UserError, match=message):
    build(config)


def test_weights_never_count_twice():
  config = slots.make_config(policy_gradient="weighted_token_mean")
  with pytest.raises(
    UserError, match="found policy_gradient, which has the wei"
  ):
    build(config)
