"""Two models' answers: worked numbers, and the loop against the sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models, strategies
from mmrl.errors import UserError
from mmrl.models import decoding, vlm
from mmrl.rollouts import decode_loop, sampler, sampling
from mmrl.strategies import direction

RL = jnp.log(jnp.array([0.6, 0.3, 0.1]))
BASE = jnp.log(jnp.array([0.3, 0.5, 0.2]))
# Four tokens of which two are on either list.
LISTED_RL = jnp.log(jnp.array([0.2, 0.05, 0.6, 0.15]))
LISTED_BASE = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
DRAWS = 20_000


def uniform(count: int, seed: int = 0):
  return jax.random.uniform(jax.random.key(seed), (count, 5))


# One step.


selective_step = small_models.compiled(strategies.selective_step)


def frequencies(rl, base, **options):
  """Shares of tokens among all draws, the first ones, and the second ones."""
  rows = (jnp.broadcast_to(x, (DRAWS, x.shape[-1])) for x in (rl, base))
  tokens, redrawn = selective_step(uniform(DRAWS), *rows, **options)
  count = rl.shape[-1]
  first = np.bincount(tokens[~redrawn], minlength=count)
  second = np.bincount(tokens[redrawn], minlength=count)
  return first / DRAWS, second / max(second.sum(), 1), float(redrawn.mean())


def check_shares(found, wanted, count=DRAWS):
  """Each within five deviations."""
  wanted = np.array(wanted)
  deviation = np.sqrt(wanted * (1 - wanted) / count)
  assert (np.abs(found - wanted) <= 5 * deviation).all(), (found, wanted)


@pytest.mark.full
def test_step_draws_from_base_and_again_from_the_mix():
  """Base says token 0 in 30 %, which stands; the others are drawn again."""
  first, second, share = frequencies(RL, BASE, threshold=-0.3, g=0.1)
  check_shares(first, [0.3, 0, 0])
  check_shares(share, 0.7)
  check_shares(second, [0.629574, 0.279080, 0.091346], DRAWS * share)


@pytest.mark.full
def test_nucleus_of_the_mix():
  """Base keeps .5 and .3, tokens 1 and 0; the mix .629574 and .279080."""
  first, second, share = frequencies(RL, BASE, threshold=-0.3, g=0.1, top_p=0.7)
  check_shares(first, [0.375, 0, 0])
  check_shares(second, [0.692864, 0.307136, 0], DRAWS * share)


@pytest.mark.full
def test_temperature_divides_the_mix_and_not_the_gate():
  """At 0.5 base is .09, .25, .04 over .38; D stays what it is at 1."""
  first, second, share = frequencies(
    RL, BASE, threshold=-0.6, g=0.1, temperature=0.5
  )
  check_shares(first, [0.09 / 0.38, 0.25 / 0.38, 0])
  check_shares(second, [0.821320, 0.161390, 0.017290], DRAWS * share)


def test_start_from_rl():
  """RL says 1 and 2 in 40 %, which it likes less than base does."""
  first, second, share = frequencies(
    RL, BASE, threshold=-0.3, g=0.1, start="rl"
  )
  check_shares(first, [0.6, 0, 0])
  check_shares(second, [0.629574, 0.279080, 0.091346], DRAWS * share)


def test_published_lists():
  """Base lists 0 and 1, RL 2 and 0; 1 counts as ln .2, as 0 does.

  Both D are below -.4: -.916291 and ln .2/.3 = -.405465.
  """
  options = {"threshold": -0.4, "g": 0.1, "top_k": 2}
  first, second, share = frequencies(LISTED_RL, LISTED_BASE, **options)
  assert first[:2].sum() == 0
  check_shares(second, [0.487232, 0.512768, 0, 0], DRAWS * share)
  options["threshold"] = -0.41
  first, _, _ = frequencies(LISTED_RL, LISTED_BASE, **options)
  check_shares(first[:2], [0, 0.3])


@pytest.mark.parametrize("top_k", [4, 50])
def test_lists_of_all_tokens_are_rows(top_k):
  options = {"threshold": -0.3, "g": 0.1}
  lists = frequencies(LISTED_RL, LISTED_BASE, top_k=top_k, **options)
  rows = frequencies(LISTED_RL, LISTED_BASE, **options)
  for one, other in zip(lists, rows, strict=True):
    np.testing.assert_array_equal(one, other)


def test_greedy_step():
  """Base's favourite is 1, which RL dislikes; the mix has 0."""
  options = {"g": 0.1, "temperature": 0.0}
  step = functools.partial(selective_step, uniform(1)[0])
  token, redrawn = step(RL, BASE, threshold=-0.3, **options)
  assert (token, redrawn) == (0, True)
  token, redrawn = step(RL, BASE, threshold=-0.6, **options)
  assert (token, redrawn) == (1, False)


@pytest.mark.full
@pytest.mark.parametrize("top_k", [None, 2])
def test_equal_models_never_open_the_gate(top_k):
  """A token off the lists counts as likelier to RL than it is."""
  rows = jax.nn.log_softmax(3 * jax.random.normal(jax.random.key(1), (500, 20)))
  numbers = uniform(500)
  tokens, redrawn = selective_step(
    numbers, rows, rows, threshold=-1e-6, g=0.5, top_k=top_k
  )
  wanted = sampling.sample(numbers[:, :2], rows)
  assert not redrawn.any()
  np.testing.assert_array_equal(tokens, wanted)


@pytest.mark.full
def test_models_without_a_common_token_keep_the_first_draw():
  rl = jnp.log(jnp.array([1.0, 0.0]))
  base = jnp.log(jnp.array([0.0, 1.0]))
  token, redrawn = selective_step(
    uniform(1)[0], rl, base, threshold=-0.3, g=0.1
  )
  assert (token, redrawn) == (1, False)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"gate": "size"}, "gate must be one of .*, got 'size'"),
    ({"start": "sft"}, "start must be one of .*, got 'sft'"),
    ({"threshold": 0.0}, "must be below 0, got 0.0: equal models"),
    ({"g": -0.1}, "g must be at least 0, got -0.1"),
    ({"top_k": 0}, "top_k must be None or at least 1, got 0"),
  ],
)
def test_mistakes(change, message):
  options = {"threshold": -0.3, "g": 0.1} | change
  with pytest.raises(UserError, match=message):
    strategies.selective_step(uniform(1)[0], RL, BASE, **options)


# The loop.

ANSWERS, LENGTH = 3, 8
CONFIG = small_models.small_config(tied=False)


@pytest.fixture(scope="module")
def base():
  return small_models.make_params(CONFIG)


@pytest.fixture(scope="module")
def rl(base):
  """A model some way off, tower and head included."""

  def move(path, x):
    return x + 0.05 * jax.random.normal(
      jax.random.key(len(str(path))), x.shape, x.dtype
    )

  return jax.tree_util.tree_map_with_path(move, base)


@pytest.fixture(scope="module")
def prompt():
  chats = small_models.mixed()
  return small_models.make_processor(CONFIG)(chats, rows=len(chats))


def extrapolate(rl, base, prompt, key, threshold, g, **options):
  return strategies.extrapolate(
    rl,
    base,
    CONFIG,
    prompt,
    key,
    answers=ANSWERS,
    length=LENGTH,
    threshold=threshold,
    g=g,
    **options,
  )


NAMES = ("temperature", "top_p", "top_k", "gate", "start")
compiled = jax.jit(extrapolate, static_argnames=NAMES)


def run(*arguments, threshold=-0.3, g=0.1, **options):
  return compiled(*arguments, threshold, g, **options)


def run_anew(*arguments):
  """For tests that change what the loop calls."""
  return jax.jit(lambda *arguments: extrapolate(*arguments, -0.3, 0.1))(
    *arguments
  )


@functools.partial(jax.jit, static_argnames=NAMES)
def rollout(params, prompt, key, **options):
  return sampler.rollout(
    params, CONFIG, prompt, key, answers=ANSWERS, length=LENGTH, **options
  )


@pytest.fixture(scope="module")
def result(rl, base, prompt):
  return run(rl, base, prompt, jax.random.key(0))


def check_same(found, wanted):
  np.testing.assert_array_equal(found.mask, wanted.mask)
  np.testing.assert_array_equal(found.tokens, wanted.tokens)


@pytest.mark.full
@pytest.mark.parametrize(
  "options",
  small_models.first({}, {"temperature": 0.7, "top_p": 0.8}),
)
def test_equal_models_answer_as_the_sampler_does(base, prompt, options):
  key = jax.random.key(3)
  found = run(base, base, prompt, key, **options)
  check_same(found, rollout(base, prompt, key, **options))
  assert not found.redrawn.any()
  assert (found.delta_logp == 0).all()


@pytest.mark.full
@pytest.mark.parametrize("start", small_models.first("base", "rl"))
def test_a_closed_gate_leaves_one_model(rl, base, prompt, start):
  key = jax.random.key(4)
  found = run(rl, base, prompt, key, threshold=-1e9, start=start)
  assert not found.redrawn.any()
  params = {"base": base, "rl": rl}[start]
  check_same(found, rollout(params, prompt, key))


@pytest.mark.full
def test_replacing_every_token_is_the_other_model(rl, base, prompt):
  """Greedy, as the second draws have numbers of their own."""
  key, options = jax.random.key(0), {"temperature": 0.0}
  found = run(
    rl, base, prompt, key, threshold=1.0, g=0.0, gate="random", **options
  )
  np.testing.assert_array_equal(found.redrawn, found.mask)
  check_same(found, rollout(rl, prompt, key, **options))


@pytest.mark.full
def test_changes_are_those_of_the_scorer(rl, base, prompt, result):
  """Two routes: cached token by token, and whole answers at once."""

  @jax.jit
  def score(params, prompt, tokens):
    visual = models.vision(params, CONFIG, prompt.patches)
    prefix = models.prefill(params, CONFIG, prompt, visual)
    return models.score(params, CONFIG, prefix, tokens).logprobs

  scores = [score(params, prompt, result.tokens) for params in (rl, base)]
  wanted = direction.delta_logp(*scores, result.mask)
  np.testing.assert_allclose(result.delta_logp, wanted, atol=1e-4)
  assert np.abs(wanted).max() > 0.5


@pytest.mark.full
def test_answers_are_padded_and_traced(result):
  assert result.tokens.shape == (4, ANSWERS, LENGTH)
  for name in ("mask", "redrawn", "delta_logp"):
    assert getattr(result, name).shape == result.tokens.shape
  assert (result.tokens[~result.mask] == CONFIG.pad_token_id).all()
  assert not (result.redrawn & ~result.mask).any()
  assert (result.delta_logp[~result.mask] == 0).all()
  assert 0 < result.redrawn.sum() < result.mask.sum()
  # What stands is what RL doesn't dislike.
  kept = result.mask & ~result.redrawn
  assert (result.delta_logp[kept] > -0.3).all()
  assert not jnp.isin(result.tokens, jnp.array(CONFIG.banned_token_ids)).any()


@pytest.mark.full
def test_settings_are_not_compiled_for(rl, base, prompt, result):
  """Threshold and g are traced; a key determines the answers."""
  key, before = jax.random.key(0), compiled._cache_size()
  other = run(rl, base, prompt, key, threshold=-0.5, g=0.4)
  assert (other.redrawn != result.redrawn).any()
  check_same(run(rl, base, prompt, key), result)
  assert compiled._cache_size() == before


@pytest.mark.full
def test_draws_do_not_depend_on_their_parts(
  rl, base, prompt, result, monkeypatch
):
  """Two answers of each prompt at a time, and one; a key of each prompt."""
  size = CONFIG.text.vocab_size
  monkeypatch.setattr(decode_loop, "_DRAWN_VALUES", 2 * 4 * size)
  keys = jax.random.split(jax.random.key(0), 4)
  check_same(run_anew(rl, base, prompt, keys), result)


@pytest.mark.full
def test_other_gates_and_lists_decode(rl, base, prompt):
  found = run(
    rl, base, prompt, jax.random.key(0), threshold=1e-3, gate="js", top_k=5
  )
  assert found.redrawn[found.mask].mean() > 0.9


def favour_end(monkeypatch, amount):
  """Both models' answers are about to end."""
  logits = vlm.logits

  def ending(*arguments):
    return logits(*arguments).at[..., CONFIG.eos_token_id].add(amount)

  monkeypatch.setattr(vlm, "logits", ending)


def note_decoded(monkeypatch):
  """A list of how many answers either model decodes, by step."""
  decoded, decode = [], decoding.decode

  def noting(*arguments):
    token = arguments[5]
    jax.debug.callback(lambda: decoded.append(token.size))
    return decode(*arguments)

  monkeypatch.setattr(decoding, "decode", noting)
  return decoded


@pytest.mark.full
def test_the_loop_ends_with_the_last_answer(rl, base, prompt, monkeypatch):
  """The prefixes emit the first token, so one token costs no decoding."""
  decoded = note_decoded(monkeypatch)
  favour_end(monkeypatch, 1e9)
  found = run_anew(rl, base, prompt, jax.random.key(0))
  jax.effects_barrier()
  assert (found.mask.sum(-1) == 1).all()
  assert not decoded


@pytest.mark.full
def test_room_and_width_change_nothing(rl, base, prompt, monkeypatch):
  """All answers, then fewer and fewer, in two rooms."""
  key = jax.random.key(3)
  favour_end(monkeypatch, 5.2)
  whole = run_anew(rl, base, prompt, key)
  monkeypatch.setattr(decode_loop, "_FIRST_ROOM", 5)
  monkeypatch.setattr(decode_loop, "_ONE_WIDTH", 0)
  decoded = note_decoded(monkeypatch)
  found = run_anew(rl, base, prompt, key)
  jax.effects_barrier()
  check_same(found, whole)
  np.testing.assert_array_equal(found.redrawn, whole.redrawn)
  # A longer cache adds up attention in another order.
  np.testing.assert_allclose(found.delta_logp, whole.delta_logp, atol=1e-4)
  assert 0 < whole.redrawn.sum() < whole.mask.sum()
  going = whole.mask[:, :, 1:].sum((0, 1)).tolist()
  widths = decode_loop.widths(whole.mask[..., 0].size, LENGTH)
  fitting = [min(w for w in widths if w >= n) for n in going if n]
  assert decoded == [w for w in fitting for _ in range(2)]
  assert len({*decoded}) > 2
