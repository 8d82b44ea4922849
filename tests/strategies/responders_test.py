"""Local models that answer requests, against the sampler."""

import dataclasses
import functools

import jax
import pytest
import small_models

from mmrl import hub, strategies
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rollouts import continuous, decode_loop, sampler
from mmrl.rollouts.continuous import stream
from mmrl.strategies import Ask, Request, run
from mmrl.strategies.cvr import retrieval
from mmrl.strategies.responders import (
  embedder,
  local,
  local_model,
  local_pair,
  pair,
)

LENGTH = 6
CONFIG = small_models.small_config(tied=False)
# One bucket, so that few programs are compiled.
ONE_SHAPE = {"length": LENGTH, "lengths": [64], "patches": [128], "batch": 2}
SAMPLED = {"temperature": 1.0, "top_p": 0.9, **ONE_SHAPE}


@pytest.fixture(scope="module")
def model():
  return small_models.make_model(CONFIG)


@pytest.fixture(scope="module")
def base(model):
  """Another model, some way off."""

  def move(path, x):
    key = jax.random.key(len(str(path)))
    return x + 0.05 * jax.random.normal(key, x.shape, x.dtype)

  params = jax.tree_util.tree_map_with_path(move, model.params)
  return dataclasses.replace(model, params=params)


EXAMPLES = [
  Example(f"question {i}", "", messages, "")
  for i, messages in enumerate(small_models.conversations())
]


def requests(**options) -> list[Request]:
  return [
    Request(f"{e.name}, ask 0", Ask("policy", e.messages, options))
    for e in EXAMPLES
  ]


@functools.partial(jax.jit, static_argnames=("temperature", "top_p"))
def rollout(params, prompt, keys, **options):
  found = sampler.rollout(
    params, CONFIG, prompt, keys, answers=1, length=LENGTH, **options
  )
  return found.tokens, found.mask


def sampled(model, **options):
  """What the sampler answers with a key of each request."""
  names = [request.name for request in requests()]
  prompt = model.processor(
    [example.messages for example in EXAMPLES],
    lengths=[64],
    patches=[128],
    rows=len(EXAMPLES),
  )
  keys = local._keys(0, names)
  tokens, mask = jax.device_get(rollout(model.params, prompt, keys, **options))
  return prompt, tokens, mask, model.processor.decode(tokens, mask)


@pytest.mark.full
def test_it_replies_as_the_sampler_does(model):
  prompt, _, mask, texts = sampled(model, temperature=1.0, top_p=0.9)
  replies = local_model(model, **SAMPLED)(requests())
  assert [reply.text for reply in replies] == texts
  counts = [reply.completion_tokens for reply in replies]
  assert counts == mask.sum((1, 2)).tolist()
  counts = [reply.prompt_tokens for reply in replies]
  assert counts == prompt.mask.sum(1).tolist()
  assert not any(reply.ended for reply in replies)


@pytest.mark.full
def test_options_of_a_request(model):
  *_, texts = sampled(model, temperature=0.0, top_p=1.0)
  model = local_model(model, **SAMPLED)
  replies = model(requests(temperature=0.0, top_p=1.0))
  assert [reply.text for reply in replies] == texts
  (cut, *_), (text, *_) = model(requests(length=2)), model(requests())
  assert cut.completion_tokens == 2
  assert text.text.startswith(cut.text)


@pytest.mark.full
def test_replies_do_not_depend_on_what_is_asked_beside(model):
  answer = local_model(model, **SAMPLED)
  together = answer(requests())
  programs = local._sample._cache_size()
  assert [answer([request])[0] for request in requests()] == together
  assert answer(requests()[::-1]) == together[::-1]
  assert local._sample._cache_size() == programs
  larger = local_model(model, **SAMPLED | {"batch": 3})
  assert larger(requests()) == together


@pytest.mark.full
def test_lanes_reply_as_batches(model, base, monkeypatch):
  """A request takes the lane of an answer that has ended."""
  long = SAMPLED | {"length": 2 * LENGTH}
  makers = [
    functools.partial(local_model, model),
    functools.partial(local_pair, model, base),
  ]
  together = [make(**long)(requests()) for make in makers]
  monkeypatch.setattr(decode_loop, "_ONE_WIDTH", 2 * LENGTH - 1)
  streams = []

  def noting(*arguments, **options):
    streams.append(options["lanes"])
    return stream.answers(*arguments, **options)

  monkeypatch.setattr(continuous, "answers", noting)
  assert [make(**long)(requests()) for make in makers] == together
  assert streams == [2, 2]


@pytest.mark.full
def test_a_question_asked_again_is_drawn_anew(model):
  models = {"policy": local_model(model, **SAMPLED)}
  found = run(strategies.direct, [EXAMPLES[0]] * 4, models).results
  assert len({result.answer.text for result in found}) > 1
  again = {"policy": local_model(model, **SAMPLED)}
  assert run(strategies.direct, [EXAMPLES[0]] * 4, again).results == found
  other = {"policy": local_model(model, seed=1, **SAMPLED)}
  assert run(strategies.direct, [EXAMPLES[0]] * 4, other).results != found


@pytest.mark.full
def test_an_end_is_told_from_a_cut(model):
  """The first token of an answer becomes the one that ends answers."""
  _, tokens, _, _ = sampled(model, temperature=1.0, top_p=0.9)
  config = dataclasses.replace(CONFIG, eos_token_id=int(tokens[0, 0, 0]))
  processor = small_models.make_processor(config)
  other = hub.Model(config, model.params, processor)
  reply, *_ = local_model(other, **SAMPLED)(requests())
  assert (reply.text, reply.completion_tokens, reply.ended) == ("", 1, True)


@pytest.mark.full
def test_a_request_that_cannot_be_read_fails_alone(model):
  broken = dataclasses.replace(
    EXAMPLES[0],
    name="broken",
    messages=[
      {"role": "user", "content": [{"type": "image", "image": "nonesuch.png"}]}
    ],
  )
  models = {"policy": local_model(model, **SAMPLED)}
  found = run(strategies.direct, [EXAMPLES[2], broken], models)
  assert found.results[0].answer
  assert found.results[1].failure.attempts == 1
  assert "nonesuch.png" in found.results[1].failure.error


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"gate": "logp"}, "expected options among length, .*, found gate"),
    ({"temperature": -1.0}, "temperature of at least 0, found -1.0"),
    ({"length": 0}, "length of at least 1, found 0"),
    ({"top_p": 0.0}, "top_p above 0 and at most 1, found 0.0"),
  ],
)
def test_options_are_checked(model, options, message):
  for found in local_model(model, **SAMPLED)(requests(**options)):
    assert isinstance(found, UserError)
    with pytest.raises(UserError, match=message):
      raise found
  if "gate" not in options:
    with pytest.raises(UserError, match=message):
      local_model(model, **SAMPLED | options)


def test_a_batch_holds_something(model):
  with pytest.raises(UserError, match="batch of at least 1, found 0"):
    local_model(model, length=1, batch=0)


# Two models.


@pytest.mark.full
def test_equal_models_reply_as_one(model):
  both = local_pair(model, model, **SAMPLED)(requests())
  alone = local_model(model, **SAMPLED)(requests())
  assert [reply.text for reply in both] == [reply.text for reply in alone]
  assert {reply.notes["redrawn"] for reply in both} == {0}


@pytest.mark.full
def test_extrapolation_asks_both_models_at_once(model, base):
  """A gate that is always open leaves the policy; greedy needs no numbers."""
  models = {"policy_and_base": local_pair(model, base, **ONE_SHAPE)}
  programs = pair._decode._cache_size()

  def answered(**options):
    strategy = functools.partial(strategies.extrapolation, **options)
    return [result.answer for result in run(strategy, EXAMPLES, models).results]

  alone = local_model(model, **ONE_SHAPE)(requests())
  found = answered(gate="random", threshold=1.0, g=0.0)
  assert [answer.text for answer in found] == [reply.text for reply in alone]
  assert {answer.notes["redrawn"] for answer in found} == {LENGTH}
  found = answered(gate="random", threshold=0.0)
  alone = local_model(base, **ONE_SHAPE)(requests())
  assert [answer.text for answer in found] == [reply.text for reply in alone]
  # Neither threshold nor g has a program of its own.
  assert pair._decode._cache_size() == programs + 1


def test_options_of_two_models_are_checked(model):
  answer = local_pair(model, model, **SAMPLED)
  (found, *_) = answer(requests(threshold=0.5))
  assert "must be below 0, got 0.5" in str(found)


def other_model(**changes) -> hub.Model:
  config = dataclasses.replace(CONFIG, **changes)
  return hub.Model(config, {}, small_models.make_processor(config))


def test_other_architectures_are_refused(model):
  text = dataclasses.replace(CONFIG.text, hidden_size=48)
  with pytest.raises(UserError, match=r"text.hidden_size 32 in the policy and"):
    local_pair(model, other_model(text=text), length=1)
  with pytest.raises(UserError, match=r"eos_token_id 258 in the policy and 25"):
    local_pair(model, other_model(eos_token_id=256), length=1)


def test_other_tokenizers_are_refused(model):
  tiny = hub.load("tiny").processor.tokenizer
  processor = dataclasses.replace(model.processor, tokenizer=tiny)
  other = dataclasses.replace(model, processor=processor)
  with pytest.raises(UserError, match="expected two models with one tokenizer"):
    local_pair(model, other, length=1)


@pytest.mark.full
def test_an_embedding_is_of_texts_and_pictures(model):
  answer = embedder.Embedder(model)
  replies = [retrieval.parse_embedding(x.text) for x in answer(requests())]
  again = [retrieval.parse_embedding(x.text) for x in answer(requests()[:1])]
  assert {len(one) for one in replies} == {CONFIG.text.hidden_size}
  assert replies[0] == again[0] != replies[1]
  broken = [{"type": "image", "image": "nonesuch.png"}]
  ask = Ask("embedder", strategies.user("?", broken))
  (found,) = answer([Request("a", ask)])
  assert isinstance(found, UserError)
