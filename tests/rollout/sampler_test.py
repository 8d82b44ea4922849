"""The decoding loop against whole sequences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models, parallel, sharding
from mmrl.models import decoding, vlm
from mmrl.plan import hlo
from mmrl.rollout import sampler

ANSWERS, LENGTH = 4, 8
CONFIG = small_models.small_config(tied=False)
EOS, PAD = CONFIG.eos_token_id, CONFIG.pad_token_id


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


def generate(params, prefix, seed=0, answers=ANSWERS, length=LENGTH, **options):
  """Compiled anew each time: tests change what the loop calls."""

  @jax.jit
  def run(params, prefix, key):
    return sampler.generate(
      params,
      CONFIG,
      prefix,
      key,
      answers=answers,
      length=length,
      **options,
    )

  result = run(params, prefix, jax.random.key(seed))
  return tuple(map(np.asarray, result))


@pytest.fixture
def favour(monkeypatch):
  """Adds to the logits of chosen tokens, for sampler and scorer alike."""
  logits = vlm.logits

  def add(tokens, amount):
    def favoured(params, config, hidden):
      values = logits(params, config, hidden)
      return values.at[..., jnp.array(tokens)].add(amount)

    monkeypatch.setattr(vlm, "logits", favoured)

  return add


def test_greedy_is_argmax_of_whole_sequences(params, prompt, prefix):
  """If each token is the argmax after those before it, so is each step."""
  tokens, mask, logprobs = generate(params, prefix, answers=1, temperature=0.0)
  full = small_models.full_rows(prompt, tokens)
  output = jax.jit(models.apply, static_argnums=1)(params, CONFIG, full)
  logits = np.array(output.logits[:, -LENGTH - 1 : -1])
  logits[..., list(CONFIG.banned_token_ids)] = -1e30
  best = logits.argmax(-1)
  mask = mask[:, 0]
  np.testing.assert_array_equal(tokens[:, 0][mask], best[mask])
  wanted = np.asarray(jax.nn.log_softmax(logits)).max(-1)
  np.testing.assert_allclose(logprobs[:, 0][mask], wanted[mask], atol=2e-5)
  assert mask.sum() > LENGTH


def test_answers_end_once_and_are_padded(params, prefix, favour):
  favour([EOS], 4.5)
  tokens, mask, logprobs = generate(params, prefix, answers=16)
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


@pytest.fixture
def steps(monkeypatch):
  """Grows by one each time the compiled loop decodes a token."""
  counted = []
  decode = decoding.decode

  def counting(*args):
    jax.debug.callback(lambda: counted.append(1))
    return decode(*args)

  monkeypatch.setattr(decoding, "decode", counting)
  return counted


def test_the_loop_ends_with_the_last_answer(params, prefix, favour, steps):
  """The prefix emits the first token, so one token costs no decoding."""
  favour([EOS], 1e9)
  tokens, mask, _ = generate(params, prefix)
  jax.effects_barrier()
  assert (tokens[..., 0] == EOS).all()
  assert (mask.sum(-1) == 1).all()
  assert len(steps) == 0


def test_the_loop_ends_early(params, prefix, favour, steps):
  favour([EOS], 5.5)
  _, mask, _ = generate(params, prefix, length=64, answers=2)
  jax.effects_barrier()
  assert len(steps) == mask.sum(-1).max() - 1 < 63


def test_the_loop_ends_at_its_length(params, prefix, favour, steps):
  favour([EOS], -1e9)
  _, mask, _ = generate(params, prefix)
  jax.effects_barrier()
  assert mask.all()
  assert len(steps) == LENGTH - 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_placeholders_are_never_sampled(params, prefix, favour, temperature):
  favour(list(CONFIG.banned_token_ids), 1e6)
  tokens, _, logprobs = generate(params, prefix, temperature=temperature)
  assert not np.isin(tokens, CONFIG.banned_token_ids).any()
  assert np.isfinite(logprobs).all()


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
  for row, p in zip(tokens, np.asarray(jax.nn.softmax(logits)), strict=True):
    counts = np.bincount(row.ravel(), minlength=len(p))
    for token in np.argsort(p)[-10:]:
      deviation = np.sqrt(count * p[token] * (1 - p[token]))
      assert abs(counts[token] - count * p[token]) < 5 * deviation


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.3}])
def test_logprobs_are_those_of_the_unfiltered_policy(params, prefix, options):
  tokens, mask, logprobs = generate(params, prefix, temperature=1.3, **options)
  score = functools.partial(models.score, temperature=1.3)
  scores = jax.jit(score, static_argnums=1)(params, CONFIG, prefix, tokens)
  np.testing.assert_allclose(
    logprobs[mask], np.asarray(scores.logprobs)[mask], atol=2e-5
  )


@pytest.fixture(scope="module")
def whole(params, prefix):
  """Answers from caches of the whole length, layers taken apart."""
  return generate(params, prefix, length=13)


def check_same(result, whole):
  tokens, mask, logprobs = result
  np.testing.assert_array_equal(tokens, whole[0])
  np.testing.assert_array_equal(mask, whole[1])
  np.testing.assert_allclose(logprobs, whole[2], atol=2e-5)


def test_room_changes_nothing(params, prefix, whole, monkeypatch):
  """Caches of 3, 6, 12 and 13 tokens, one after the other."""
  monkeypatch.setattr(sampler, "_FIRST_ROOM", 3)
  assert sampler.rooms(13) == [3, 6, 12, 13]
  assert sampler.rooms(3) == [3]
  assert sampler.rooms(2) == [2]
  check_same(generate(params, prefix, length=13), whole)


def test_answers_end_in_any_room(params, prefix, favour, steps, monkeypatch):
  favour([EOS], 5.5)
  monkeypatch.setattr(sampler, "_FIRST_ROOM", 2)
  _, mask, _ = generate(params, prefix, length=64, answers=2)
  jax.effects_barrier()
  assert len(steps) == mask.sum(-1).max() - 1 < 63


@pytest.mark.parametrize("unrolled", [True, False])
def test_width_changes_nothing(params, prefix, favour, monkeypatch, unrolled):
  """Four, then two, then one answer of a prompt, in three rooms."""
  if not unrolled:
    monkeypatch.setattr(vlm, "_UNROLLED_BYTES", 0)
  favour([EOS], 4.5)
  result = generate(params, prefix, length=40)
  ends = np.sort(result[1].sum(-1), axis=1)
  assert ends[:, 1].max() < ends[:, 3].max()
  monkeypatch.setattr(sampler, "_FIRST_ROOM", 5)
  monkeypatch.setattr(sampler, "_ONE_WIDTH", 0)
  assert sampler.widths(ANSWERS, 40) == [4, 2, 1]
  assert sampler.widths(3, 40) == [3, 2, 1]
  assert sampler.widths(1, 40) == [1]
  check_same(generate(params, prefix, length=40), result)


def test_ended_answers_are_not_decoded(params, prefix, favour, monkeypatch):
  favour([EOS], 4.5)
  monkeypatch.setattr(sampler, "_ONE_WIDTH", 0)
  decoded = []
  decode = decoding.decode

  def counting(*args):
    jax.debug.callback(lambda: decoded.append(args[-1].shape[1]))
    return decode(*args)

  monkeypatch.setattr(decoding, "decode", counting)
  _, mask, _ = generate(params, prefix, length=40)
  jax.effects_barrier()
  going = (mask[:, :, 1:].sum(1).max(0)).tolist()
  assert decoded == [4 if n > 2 else n for n in going if n]
  assert {2, 1} < set(decoded)


def test_draws_do_not_depend_on_their_parts(params, prefix, whole, monkeypatch):
  """Three answers of each prompt at a time, and a remainder."""
  size = CONFIG.text.vocab_size
  monkeypatch.setattr(sampler, "_DRAWN_VALUES", 3 * len(prefix.mask) * size)
  check_same(generate(params, prefix, length=13), whole)


def test_devices_decode_apart(params, monkeypatch):
  """Whatever width, room and part, they share but the number that goes on."""
  monkeypatch.setattr(sampler, "_ONE_WIDTH", 4)
  monkeypatch.setattr(sampler, "_FIRST_ROOM", 5)
  monkeypatch.setattr(vlm, "_UNROLLED_BYTES", 0)
  layout = sharding.Layout(parallel.data_mesh())
  monkeypatch.setattr(sampler, "_DRAWN_VALUES", CONFIG.text.vocab_size)
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


def test_layers_together_are_layers_apart(params, prefix, whole, monkeypatch):
  assert isinstance(decoding.take_apart(params, prefix), tuple)
  monkeypatch.setattr(vlm, "_UNROLLED_BYTES", 0)
  together = decoding.take_apart(params, prefix)
  assert isinstance(together, decoding.Layers)
  check_same(generate(params, prefix, length=13), whole)


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
