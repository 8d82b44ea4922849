"""The token policy, and the scorer of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.models import policy, vocabulary
from mmrl.rollouts import sampler
from mmrl.types import Logits


@pytest.mark.parametrize("row", small_models.first("self", "emit"))
def test_rows_and_scores_of_sampled_answers(row):
  """Rows sum to one; later positions and padding are exactly zero; "self" drops
  the diagonal. The scorer finds the sampler's log-probabilities."""
  model = small_models.make_model(small_models.small_config(tied=False))
  prompt = model.processor(small_models.conversations())
  options = {"temperature": 0.7, "attention_layers": (-1,)}

  @jax.jit
  def both(params, prompt, key):
    rollout = sampler.rollout(
      params, model.config, prompt, key, answers=2, length=5, **options
    )
    prefix, tokens = rollout.prefix, rollout.tokens
    return rollout, models.score(
      params, model.config, prefix, tokens, attention_row=row, **options
    )

  rollout, scores = both(model.params, prompt, jax.random.key(0))
  p = np.asarray(models.attention_rows(scores.attention))
  np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
  real = np.asarray(rollout.prefix.mask)
  prompt_length = real.shape[1]
  padding = np.broadcast_to(~real[:, None, None], p[..., :prompt_length].shape)
  assert (p[..., :prompt_length][padding] == 0).all()
  own = p[..., prompt_length:]
  earlier = np.tri(own.shape[-1], k=-1, dtype=bool)
  assert (own[..., ~earlier] == 0).all()
  assert (own[..., earlier] > 0).all()
  mask = np.asarray(rollout.mask)
  assert mask.sum() > 10
  np.testing.assert_allclose(
    scores.logprobs[mask], rollout.fields["logprobs_sampler"][mask], atol=2e-5
  )


@pytest.fixture(scope="module")
def hidden_and_tokens():
  rng = np.random.RandomState(0)
  hidden = rng.randn(2, 3, 5, 32).astype(np.float32)
  return jnp.asarray(hidden), jnp.asarray(rng.randint(0, 256, (2, 3, 5)))


# 272 entries: all at once, even parts, a remainder, and one in which a part is
# cut short among the placeholders.
@pytest.mark.parametrize("entries", small_models.first(11, 100, 128, 300))
@pytest.mark.parametrize("tied", [True, False])
def test_parts_change_nothing(hidden_and_tokens, monkeypatch, entries, tied):
  """Values and gradients are those of a log-softmax over all entries."""
  config = small_models.small_config(tied=tied)
  params = small_models.make_params(config)
  hidden, tokens = hidden_and_tokens
  weights = np.random.RandomState(1).randn(2, *tokens.shape)

  def directly(params, config, hidden, tokens, temperature):
    logits = models.logits(params, config, hidden) / temperature
    banned = jnp.array(config.banned_token_ids)
    logs = jax.nn.log_softmax(logits.at[..., banned].set(-1e30))
    own = jnp.take_along_axis(logs, tokens[..., None], -1)[..., 0]
    return own, -jnp.sum(jnp.exp(logs) * logs, -1)

  def in_parts(params, config, hidden, tokens, temperature):
    logits = policy.lazy_logits(params, config, hidden, temperature)
    return policy.token_logprobs(logits, tokens)

  def run(function):
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def grad(params, hidden):
      pair = function(params, config, hidden, tokens, 0.8)
      total = sum((w * x).sum() for w, x in zip(weights, pair, strict=True))
      return total, pair

    return grad(params, hidden)

  monkeypatch.setattr(vocabulary, "_CHUNK_VALUES", entries * tokens.size)
  monkeypatch.setattr(vocabulary, "_LEAST_ENTRIES", 1)
  chunked, whole = run(in_parts), run(directly)
  for one, other in zip(chunked[0][1], whole[0][1], strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  for one, other in zip(*map(jax.tree.leaves, (chunked, whole)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_memory_does_not_grow_with_tokens_times_entries():
  """Four times the tokens, four times the entries: not sixteen times."""

  def temporary(count, entries):
    def loss(hidden, head):
      tokens = jnp.zeros(count, jnp.int32)
      pair = vocabulary.chosen(
        hidden, head, tokens, pattern="vd", banned=(3,), temperature=1.0
      )
      return pair[0].sum() + pair[1].sum()

    shapes = [jax.ShapeDtypeStruct((n, 8), "float32") for n in (count, entries)]
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  logits = 4 * 4096 * 32768
  assert temporary(4096, 32768) < 0.6 * logits
  assert temporary(4096, 4 * 32768) < 0.2 * 4 * logits


def test_placeholders_have_no_probability(hidden_and_tokens):
  """Not even where the head is sure of them; entropies stay finite."""
  config = small_models.small_config(tied=False)
  params = small_models.make_params(config)
  hidden, tokens = hidden_and_tokens
  kernel = params["text"]["head"]["kernel"]
  banned = jnp.array(config.banned_token_ids)
  kernel = kernel.at[:, banned].set(100 * hidden[0, 0, :2].T)
  head = {"head": {"kernel": kernel}}
  params = params | {"text": params["text"] | head}
  logits = policy.token_logits(params, config, hidden, 1.0)
  assert (jax.nn.softmax(logits)[..., banned] == 0).all()

  def total(hidden):
    logits = policy.lazy_logits(params, config, hidden)
    return sum(x.sum() for x in policy.token_logprobs(logits, tokens))

  value, grad = jax.jit(jax.value_and_grad(total))(hidden)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  ("logits", "temperature", "entropy"),
  [
    ([1, 0, -1], 1.0, 0.832396),
    ([1, 0, -1], 2.0, 1.020191),
    ([3, 3, 3, 3], 1.0, 1.386294),
    ([100, 0, 0], 1.0, 0),
  ],
)
def test_entropies_golden(logits, temperature, entropy):
  """SAYO's; the head is the identity."""
  hidden = jnp.array([logits], jnp.float32)
  head = jnp.eye(len(logits))
  given = Logits(hidden, head, "vd", (), temperature)
  _, found = policy.token_logprobs(given, jnp.zeros(1, jnp.int32))
  np.testing.assert_allclose(found, [entropy], atol=1e-6)
