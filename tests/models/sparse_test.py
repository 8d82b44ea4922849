"""A model with sparse attention: sampler, scorer, whole rows and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.models import rows, vlm
from mmrl.models.kernels.blocks import Sparse
from mmrl.rollouts import decode_loop, sampler

G, R = 3, 9
# The bytes from "!" on, which is where texts have some.
SPARSE = Sparse(2, init=2, local=3, top_k=2, mix=0.5, punctuation=(33, 46, 63))
CONFIG = small_models.small_config(tied=False, sparse=SPARSE)


@pytest.fixture(scope="module")
def params():
  return small_models.make_params(CONFIG)


@pytest.fixture(scope="module")
def prompt():
  processor = small_models.make_processor(CONFIG)
  return processor(small_models.conversations(), rows=3)


def tokens():
  rng = np.random.RandomState(0)
  return jnp.asarray(rng.randint(0, 200, (3, G, R)))


def run(params, prompt):
  """The prefix, and the answers' output with the rows of two layers."""
  prompt, layers = small_models.on_device(prompt), (-1, 0)

  @jax.jit
  def both(params, prompt, tokens):
    visual = models.vision(params, CONFIG, prompt.patches)
    prefix = models.prefill(
      params, CONFIG, prompt, visual, attention_layers=layers
    )
    inputs = models.embed(params, CONFIG, tokens)
    return prefix, models.extend(
      params, CONFIG, prefix, inputs, attention_layers=layers, tokens=tokens
    )

  return both(params, prompt, tokens())


@pytest.fixture(scope="module")
def found(params, prompt):
  return run(params, prompt)


@pytest.mark.full
def test_sampler_is_scorer(params, found, monkeypatch):
  """Over caches that grow; answers that end are left out on the way."""
  monkeypatch.setattr(decode_loop, "rooms", lambda length: [3, 5, length])
  monkeypatch.setattr(decode_loop, "widths", lambda *_: [3 * G, 4])
  prefix, _ = found

  @jax.jit
  def both(params, prefix):
    drawn = sampler.generate(
      params, CONFIG, prefix, jax.random.key(0), answers=G, length=R
    )
    return drawn, models.score(params, CONFIG, prefix, drawn[0])

  (_, mask, logprobs), scores = both(params, prefix)
  assert mask.sum() > R
  # Float32 sums in another order.
  np.testing.assert_allclose(logprobs[mask], scores.logprobs[mask], atol=2e-5)


@pytest.mark.full
def test_prefill_and_extend_are_whole_rows(params, prompt, found):
  """And so are the attention rows, which are zero off the chosen keys."""
  prefix, output = found
  full = small_models.full_rows(prompt, np.asarray(tokens()))
  apply = jax.jit(models.apply, static_argnums=1, static_argnames="attention")
  whole = apply(params, CONFIG, full, attention="all")
  hidden = whole.hidden[:, -R:].reshape(output.hidden.shape)
  np.testing.assert_allclose(output.hidden, hidden, atol=1e-5)
  maps = whole.attention[jnp.array([2, 0])].mean((0, 2))
  plain = models.attention_rows(output.attention)
  wanted = maps[:, -R:].reshape(plain.shape)
  np.testing.assert_allclose(plain, wanted, atol=1e-6)
  np.testing.assert_array_equal(plain == 0, wanted == 0)
  emit = models.attention_policy(output.attention, row="emit")
  wanted = maps[:, -R - 1 : -1].reshape(plain.shape)
  np.testing.assert_allclose(models.attention_rows(emit), wanted, atol=1e-6)
  last = rows.last_rows(prefix, (-1, 0), SPARSE)
  wanted = maps[::G, -R - 1, :-R]
  np.testing.assert_allclose(last, wanted, atol=1e-6)
  # Of single heads, the mean of the rows is the same.
  apart = models.attention_policy(output.attention, row="emit", apart=True)
  mean = models.map_rows(lambda x: x, apart)
  np.testing.assert_allclose(mean, models.attention_rows(emit), atol=1e-6)


@pytest.mark.full
def test_padding_changes_nothing(params, prompt, found):
  padded = small_models.pad_prompt(prompt, left=5, right=3, patches=16)
  for other in (padded, small_models.to_the_left(prompt)):
    _, output = run(params, other)
    # Values of up to 3, of float32 sums in another order.
    np.testing.assert_allclose(output.hidden, found[1].hidden, atol=1e-5)


@pytest.mark.full
def test_embeddings_alone_are_refused(params, found):
  prefix, _ = found
  inputs = jnp.zeros((3, G, R, CONFIG.text.hidden_size))
  with pytest.raises(UserError, match="expected the answers' tokens"):
    vlm.extend(params, CONFIG, prefix, inputs)
