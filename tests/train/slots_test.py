"""What a slot can hold, through the loop: ranks, state, models, given answers.

The functions are those of toys.py.
"""

import concurrent.futures
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from mmrl import config as config_lib
from mmrl import data, export, hub, marks, rewards
from mmrl.errors import UserError
from mmrl.models import parameters
from mmrl.train import collect, loop
from mmrl.train import run as run_lib

PROMPTS = 4


@pytest.fixture(autouse=True, scope="module")
def installed():
  """Only here: other tests take every function that is exported."""
  packages = (toys.losses, toys.rewards)
  before = [list(package.__all__) for package in packages]
  toys.install()
  yield
  for package, names in zip(packages, before, strict=True):
    package.__all__[:] = names


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  """Questions of easy-VQA with two answers to learn from, the first right."""
  source, path = (
    data.EasyVQA(split="train"),
    tmp_path_factory.mktemp("given") / "rows.jsonl",
  )
  lines = []
  for question, answer, picture in source.rows[:16]:
    texts = [f"<answer>{x}</answer>" for x in (answer, "teal")]
    lines.append(
      {
        "question": question,
        "images": [source.pictures[picture]],
        "answer": answer,
        "answers": texts,
      }
    )
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def make_config(**losses):
  """A small run of these terms; each has weight 1."""
  config = config_lib.get_config()
  config.models.policy.remat = False
  config.rollout.prompts, config.rollout.answers = PROMPTS, 2
  config.rollout.length = 8
  config.rollout.temperature = 2.0
  config.train.minibatches = 1
  config.shares.every = 0
  config.optimizer = {"name": "sgd"}
  config.schedule = {"name": "constant_schedule", "value": 0.05}
  config.losses = {
    name: {"name": name, "weight": 1.0, "reduce": reduce}
    for name, reduce in losses.items()
  }
  return config


def pairs(path, **losses):
  """A run of these terms on the pairs of a file."""
  config = given(make_config(**losses), path, 2)
  config.rollout.name = "given_pairs"
  return config


def given(config, path, answers: int):
  """The run learns from the answers of a file."""
  config.data.train = {"name": "Files", "path": path}
  config.rewards = {}
  config.rollout = {
    "name": "given",
    "prompts": PROMPTS,
    "answers": answers,
    "length": 8,
    "mask_truncated": False,
  }
  return config


def steps(config, count: int = 1, **changes):
  """The run, its state after some steps, and what each logged."""
  for field, value in changes.items():
    config.train[field] = value
  run = run_lib.build_run(config, jax.devices()[:1])
  questions, state, logged = loop.read_questions(run), run.initial_state(), []
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for step in range(1, count + 1):
      batch, values = collect.collect(
        *(run, state, next(questions), step, pool), lambda: next(questions)
      )
      state, values = loop.learn(run, state, batch, values, step, 0)
      state = run.at_step(state, step)
      logged.append(values)
  questions.close()
  return run, state, batch, logged


@pytest.mark.full
def test_supervised_learning_raises_the_likelihood(rows, tmp_path):
  """With one answer, no reward, no probe, no other model."""
  lines = [
    json.loads(line) for line in pathlib.Path(rows).read_text().splitlines()
  ]
  path = tmp_path / "one.jsonl"
  path.write_text(
    "".join(
      json.dumps(line | {"answers": line["answers"][:1]}) + "\n"
      for line in lines
    )
  )
  config = given(make_config(likelihood="token_mean"), str(path), 1)
  run, _, batch, logged = steps(config, 12)
  assert not run.method.probes and not run.fixed and not run.method.advantage
  assert set(batch.fields) == {"ended", "rewards", "token_weights"}
  losses = [values["loss/likelihood"] for values in logged]
  assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
  assert not [k for k in logged[0] if k.startswith("reward/")]
  texts = run.processor.decode(np.asarray(batch.tokens), np.asarray(batch.mask))
  assert all(text.startswith("<answer>") for text in texts)


@pytest.mark.full
def test_preferences_between_two_given_answers(rows):
  """At first the policy is its reference, and the loss is log 2."""
  config = pairs(rows, dpo="prompt_mean")
  run, _, _, logged = steps(config, 8)
  assert [probe.name for probe in run.method.probes] == ["reference"]
  losses = [values["loss/dpo"] for values in logged]
  assert losses[0] == pytest.approx(np.log(2), rel=1e-4)
  assert np.mean(losses[-3:]) < 0.9 * np.log(2)


@pytest.mark.full
def test_terms_of_answers_and_passes_of_their_own():
  config = make_config(mean_likelihood="answer_mean", again="token_mean")
  _, _, batch, (values,) = steps(config)
  logprobs, mask = (
    np.asarray(x) for x in (batch.fields["logprobs_old"], batch.mask)
  )
  mean = np.where(mask, logprobs, 0).sum(-1) / mask.sum(-1)
  # The scorer divides logits by the temperature, `forward.score` by 1.
  assert values["loss/mean_likelihood"] == pytest.approx(-mean.mean(), rel=1e-4)
  assert 0 < values["loss/again"] < 5


@pytest.mark.full
@pytest.mark.parametrize(
  "accumulate", [pytest.param(1, marks=pytest.mark.full), 2]
)
def test_a_term_with_state(accumulate):
  """Its running mean is that of the rewards; its head learns by the optimiser.

  Statistics of a minibatch's parts are added up.
  """
  config = make_config(value_head="token_mean")
  config.losses.value_head.decay = 0.5
  run, state, batch, logged = steps(config, accumulate=accumulate)
  rewards = np.asarray(batch.fields["rewards"])
  mean = float(state.running["value_head"]["mean"])
  assert mean == pytest.approx(0.5 * rewards.mean(), rel=1e-5)
  path = f"{parameters.TERMS}/value_head/head/kernel"
  start = run.initial_state().trainable[path]
  assert np.abs(np.asarray(state.trainable[path]) - start).max() > 0
  assert parameters.TERMS not in state.params
  assert np.isfinite(logged[0]["loss/value_head"])


@pytest.mark.full
@pytest.mark.parametrize("every", [1, 2])
def test_an_average_of_the_policy(every):
  config = make_config(policy_gradient="token_mean", drift="prompt_mean")
  config.models.average = {"name": "Average", "decay": 0.75, "every": every}
  config.rewards = {"share": {"name": "whole_batch", "weight": 1.0}}
  run, state, _, logged = steps(config, 1, epochs=2)
  _, one, _, _ = steps(config, 1, epochs=1)
  path = "text/norm/scale"
  start, first, second = (
    np.asarray(x.trainable[path], np.float64)
    for x in (run.initial_state(), one, state)
  )
  expected = start
  for number, after in enumerate((first, second), 1):
    if number % every == 0:
      expected = 0.75 * expected + 0.25 * after
  average = state.averages["average"]
  assert int(average.updates) == 2
  assert np.abs(second - start).max() > 1e-6
  np.testing.assert_allclose(average.values[path], expected, rtol=1e-6)
  assert logged[0]["first/loss/drift"] == 0 < logged[0]["loss/drift"]


@pytest.mark.full
def test_what_terms_add_is_not_the_models(tmp_path):
  """Neither in the model that a run writes nor in one of its checkpoint."""
  config = make_config(value_head="token_mean", drift="prompt_mean")
  config.models.average = {"name": "Average", "decay": 0.9}
  config.rollout.prompts = 8  # on eight devices
  config.train.steps = config.checkpoint.every = 1
  config.evaluation.benchmarks = {}
  loop.train(config, str(tmp_path / "run"))
  export.export(str(tmp_path / "run"), str(tmp_path / "model"))
  whole, exported = (
    hub.load(str(path)).params
    for path in (tmp_path / "run" / "model", tmp_path / "model")
  )
  assert jax.tree.structure(whole) == jax.tree.structure(
    hub.load("tiny").params
  )
  jax.tree.map(np.testing.assert_array_equal, exported, whole)


@pytest.mark.full
def test_a_reward_of_weight_0_is_logged_where_it_applies(monkeypatch):
  """It changes nothing of the total, and of its NaN there is a share."""

  def odd(length):
    even = jnp.arange(length.size).reshape(length.shape) % 4
    return jnp.where(even == 0, jnp.nan, 2.0)

  monkeypatch.setattr(rewards, "peakedness", odd)
  config = make_config(policy_gradient="token_mean")
  config.rewards = {
    "odd": {"name": "peakedness", "weight": 0.0},
    "share": {"name": "whole_batch", "weight": 1.0, "start": 2},
  }
  _, _, _, (values,) = steps(config)
  assert values["reward/odd"] == 2 and values["reward_applies/odd"] == 0.75
  assert "reward_applies/share" not in values
  # The first step comes before `start`.
  assert values["reward/share"] > 0 and values["reward/total"] == 0
  config.rewards.odd.weight = 1.0
  with pytest.raises(UserError, match="config.rewards.odd: .* found nan for"):
    steps(config)


@pytest.mark.full
def test_a_reward_is_logged_of_questions_that_it_applies_to(monkeypatch):
  """The others have 0, which counts in the total alone."""
  told = []

  def applies(one):
    told.append(one.answer == "yes")
    return told[-1]

  def mine(text, example):
    found = [
      len(group) * [2.0 * (one.answer == "yes")]
      for group, one in zip(text, example, strict=True)
    ]
    return np.array(found)

  mark = marks.marked(applies=applies)
  monkeypatch.setattr(rewards, "exact_answer", mark(mine))
  config = make_config(policy_gradient="token_mean")
  config.rewards = {"mine": {"name": "exact_answer", "weight": 1.0}}
  _, _, _, (values,) = steps(config)
  share = np.mean(told)
  assert 0 < share < 1 and values["reward_applies/mine"] == share
  assert values["reward/mine"] == pytest.approx(2)
  assert values["reward/total"] == pytest.approx(2 * share)
  # Of those that count there is one value.
  assert "reward_within/mine" not in values


@pytest.mark.full
def test_a_reward_on_the_devices_reads_one_of_texts(monkeypatch):
  def doubled(reward_share):
    return 2 * reward_share

  monkeypatch.setattr(rewards, "peakedness", doubled)
  config = make_config(policy_gradient="token_mean")
  config.rewards = {
    "double": {"name": "peakedness", "weight": 1.0},
    "share": {"name": "whole_batch", "weight": 1.0},
  }
  run, _, batch, (values,) = steps(config)
  assert run.method.graded == {"reward_share": "share"}
  assert values["reward/double"] == 2 * values["reward/share"] > 0
  assert "reward_share" not in batch.fields
  config.rewards = {"double": config.rewards.double}
  message = (
    "config.rewards.double: peakedness needs reward_share, which this run"
    " doesn't have; add a reward of texts called 'share'"
  )
  with pytest.raises(UserError, match=message):
    steps(config)


@pytest.mark.full
def test_rewards_on_the_devices_and_of_the_whole_batch():
  config = make_config(policy_gradient="token_mean")
  config.rewards = {
    "peak": {"name": "peakedness", "weight": 1.0},
    "share": {"name": "whole_batch", "weight": 2.0},
  }
  toys.SEEN.clear()
  run, _, batch, (values,) = steps(config)
  assert toys.SEEN == [(PROMPTS, 2)]
  assert [reward.on_host for reward in run.method.rewards] == [False, True]
  assert 0 < values["reward/peak"] < 1
  assert values["reward/share"] == pytest.approx(1 / (2 * PROMPTS), rel=1e-5)
  total = values["reward/peak"] + 2 * values["reward/share"]
  assert np.asarray(batch.fields["rewards"]).mean() == pytest.approx(
    total, rel=1e-5
  )


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"losses.dpo.reduce": "token_mean"},
      r"config.losses.dpo.reduce: expected a reduction of a term \[P\],"
      " such as prompt_mean, found token_mean",
    ),
    (
      {"rollout.answers": 3},
      "config.rollout.answers: expected 2, a pair, found 3",
    ),
    (
      {"data.train": {"name": "EasyVQA", "split": "train"}},
      "config.rollout: expected data with answers to learn, found EasyVQA",
    ),
    (
      {"rewards.sure": {"name": "sureness", "weight": 1.0}},
      "config.rewards.sure: sureness needs logprobs_sampler, which this run"
      " doesn't have; choose a config.rollout that adds it, see docs/names.md",
    ),
    (
      {"rewards": {"a": {"name": "rouge", "weight": 1.0, "times": ["b"]}}},
      "config.rewards.a.times: expected a list of others of config.rewards, of"
      r" which there is none, found \['b'\]",
    ),
    (
      {"rewards": {"a": {"name": "rouge", "weight": 1.0, "start": 0.5}}},
      "config.rewards.a.start: expected the number of a step, found 0.5",
    ),
    (
      {"models.extra": {"name": "Average", "decay": 0.9}},
      "config.models.extra: expected a probe, a reward or a loss that reads"
      " params_extra, found none",
    ),
    (
      {"models.extra": {"name": "Average", "decay": 1.0}},
      r"config.models.extra: expected decay in \[0, 1\), every of at least 1",
    ),
    (
      {"models.extra": {"name": "Mean"}},
      "config.models.extra: mmrl.train.models has no 'Mean'; valid names:"
      " Average, Directory, Endpoint, Initial",
    ),
    (
      {"losses.drift": {"name": "drift", "weight": 1, "reduce": "prompt_mean"}},
      "config.losses.drift: drift needs params_average, which this run doesn't"
      " have; add a model 'average' to config.models",
    ),
    (
      {"models": {}},
      "config.losses.dpo: dpo needs logprobs_ref, which this run"
      " doesn't have; add a model 'reference' to config.models",
    ),
    (
      {"probes.blind": {"name": "image_blind"}},
      "config.probes.blind: expected a function that reads logprobs_blind or"
      " pictured, found none; take the probe out",
    ),
  ],
)
def test_what_does_not_fit_together_is_refused(rows, change, message):
  config = pairs(rows, dpo="prompt_mean")
  with config.unlocked():
    for field, value in change.items():
      *parents, last = field.split(".")
      node = config
      for parent in parents:
        node = node[parent]
      if field == "models":
        del node[last]["reference"]
      else:
        node[last] = value
  with pytest.raises(UserError, match=message) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert "\n" not in str(error.value)


@pytest.mark.full
def test_a_given_text_that_is_too_long_or_no_text_is_refused(rows, tmp_path):
  row = json.loads(pathlib.Path(rows).read_text().splitlines()[0])
  for answers, message in (
    ("one", "expected 'answers' as a list of texts"),
    (["a", " "], "expected 'answers' as a list of texts that aren't empty"),
    ([1, 2], "expected 'answers' as a list of texts"),
  ):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {"answers": answers}) + "\n")
    with pytest.raises(UserError, match=f"rows.jsonl:1: {message}"):
      data.Files(path=str(path))
  path.write_text(
    "".join(
      json.dumps(row | {"answers": ["blue " * 20, text]}) + "\n"
      for text in "abcd"
    )
  )
  config = pairs(str(path), dpo="prompt_mean")
  with pytest.raises(UserError, match=r"rows.jsonl:\d: .* at most 8 tokens"):
    steps(config)
