"""Answers of a stream in lanes, against the sampler's in batches."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl.errors import UserError
from mmrl.models import decoding
from mmrl.models.kernels.blocks import Sparse
from mmrl.rollouts import continuous, decode_loop, sampler
from mmrl.rollouts.continuous import lanes

LENGTH, LANES, PROMPTS = 12, 3, 8
# A tenth of the tokens end an answer. The programs are of this test alone.
CONFIG = dataclasses.replace(
  small_models.small_config(tied=False), other_end_token_ids=(*range(40, 66),)
)


@pytest.fixture(scope="module")
def params():
  return small_models.make_params(CONFIG)


@pytest.fixture(scope="module")
def rings():
  """Rings of 3, 6 and 12 tokens; the fewer lanes, the fewer are decoded."""
  with (
    mock.patch.object(decode_loop, "_FIRST_ROOM", 3),
    mock.patch.object(decode_loop, "_ONE_WIDTH", 0),
  ):
    yield


@pytest.fixture(scope="module")
def prompts():
  """Of two sizes, the larger ones in the middle."""
  processor = small_models.make_processor(CONFIG)
  chats = [
    small_models.user("", f"what shape{'?' * n}") for n in range(PROMPTS)
  ]
  sizes = [64 if n in (3, 5) else 40 for n in range(PROMPTS)]
  return [
    processor([chat], lengths=(size,), rows=1)
    for chat, size in zip(chats, sizes, strict=True)
  ]


KEYS = jax.random.split(jax.random.key(0), PROMPTS)


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(1.0, marks=pytest.mark.full, id="sampled"),
    pytest.param(0.0, marks=pytest.mark.full, id="greedy"),
  ],
)
def way(request, rings):
  return sampler.Sampling(temperature=request.param, top_p=0.9)


@pytest.fixture(scope="module")
def alone(params, prompts, way):
  """What the sampler answers to each prompt, with its key."""
  run = jax.jit(
    functools.partial(
      sampler.rollout,
      answers=1,
      length=LENGTH,
      temperature=way.temperature,
      top_p=way.top_p,
    ),
    static_argnums=1,
  )
  return [
    run(params, CONFIG, prompt, KEYS[n : n + 1])
    for n, prompt in enumerate(prompts)
  ]


def requests(prompts, read=None):
  for number, prompt in enumerate(prompts):
    if read is not None:
      read.append(number)
    yield prompt, KEYS[number]


def run(params, prompts, way, read=None):
  return continuous.answers(
    (params,), CONFIG, way, requests(prompts, read), lanes=LANES, length=LENGTH
  )


def check_same(found, alone):
  for one in found:
    wanted = alone[one.number]
    np.testing.assert_array_equal(one.tokens, wanted.tokens)
    np.testing.assert_array_equal(one.mask, wanted.mask)
    logprobs = wanted.fields["logprobs_sampler"]
    # Float32 sums over other numbers of padded keys.
    np.testing.assert_allclose(one.records, logprobs, atol=2e-5)


def test_answers_are_those_of_the_sampler(params, prompts, way, alone):
  found = list(run(params, prompts, way))
  assert sorted(one.number for one in found) == [*range(PROMPTS)]
  check_same(found, alone)
  lengths = [int(one.mask.sum()) for one in found]
  if way.temperature:
    # The rest says little unless some end early, late and never.
    assert min(lengths) < 3 and max(lengths) == LENGTH
    assert len({*lengths}) > 3
    assert [one.number for one in found] != [*range(PROMPTS)]


@pytest.mark.full
def test_the_next_prompt_takes_a_lane(params, prompts):
  """In one ring, of one room: the same, with what is quick to compile."""
  config = dataclasses.replace(CONFIG, other_end_token_ids=(*range(40, 70),))
  some = [n for n in range(PROMPTS) if prompts[n].mask.shape[1] == 40][:4]
  together = jax.tree.map(
    lambda *x: np.concatenate(x), *(prompts[n] for n in some)
  )
  run = jax.jit(
    functools.partial(sampler.rollout, answers=1, length=LENGTH),
    static_argnums=1,
  )
  wanted = run(params, config, together, KEYS[np.array(some)])
  found = continuous.answers(
    (params,),
    config,
    sampler.Sampling(),
    ((prompts[n], KEYS[n]) for n in some),
    lanes=2,
    length=LENGTH,
  )
  for one in found:
    number = one.number
    np.testing.assert_array_equal(one.tokens[0], wanted.tokens[number])
    np.testing.assert_array_equal(one.mask[0], wanted.mask[number])


def test_prompts_are_read_when_there_is_a_lane(params, prompts, way, alone):
  read = []
  for done, one in enumerate(run(params, prompts, way, read=read)):
    assert len(read) <= LANES + done
    check_same([one], alone)
  assert read == [*range(PROMPTS)]


def test_no_lane_waits(params, prompts, way):
  """Lanes that are decoded: fewer than if all waited for the longest."""
  *_, last = found = list(run(params, prompts, way))
  tokens = sum(int(one.mask.sum()) - 1 for one in found)
  lengths = {one.number: int(one.mask.sum()) for one in found}
  batches = [
    max(lengths[n] for n in range(start, min(start + LANES, PROMPTS))) - 1
    for start in range(0, PROMPTS, LANES)
  ]
  assert tokens <= last.steps < LANES * sum(batches)


def test_programs_are_compiled_once(params, prompts, way):
  first = list(run(params, prompts, way))
  programs = lanes.run._cache_size(), lanes.admit._cache_size()
  again = list(run(params, prompts, way))
  assert programs == (
    lanes.run._cache_size(),
    lanes.admit._cache_size(),
  )
  for one, other in zip(first, again, strict=True):
    assert one.number == other.number
    np.testing.assert_array_equal(one.tokens, other.tokens)


def test_a_stream_may_be_empty_or_short(params, prompts, way, alone):
  assert not list(run(params, [], way))
  check_same(run(params, prompts[:1], way), alone)


def test_a_stream_may_be_left(params, prompts, way, alone):
  stream = run(params, prompts, way)
  check_same([next(stream)], alone)
  stream.close()
  check_same(run(params, prompts, way), alone)


def test_what_has_no_lanes_is_refused(params, prompts):
  way, sparse = sampler.Sampling(), Sparse(2, init=2, local=3, top_k=2)
  both = jax.tree.map(lambda *x: np.concatenate(x), *prompts[:2])

  def answers(lanes=2, config=CONFIG, prompt=both):
    requests = iter([(prompt, KEYS[0])])
    return list(
      continuous.answers(
        (params,), config, way, requests, lanes=lanes, length=LENGTH
      )
    )

  with pytest.raises(UserError, match="prompt 0: expected one .*, found 2;"):
    answers()
  with pytest.raises(UserError, match="lanes and length of .* 1, found 0 and"):
    answers(lanes=0)
  with pytest.raises(UserError, match="attends to all keys, found sparse"):
    answers(config=dataclasses.replace(CONFIG, sparse=sparse))


@pytest.mark.parametrize("room", [4, 6, 11])
def test_a_ring_keeps_its_newest_columns(room):
  """Of a ring of 6 that has had columns 0 to 8."""
  columns = np.array([6, 7, 8, 3, 4, 5], np.float32)
  pairs = (jnp.asarray(columns).reshape(1, 1, 1, 6, 1),)
  length, start = jnp.int32(9), jnp.zeros(1, jnp.int32)
  cache = decoding.Cache(pairs, pairs, length, start)
  found = decoding.resize(cache, room).keys[0].ravel()
  for column in range(9 - min(room, 6), 9):
    assert found[column % room] == column
