"""Tests of dynamic sampling: groups that are drawn again."""

import concurrent.futures
import dataclasses
import functools
import itertools
import re
from unittest import mock
import zlib

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import small_models

from mmrl import config as config_lib
from mmrl import data
from mmrl.data import pipeline
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.refilled import make_exchange, refilled, sources
from mmrl.rollouts.source import Request, Setup, Source
from mmrl.train import collect, loop
from mmrl.train import run as run_lib
from mmrl.types import Batch, Patches, Prefix, Prompt


@pytest.mark.parametrize(
  "kept, fresh, shards, expected",
  [
    ("1111", "1111", 1, [0, 1, 2, 3]),
    ("0000", "0000", 1, [0, 1, 2, 3]),
    # Fewer fresh than empty places: the first ones are filled.
    ("0100", "0010", 1, [6, 1, 2, 3]),
    # More of them: the first ones are taken.
    ("1101", "0111", 1, [0, 1, 5, 3]),
    ("0000", "1111", 1, [4, 5, 6, 7]),
    # A group stays on its shard, however few another one has.
    ("1100", "1111", 2, [0, 1, 2, 3]),
    ("1100", "0001", 2, [0, 1, 3, 1]),
    ("0110", "1100", 2, [2, 1, 0, 1]),
    ("010110", "110110", 2, [3, 1, 4, 0, 1, 3]),
    ("00", "11", 2, [1, 1]),
  ],
)
def test_sources_by_hand(kept, fresh, shards, expected):
  kept, fresh = (np.array([c == "1" for c in x]) for x in (kept, fresh))
  np.testing.assert_array_equal(sources(kept, fresh, shards), expected)


# Fake batches: P groups of G answers of R tokens.

P, G, S, R, LAYERS = 16, 2, 3, 4, 3


@functools.cache
def make_layout(devices: int) -> sharding.Layout:
  if devices == 1:
    return sharding.on_one(jax.devices()[0])
  return sharding.Layout(
    sharding.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
  )


def numpy_batch(seed: int) -> Batch:
  """Random numbers in every leaf; keys and values lead with layers."""
  rng = np.random.default_rng(seed)

  def of(kind, *shape):
    if kind is bool:
      return rng.random((P, *shape)) < 0.5
    return rng.integers(0, 10**6, (P, *shape)).astype(kind)

  def cache():
    return np.swapaxes(of(np.float32, LAYERS, S, 1, 2), 0, 1)

  number, real = np.int32, np.float32
  patches = Patches(
    of(real, 5, 3),
    *(of(number, 5, 2) for _ in ("rows_columns", "extent", "frame")),
    of(number, 2, 4),
    of(number, 5),
  )
  prompt = Prompt(
    tokens=of(number, S),
    mask=of(bool, S),
    positions=of(number, S, 3),
    visual_index=of(number, S),
    next_position=of(number),
    region=of(real, S),
    patches=patches,
  )
  last = of(real, 4), of(real, 1, 2, 2)
  prefix = Prefix(cache(), cache(), prompt.mask, prompt.next_position, *last)
  return Batch(
    prompt=prompt,
    visual=of(real, 2, 4),
    tokens=of(number, G, R),
    mask=of(bool, G, R),
    fields={"logprobs_sampler": of(real, G, R), "ended": of(bool, G)},
    prefix=prefix,
  )


def leads_with_layers(path) -> bool:
  return getattr(path[-1], "name", "") in ("keys", "values")


def on_devices(batch, layout: sharding.Layout):
  by_layers = NamedSharding(layout.mesh, PartitionSpec(None, sharding.BATCH))

  def put(path, x):
    return (
      jax.device_put(x, by_layers) if leads_with_layers(path) else layout.put(x)
    )

  return jax.tree_util.tree_map_with_path(put, batch)


@pytest.mark.parametrize("devices", [1, 8])
def test_every_leaf_comes_from_the_right_batch(devices):
  layout = make_layout(devices)
  exchange = make_exchange(layout)
  batches = numpy_batch(1), numpy_batch(2)
  old, new = (on_devices(batch, layout) for batch in batches)
  rng = np.random.default_rng(0)
  count = P // layout.shards
  source = rng.integers(0, 2 * count, P)
  found = exchange(old, new, layout.put(source))

  def check(path, one, a, b):
    axis = 1 if leads_with_layers(path) else 0
    one, a, b = (np.moveaxis(np.asarray(x), axis, 0) for x in (one, a, b))
    for place in range(P):
      first = place // count * count
      batch, index = divmod(source[place], count)
      np.testing.assert_array_equal(
        one[place], (a, b)[batch][first + index], err_msg=f"{path} {place}"
      )

  jax.tree_util.tree_map_with_path(check, found, *batches)
  assert 0 < (source < count).sum() < P
  same = jax.tree.map(
    lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), found, old
  )
  assert all(jax.tree.leaves(same))
  compiled = exchange.lower(old, new, layout.put(source)).compile().as_text()
  moves = "all-gather|all-to-all|all-reduce|collective-permute"
  assert not re.search(moves, compiled)


def score(tokens) -> np.ndarray:
  """What tells a fake answer's reward from its tokens."""
  return (tokens[..., 0] % 7).astype(np.float32)


def fake(seed: int, mixed, layout: sharding.Layout) -> Answers:
  """Graded answers; every question is called by its first prompt token."""
  batch = on_devices(numpy_batch(seed), layout)
  tokens = np.array(layout.local(batch.tokens))
  tokens[..., 1] = np.where(np.asarray(mixed)[:, None], [0, 1], seed % 2)
  mask = np.ones(tokens.shape, bool)
  batch = dataclasses.replace(
    batch, tokens=layout.put(tokens), mask=layout.put(mask)
  )
  names = layout.local(batch.prompt.tokens)[:, 0]
  examples = [data.Example(str(x), "?", [], "!") for x in names]
  parts = {
    "accuracy": tokens[..., 1].astype(np.float32),
    "other": score(tokens),
  }
  return Answers(examples, batch, tokens, mask, parts)


def check_agree(answers: Answers, layout: sharding.Layout):
  """What the host and what the devices have is of the same groups."""
  batch = answers.batch
  np.testing.assert_array_equal(answers.tokens, layout.local(batch.tokens))
  names = layout.local(batch.prompt.tokens)[:, 0]
  assert [e.name for e in answers.examples] == [str(x) for x in names]
  accuracy = answers.tokens[..., 1]
  np.testing.assert_array_equal(answers.parts["accuracy"], accuracy)
  np.testing.assert_array_equal(answers.parts["other"], score(answers.tokens))
  assert answers.mask.all()
  return accuracy[:, 0] != accuracy[:, 1]


class Fakes(Source):
  """Answers of drawings that are given as which groups are mixed."""

  group = G

  def __init__(self, drawings, layout: sharding.Layout):
    self.layout, self.drawings = layout, drawings
    self.keys, self.drawn = [], []

  def collect(self, request: Request):
    number = len(self.keys)
    self.keys.append(tuple(np.asarray(jax.random.key_data(request.key))))
    self.drawn.append(fake(10 + number, self.drawings[number], self.layout))
    return self.drawn[-1], {"drawn": 1.0}


def fill(devices: int, *drawings):
  """Fills a batch from drawings, the first one among them."""
  layout = make_layout(devices)
  fakes, asked = Fakes(drawings, layout), []
  setup = Setup(
    prompts=P,
    answers=G,
    length=R,
    model=small_models.small_config(),
    layers=(-1,),
    layout=layout,
    rewards={"accuracy": True, "other": True},
    buckets=(1, 1),
    inner=lambda spec, where: fakes,
  )
  source = refilled(setup, of={}, rounds=3, reward="accuracy")
  assert (source.group, source.draws) == (G, 3)
  samples = mock.Mock(data.Samples)

  def more():
    asked.append(1)
    return samples

  request = Request(
    mock.Mock(), samples, jax.random.key(0), more, lambda answers: answers
  )
  after, values = source.collect(request)
  # Every drawing has questions and a key of its own.
  assert len(fakes.keys) == len(set(fakes.keys)) == len(asked) + 1
  assert values.pop("drawn") == 1.0
  assert values["rollout/refills"] == len(asked)
  mixed = check_agree(after, layout)
  assert values["rollout/unfilled"] == pytest.approx((~mixed).mean())
  # What isn't mixed is dropped, whole groups at a time.
  chosen, more_values = source.choose(after, {})
  assert chosen.shape == (P, G) and not more_values
  np.testing.assert_array_equal(chosen.all(1), mixed)
  np.testing.assert_array_equal(chosen.any(1), mixed)
  return fakes.drawn[0], after, values


ALL, NONE, EVEN = np.ones(P, bool), np.zeros(P, bool), np.arange(P) % 2 == 0


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
  ("drawings", "refills", "unfilled", "replaced"),
  [
    ([ALL], 0, 0, NONE),  # what is mixed isn't drawn again
    ([NONE, NONE, NONE, NONE], 3, 1, NONE),  # drawing is bounded
    # What was mixed stands where it stood, with the same question.
    ([EVEN, NONE, ALL], 2, 0, ~EVEN),
  ],
)
def test_fill(devices, drawings, refills, unfilled, replaced):
  before, after, values = fill(devices, *drawings)
  assert values == {"rollout/refills": refills, "rollout/unfilled": unfilled}
  new = (after.tokens != before.tokens).any((1, 2))
  np.testing.assert_array_equal(new, replaced)
  if not refills:
    assert after.batch is before.batch


# Whole steps of the model that ships with the library.

QUESTIONS, LENGTH, ROUNDS = 4, 10, 2


def grpo_config():
  """Of four questions with four answers each; SGD."""
  config = config_lib.get_config()
  del config.losses["kl"]
  config.models.policy.remat = False
  config.rollout.prompts = config.rollout.answers = QUESTIONS
  config.rollout.length = LENGTH
  config.rollout.temperature = 2.0  # answers differ, whatever the weights
  config.train.minibatches = 1
  config.shares.every = 0
  config.optimizer = {"name": "sgd"}
  config.schedule = {"name": "constant_schedule", "value": 0.02}
  return config


def take(run: run_lib.Run, number: int) -> data.Samples:
  """The questions of a drawing."""
  config = run.config
  start = number * QUESTIONS
  return pipeline.take(
    range(start, start + QUESTIONS),
    run.train_source,
    run.processor,
    answer_length=LENGTH,
    lengths=config.data.lengths,
    patches=config.data.patches,
    pack=run.pack,
  )


def collect_batch(run: run_lib.Run):
  """A batch and what was measured of it."""
  drawn = itertools.count()

  def samples():
    return take(run, next(drawn))

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    batch, values = collect.collect(
      *(run, run.initial_state(), samples(), 1, pool, samples)
    )
  assert next(drawn) == values.get("rollout/refills", 0) + 1
  assert not [k for k, x in values.items() if not np.isfinite(x)]
  return batch, values


def learn(run: run_lib.Run, batch, values):
  state = run.initial_state()
  state, values = loop.learn(run, state, batch, values, 1, 0)
  assert not [k for k, x in values.items() if not np.isfinite(x)]
  return state, values


def make_config(rounds: int = ROUNDS):
  """Without rounds, of a run that never draws again."""
  config = grpo_config()
  if rounds:
    config_lib.wrap_rollout(
      config, name="refilled", rounds=rounds, reward="accuracy"
    )
  else:
    # Pictures are packed as where groups are exchanged: one by one.
    config.shares = {"every": 1000, "prompts": 1}
  config.rewards = {
    "accuracy": {"name": "exact_answer", "weight": 2.0},
    "overlong": {
      "name": "soft_overlong",
      "weight": 1.0,
      "longest": LENGTH,
      "buffer": 5,
    },
  }
  return config


@functools.cache
def build(rounds: int = ROUNDS) -> run_lib.Run:
  return run_lib.build_run(make_config(rounds), jax.devices()[:1])


def step(accuracy, rounds: int = ROUNDS):
  """Collects a batch, with another function for the accuracy."""
  run = build(rounds)
  graded = small_models.reward(
    "accuracy", 2.0, lambda text, _, example: accuracy(text, example)
  )
  _, *others = run.method.rewards
  return collect_batch(small_models.with_rewards(run, graded, *others))


def mixing(places, dull=()):
  """An accuracy that differs in these groups of the first drawing."""
  batch, _ = step(lambda text, example: 0.0, rounds=0)
  texts = build().processor.decode(
    np.asarray(batch.tokens), np.asarray(batch.mask)
  )
  groups = np.reshape(texts, (QUESTIONS, -1))[list(places)]

  def parity(text, salt) -> float:
    return float(zlib.crc32(f"{salt} {text}".encode()) % 2)

  salt = next(
    salt
    for salt in itertools.count()
    if all(len({parity(t, salt) for t in group}) == 2 for group in groups)
  )
  return lambda text, example: (
    0.0 if example.name in dull else parity(text, salt)
  )


def shown(prompt: Prompt) -> list[tuple[bytes, bytes]]:
  """Text and picture of every prompt."""
  pair = prompt.tokens, prompt.patches.pixels
  rows = zip(*map(np.asarray, pair), strict=True)
  return [(text.tobytes(), pixels.tobytes()) for text, pixels in rows]


@pytest.mark.full
def test_a_step_has_groups_that_are_mixed_or_empty():
  """Places 0 and 2 go to other questions, of which half are dull as well."""
  dull = {f"easy_vqa/train/{i}" for i in (0, 2, 5, 7, 8, 10)}
  accuracy = mixing((1, 3), dull)
  batch, values = step(accuracy)
  drawn = {}
  for number in range(1 + ROUNDS):
    samples = take(build(), number)
    drawn |= zip(shown(samples.prompt), samples.examples, strict=True)
  assert len(drawn) == (1 + ROUNDS) * QUESTIONS
  mask, rewards = np.asarray(batch.mask), np.asarray(batch.fields["rewards"])
  empty = ~mask.any((1, 2))
  names = []
  for place, what in enumerate(shown(batch.prompt)):
    example = drawn[what]
    names.append(example.name)
    if empty[place]:
      continue
    texts = build().processor.decode(
      np.asarray(batch.tokens[place]), mask[place]
    )
    right = np.array([accuracy(text, example) for text in texts])
    assert right.min() != right.max()
    long = np.clip((LENGTH - 5 - mask[place].sum(-1)) / 5, -1, 0)
    np.testing.assert_allclose(rewards[place], 2 * right + long, rtol=1e-6)
  assert names[1] == "easy_vqa/train/1" and names[3] == "easy_vqa/train/3"
  assert not dull & {names[i] for i in np.flatnonzero(~empty)}
  assert values["rollout/refills"] >= 1
  assert values["rollout/unfilled"] == empty.mean() < 0.5
  # Keys and values, tokens and log-probabilities were exchanged alike.
  assert values["rollout/sampler_scorer_gap"] < 1e-4
  advantages = np.asarray(batch.fields["advantages"])
  np.testing.assert_array_equal(advantages.any(1), ~empty)
  _, values = learn(build(), batch, values)
  assert values["policy/ratio_deviation"] < 1e-5
  assert values["gradient/norm"] > 0


@pytest.mark.full
def test_a_batch_of_nothing_changes_nothing():
  """Under SGD. Lengths differ, and so do rewards: the accuracy decides."""
  batch, values = step(lambda text, example: 1.0)
  assert values["rollout/refills"] == ROUNDS
  assert values["rollout/unfilled"] == 1.0
  assert values["reward/accuracy"] == 1.0 and values["reward/overlong"] < 0
  assert not np.asarray(batch.mask).any()
  assert not np.asarray(batch.fields["advantages"]).any()
  state, values = learn(build(), batch, values)
  assert values["loss/total"] == values["gradient/norm"] == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    state.trainable,
    build().initial_state().trainable,
  )


@pytest.mark.full
def test_all_mixed_is_bit_for_bit_the_step_without_refill():
  accuracy = mixing(range(QUESTIONS))
  plain, before = step(accuracy, rounds=0)
  batch, values = step(accuracy)
  jax.tree.map(np.testing.assert_array_equal, batch, plain)
  assert values.pop("rollout/refills") == values.pop("rollout/unfilled") == 0
  assert {k: v for k, v in values.items() if not k.startswith("time/")} == {
    k: v for k, v in before.items() if not k.startswith("time/")
  }


@pytest.mark.full
def test_every_drawing_has_keys_of_its_own(monkeypatch):
  """And so have ties. A fold by a small number is the key of a prompt."""
  seen = []
  fold_in = jax.random.fold_in

  def spy(key, number):
    folded = fold_in(key, number)
    seen.append(tuple(np.asarray(jax.random.key_data(folded))))
    return folded

  monkeypatch.setattr(jax.random, "fold_in", spy)
  step(lambda text, example: 1.0)
  assert len(set(seen)) == len(seen) == 1 + ROUNDS + 1
  first = jax.random.wrap_key_data(np.array(seen[0]))
  of_prompts = jax.random.key_data(jax.random.split(first, QUESTIONS))
  assert not set(seen) & {tuple(x) for x in np.asarray(of_prompts)}


@pytest.mark.parametrize(
  "path, value, message",
  [
    (
      "rollout.reward",
      "acuracy",
      r"config.rollout: reward: expected one of config.rewards that reads"
      " texts, accuracy, found 'acuracy'",
    ),
    (
      "rollout.reward",
      "overlong",
      "that reads texts, accuracy, found 'overlong'",
    ),
    ("rollout.rounds", -1, "rollout: rounds: expected at least 0, found -1"),
    ("rollout.of.top_p", 1.5, "config.rollout.of: expected .* and 1.5"),
    ("data.lengths", (40, 80), "one size in config.data.lengths .* 2 and 1"),
    ("data.patches", (64, 96), "one size .* config.data.patches .* 1 and 2"),
  ],
)
def test_a_config_that_cannot_be_refilled(path, value, message):
  config = make_config()
  config.update_from_flattened_dict({path: value})
  with pytest.raises(UserError, match=message):
    run_lib.build_run(config, jax.devices()[:1])
