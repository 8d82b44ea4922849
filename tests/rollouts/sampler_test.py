"""The decoding loop against whole sequences."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
import small_models

from mmrl import models
from mmrl.machines import sharding
from mmrl.models import decoding, vlm
from mmrl.plan import hlo
from mmrl.rollouts import decode_loop, sampler
from mmrl.train import parallel

ANSWERS, LENGTH = 4, 8
CONFIG = small_models.small_config(tied=False)
EOS, PAD = CONFIG.eos_token_id, CONFIG.pad_token_id
ROOMS = [3, 6, 12, 13]
LOGITS = vlm.logits


@pytest.fixture(scope="module")
def params():
  return small_models.make_params(CONFIG)


@pytest.fixture(scope="module")
def prompt():
  processor = small_models.make_processor(CONFIG)
  chats = small_models.mixed()
  return processor(chats, rows=len(chats))


@pytest.fixture(scope="module")
def prefix(params, prompt):
  @jax.jit
  def run(params, prompt):
    visual = models.vision(params, CONFIG, prompt.patches)
    return models.prefill(params, CONFIG, prompt, visual)

  return run(params, prompt)


@functools.cache
def program(answers, length, **options):
  """The compiled loop, in which `added` is added to the logits."""

  @jax.jit
  def run(params, prefix, key, added):
    def biased(*arguments):
      return LOGITS(*arguments) + added

    with mock.patch.object(vlm, "logits", biased):
      return sampler.generate(
        params, CONFIG, prefix, key, answers=answers, length=length, **options
      )

  return run


def call(run, params, prefix, seed=0, favoured=(), amount=0.0):
  """Tokens, mask and log-probabilities, with `favoured` tokens' logits up."""
  added = np.zeros(CONFIG.text.vocab_size, np.float32)
  added[list(favoured)] = amount
  result = run(params, prefix, jax.random.key(seed), added)
  return tuple(map(np.asarray, result))


def generate(params, prefix, seed=0, favoured=(), amount=0.0, **options):
  sizes = {"answers": ANSWERS, "length": LENGTH} | options
  return call(program(**sizes), params, prefix, seed, favoured, amount)


def test_greedy_is_argmax_of_whole_sequences(params, prompt, prefix):
  """If each token is the argmax after those before it, so is each step."""
  tokens, mask, logprobs = generate(params, prefix, temperature=0.0)
  tokens, mask, logprobs = tokens[:, :1], mask[:, 0], logprobs[:, 0]
  full = small_models.full_rows(prompt, tokens)
  output = jax.jit(models.apply, static_argnums=1)(params, CONFIG, full)
  logits = np.array(output.logits[:, -LENGTH - 1 : -1])
  logits[..., list(CONFIG.banned_token_ids)] = -1e30
  np.testing.assert_array_equal(tokens[:, 0][mask], logits.argmax(-1)[mask])
  wanted = special.log_softmax(logits, axis=-1).max(-1)
  np.testing.assert_allclose(logprobs[mask], wanted[mask], atol=2e-5)
  assert mask.sum() > LENGTH


def test_answers_end_once_and_are_padded(params, prefix):
  tokens, mask, logprobs = generate(params, prefix, 0, [EOS], 4.5)
  lengths = mask.sum(-1)
  # The rest says little unless some answers end early, late and never.
  assert len(set(lengths.ravel().tolist())) > 3
  inside = np.arange(LENGTH) < lengths[..., None]
  np.testing.assert_array_equal(mask, inside)
  assert (tokens[~mask] == PAD).all()
  assert (logprobs[~mask] == 0).all()
  ends = (tokens == EOS) & mask
  last = np.arange(LENGTH) == lengths[..., None] - 1
  assert not (ends & ~last).any()
  assert (ends.any(-1) | (lengths == LENGTH)).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_placeholders_are_never_sampled(params, prefix, temperature):
  tokens, _, logprobs = generate(
    params, prefix, 0, CONFIG.banned_token_ids, 1e6, temperature=temperature
  )
  assert not np.isin(tokens, CONFIG.banned_token_ids).any()
  assert np.isfinite(logprobs).all()


@pytest.mark.full
def test_top_k_of_one_is_greedy(params, prefix):
  one = generate(params, prefix, top_k=1)
  greedy = generate(params, prefix, seed=5, temperature=0.0)
  for ours, wanted in zip(one, greedy, strict=True):
    np.testing.assert_array_equal(ours, wanted)


def test_a_key_determines_the_answers(params, prefix):
  first, again = generate(params, prefix), generate(params, prefix)
  for one, other in zip(first, again, strict=True):
    np.testing.assert_array_equal(one, other)
  assert (generate(params, prefix, seed=1)[0] != first[0]).any()
  # Answers to one prompt are drawn apart.
  assert (first[0][:, 0] != first[0][:, 1]).any()


def test_first_tokens_follow_the_policy(params, prefix):
  """Counts of the ten likeliest tokens, each within five deviations."""
  count = 4000
  tokens, _, _ = generate(params, prefix, answers=count, length=1)
  logits = np.array(models.logits(params, CONFIG, prefix.last_hidden))
  logits[..., list(CONFIG.banned_token_ids)] = -1e30
  for row, p in zip(tokens, special.softmax(logits, axis=-1), strict=True):
    counts = np.bincount(row.ravel(), minlength=len(p))
    for token in np.argsort(p)[-10:]:
      deviation = np.sqrt(count * p[token] * (1 - p[token]))
      assert abs(counts[token] - count * p[token]) < 5 * deviation


@pytest.mark.parametrize(
  "options", small_models.first({"top_k": 3}, {"top_p": 0.3})
)
def test_logprobs_are_those_of_the_unfiltered_policy(params, prefix, options):
  tokens, mask, logprobs = generate(params, prefix, temperature=1.3, **options)
  score = functools.partial(models.score, temperature=1.3)
  scores = jax.jit(score, static_argnums=1)(params, CONFIG, prefix, tokens)
  np.testing.assert_allclose(
    logprobs[mask], np.asarray(scores.logprobs)[mask], atol=2e-5
  )


@pytest.fixture(scope="module")
def whole(params, prefix):
  """Answers from caches of the whole length."""
  return generate(params, prefix, length=ROOMS[-1])


def check_same(result, whole):
  tokens, mask, logprobs = result
  np.testing.assert_array_equal(tokens, whole[0])
  np.testing.assert_array_equal(mask, whole[1])
  np.testing.assert_allclose(logprobs, whole[2], atol=2e-5)


def counting(params, prefix, length, **constants):
  """The loop, compiled with other constants, that notes what it decodes.

  Returns:
    The function that runs it, as `generate`, and the number of answers that
    are decoded in each step; every call appends to the list.
  """
  decoded, decode = [], decoding.decode
  anew = program.__wrapped__(ANSWERS, length)

  def noting(*arguments):
    token = arguments[5]
    jax.debug.callback(lambda: decoded.append(token.size))
    return decode(*arguments)

  def run(*arguments):
    result = call(anew, params, prefix, *arguments)
    jax.effects_barrier()
    return result

  with (
    mock.patch.object(decoding, "decode", noting),
    mock.patch.multiple(decode_loop, **constants),
  ):
    run()
  decoded.clear()
  return run, decoded


@pytest.fixture(scope="module")
def in_rooms(params, prefix):
  """Caches of 3, 6, 12 and 13 tokens, one after the other."""
  return counting(params, prefix, ROOMS[-1], _FIRST_ROOM=3)


def test_rooms(monkeypatch):
  monkeypatch.setattr(decode_loop, "_FIRST_ROOM", 3)
  assert decode_loop.rooms(13) == ROOMS
  assert decode_loop.rooms(3) == [3]
  assert decode_loop.rooms(2) == [2]


@pytest.mark.full
def test_room_changes_nothing(in_rooms, whole):
  run, _ = in_rooms
  check_same(run(), whole)


@pytest.mark.full
def test_the_loop_ends_with_the_last_answer(in_rooms):
  """The prefix emits the first token, so one token costs no decoding."""
  run, decoded = in_rooms
  decoded.clear()
  tokens, mask, _ = run(0, [EOS], 1e9)
  assert (tokens[..., 0] == EOS).all()
  assert (mask.sum(-1) == 1).all()
  assert not decoded


@pytest.mark.full
@pytest.mark.parametrize("amount", [8.5, 6.5, -1e9])
def test_the_loop_ends_in_any_room(in_rooms, amount):
  run, decoded = in_rooms
  decoded.clear()
  _, mask, _ = run(0, [EOS], amount)
  steps = mask.sum(-1).max() - 1
  assert len(decoded) == steps
  if amount < 0:
    assert mask.all()
  else:
    assert 0 < steps < ROOMS[-1] - 1


@pytest.fixture(scope="module", params=[False, True], ids=["scan", "unrolled"])
def narrowing(params, prefix, request):
  """All answers, then a half, a quarter and an eighth, in three rooms."""
  with pytest.MonkeyPatch.context() as patch:
    if request.param:
      patch.setattr(vlm, "_UNROLLED_BYTES", 2**28)
    return counting(params, prefix, 20, _FIRST_ROOM=5, _ONE_WIDTH=0)


def test_widths(monkeypatch):
  monkeypatch.setattr(decode_loop, "_ONE_WIDTH", 0)
  assert decode_loop.widths(20, 20) == [20, 10, 5, 3]
  assert decode_loop.widths(3, 20) == [3, 2, 1]
  assert decode_loop.widths(1, 20) == [1]


@pytest.mark.full
def test_width_changes_nothing(params, prefix, narrowing, monkeypatch):
  """Ended answers are not decoded, whatever their prompts."""
  run, decoded = narrowing
  decoded.clear()
  result = run(0, [EOS], 5.2)
  check_same(result, generate(params, prefix, 0, [EOS], 5.2, length=20))
  going = result[1][:, :, 1:].sum((0, 1)).tolist()
  monkeypatch.setattr(decode_loop, "_ONE_WIDTH", 0)
  widths = decode_loop.widths(ANSWERS * len(prefix.mask), 20)
  assert decoded == [min(w for w in widths if w >= n) for n in going if n]
  assert {*widths} == {*decoded}
  # One of the prompts has more than its share at the end.
  last = result[1][..., sum(n > widths[-1] for n in going) + 1].sum(1)
  assert last.max() > 1


@pytest.mark.full
def test_draws_do_not_depend_on_their_parts(params, prefix, whole, monkeypatch):
  """Three answers of each prompt at a time, and a remainder."""
  size = CONFIG.text.vocab_size
  monkeypatch.setattr(decode_loop, "_DRAWN_VALUES", 3 * len(prefix.mask) * size)
  parts = program.__wrapped__(ANSWERS, ROOMS[-1])
  check_same(call(parts, params, prefix), whole)


@pytest.mark.full
def test_devices_decode_apart(params, monkeypatch):
  """Whatever width, room and part, they share but the number that goes on."""
  monkeypatch.setattr(decode_loop, "_ONE_WIDTH", 4)
  monkeypatch.setattr(decode_loop, "_FIRST_ROOM", 5)
  layout = sharding.Layout(parallel.data_mesh())
  monkeypatch.setattr(decode_loop, "_DRAWN_VALUES", CONFIG.text.vocab_size)
  chats = [small_models.user("", "what shape?")] * layout.shards
  prompt = small_models.make_processor(CONFIG)(chats, rows=len(chats))

  def run(params, prompt):
    visual = jnp.zeros((len(chats), 1, CONFIG.text.hidden_size))
    prefix = models.prefill(params, CONFIG, prompt, visual)
    key = jax.random.key(0)
    return sampler.generate(
      params, CONFIG, prefix, key, answers=ANSWERS, length=LENGTH
    )

  compiled = layout.jit(
    run, in_shardings=(layout.everywhere, layout.prompts)
  ).lower(params, prompt)
  found = hlo.collectives(compiled.compile().as_text())
  assert set(found) == {"all-reduce"}
  assert found["all-reduce"]["bytes"] == 4 * found["all-reduce"]["count"]


@pytest.mark.full
def test_layers_apart_are_layers_together(params, prefix, whole, monkeypatch):
  assert isinstance(decoding.take_apart(params, prefix), decoding.Layers)
  monkeypatch.setattr(vlm, "_UNROLLED_BYTES", 2**28)
  assert isinstance(decoding.take_apart(params, prefix), tuple)
  apart = program.__wrapped__(ANSWERS, ROOMS[-1])
  check_same(call(apart, params, prefix), whole)


@pytest.mark.full
def test_casting_once_changes_nothing(params, prefix, monkeypatch):
  """Float32 weights, bfloat16 products: rounded ahead or in each product."""
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  prefix = jax.tree.map(
    lambda x: x.astype("bfloat16") if x.dtype == jnp.float32 else x, prefix
  )
  run = functools.partial(
    jax.jit(
      functools.partial(sampler.generate, answers=ANSWERS, length=5),
      static_argnums=1,
    ),
    params,
    config,
    prefix,
    jax.random.key(0),
  )
  ahead = run()
  cast = jax.jit(decoding.cast, static_argnums=1)(params, config)
  kernels = cast["text"]["layers"]["q"]["kernel"]
  assert kernels.dtype == jnp.bfloat16
  assert cast["text"]["norm"]["scale"].dtype == jnp.float32
  monkeypatch.setattr(decoding, "cast", lambda params, config: params)
  jax.clear_caches()
  check_same(run(), jax.tree.map(np.asarray, ahead))


@pytest.mark.full
def test_answers_end_at_any_of_several_ends(params, prompt, prefix):
  """With the same tokens up to there; padding may be one of them."""
  config = dataclasses.replace(CONFIG, other_end_token_ids=(PAD, 65))
  assert config.end_token_ids == (EOS, PAD, 65)
  tokens, mask, _ = generate(params, prefix, 1, config.end_token_ids, 3.5)
  added = np.zeros(CONFIG.text.vocab_size, np.float32)
  added[list(config.end_token_ids)] = 3.5

  @jax.jit
  def run(params, prompt, key):
    def biased(*arguments):
      return LOGITS(*arguments) + added

    with mock.patch.object(vlm, "logits", biased):
      return sampler.rollout(
        params, config, prompt, key, answers=ANSWERS, length=LENGTH
      )

  batch = run(params, prompt, jax.random.key(1))
  ends = np.isin(tokens, config.end_token_ids) & mask
  wanted = mask & (np.cumsum(ends, -1) - ends == 0)
  np.testing.assert_array_equal(batch.mask, wanted)
  found = np.asarray(batch.tokens)
  np.testing.assert_array_equal(found, np.where(wanted, tokens, PAD))
  ended = (ends & wanted).any(-1)
  np.testing.assert_array_equal(batch.fields["ended"], ended)
  # Each ends some, and some don't end.
  assert {*found[wanted & ends].tolist()} == {*config.end_token_ids}
  assert not ended.all()
  processor = small_models.make_processor(config)
  kept = (wanted & ~ends).reshape(-1, LENGTH)
  texts = [
    processor.tokenizer.decode(row[keep])
    for row, keep in zip(found.reshape(-1, LENGTH), kept, strict=True)
  ]
  assert processor.decode(found, wanted) == texts
