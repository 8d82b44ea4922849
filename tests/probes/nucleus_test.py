"""Tests of the probe of nuclei."""

import functools

import jax
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.models import policy
from mmrl.probes import scores as scores_lib
from mmrl.probes.nucleus import nucleus
from mmrl.probes.scores import Scorer

TEMPERATURE = 0.7


@functools.cache
def make_inputs():
  """Three prompts with a row of pictures each, and any answers."""
  config = small_models.small_config(tied=False)
  params = small_models.make_params(config)
  chats = small_models.conversations()
  prompt = small_models.make_processor(config)(chats, rows=len(chats))
  scorer = Scorer(config, TEMPERATURE, (-1,), "self")
  prefix = jax.jit(lambda p, x: scorer.prefill(p, x, None))(params, prompt)
  tokens = np.random.default_rng(0).integers(0, 256, (3, 2, 5))
  batch = small_models.make_batch(prompt, tokens, prefix=prefix)
  return scorer, params, prompt, batch


def run(**options):
  scorer, params, _, batch = make_inputs()

  @jax.jit
  def probe(params, batch):
    scores = scorer(params, batch.prefix, batch.tokens)
    return nucleus(scores, **options), scores_lib.behaviour(scores)

  found, behaviour = probe(params, batch)
  return found.nucleus_entropies_old, behaviour.entropies_old


def test_all_of_the_mass_is_the_entropy_of_behaviour():
  found, expected = run(top_p=1.0)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("renormalise", small_models.first(True, False))
def test_what_top_p_sampling_draws_from(renormalise):
  """From the logits of a whole forward pass over prompts and answers."""
  scorer, params, prompt, batch = make_inputs()
  config, length = scorer.config, batch.tokens.shape[-1]
  full = small_models.full_rows(prompt, np.asarray(batch.tokens))
  output = jax.jit(lambda p, x: models.apply(p, config, x))(params, full)
  hidden = output.hidden[:, -length - 1 : -1]
  logits = policy.token_logits(params, config, hidden, TEMPERATURE)
  p = np.sort(np.asarray(jax.nn.softmax(logits), np.float64))[..., ::-1]
  q = np.where(np.cumsum(p, -1) - p < 0.6, p, 0)
  if renormalise:
    q /= q.sum(-1, keepdims=True)
  expected = -(q * np.log(np.where(q > 0, q, 1))).sum(-1)
  found, _ = run(top_p=0.6, renormalise=renormalise)
  assert found.shape == batch.tokens.shape
  np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-4)


def test_mass_outside_its_range_is_refused():
  with pytest.raises(UserError, match=r"top_p must be in \(0, 1\], got 95.0"):
    run(top_p=95.0)
