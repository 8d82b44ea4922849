"""Latent segments: golden values, and inputs against one pass after another."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.errors import UserError
from mmrl.models.config import Latent
from mmrl.models.passes import latent as latent_lib
from mmrl.models.passes import segments
from mmrl.models.policy import score
from mmrl.rollouts import sampler

SHORT = Latent(90, 91, length=4, segments=2)
kinds_of, chosen = (
  jax.jit(x, static_argnums=1) for x in (segments.kinds, segments.chosen)
)


@pytest.mark.parametrize(
  ("where", "ids", "kinds"),
  [
    (
      (True, True),
      [90, 90, 90, 91, 11, 12, 90, 90, 90, 91, 13],
      [1, 2, 2, 3, 0, 0, 1, 2, 2, 3, 0],
    ),
    ((False, True), [11, 12, 90, 90, 90, 91, 13], [0, 0, 1, 2, 2, 3, 0]),
    ((False, False), [11, 12, 13], [0, 0, 0]),
  ],
)
def test_ids_and_kinds_are_golden(where, ids, kinds):
  """Values of the paper's note: K = 4, the texts of two steps."""
  assert segments.insert([[11, 12], [13]], SHORT, where) == ids
  np.testing.assert_array_equal(kinds_of(np.array(ids), SHORT), kinds)
  own = np.array(kinds) < 2
  np.testing.assert_array_equal(chosen(np.array(ids), SHORT), own)


def test_a_segment_of_one_is_its_token():
  one = Latent(90, 91, length=1)
  assert segments.insert([[11]], one, [True]) == [90, 11]
  np.testing.assert_array_equal(
    segments.kinds(jnp.array([90, 90, 11]), one), [1, 1, 0]
  )


def test_later_latent_tokens_are_text():
  once = dataclasses.replace(SHORT, segments=1)
  ids = jnp.array([90, 90, 90, 91, 90, 90, 11])
  np.testing.assert_array_equal(kinds_of(ids, once), [1, 2, 2, 3, 0, 0, 0])
  # Two that follow each other at once are two.
  ids = jnp.array([90, 90, 90, 91, 90, 90, 90, 91])
  np.testing.assert_array_equal(kinds_of(ids, SHORT), [1, 2, 2, 3, 1, 2, 2, 3])
  np.testing.assert_array_equal(segments.starts(ids, SHORT), [0, 4])


@pytest.mark.parametrize(
  ("values", "rows", "columns", "expected"),
  [
    (
      range(4),
      4,
      4,
      [
        *(0, 0.25, 0.75, 1, 0.5, 0.75, 1.25, 1.5),
        *(1.5, 1.75, 2.25, 2.5, 2, 2.25, 2.75, 3),
      ],
    ),
    (range(4), 3, 3, [0, 0.5, 1, 1, 1.5, 2, 2, 2.5, 3]),
    (range(4), 2, 3, [0, 0.5, 1, 2, 2.5, 3]),
    (range(4), 1, 1, [1.5]),
    ([7], 2, 2, [7] * 4),
    (range(9), 2, 2, [1, 2.5, 5.5, 7]),
  ],
)
def test_upsampling_is_golden(values, rows, columns, expected):
  """Half-pixel centres, clamped edges, no antialiasing."""
  x = jnp.array(list(values), jnp.float32)[:, None]
  found = segments.upsample(x, rows, columns)
  np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"length": 3}, "a square"),
    ({"length": 2}, "a square"),
    ({"length": 0}, "at least 1"),
    ({"segments": 0}, "at least 1"),
  ],
)
def test_segments_of_another_kind_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    Latent(90, 91, **options)


def test_texts_become_segments_or_are_refused():
  ids = [11, 90, 12]
  found = segments.whole(ids, SHORT, 6, "file:1")
  assert found == [11, 90, 90, 90, 91, 12]
  with pytest.raises(
    UserError, match="file:1: expected an answer of at most 5"
  ):
    segments.whole(ids, SHORT, 5, "file:1")
  with pytest.raises(UserError, match="at most 2 latent segments.*found 3"):
    segments.whole([90] * 3, SHORT, 99, "file:1")


# The model.

TOKENS = np.array(
  [
    [
      [90, 90, 90, 91, 11, 12, 90, 90, 90, 91, 13, 14],
      [11, 90, 90, 90, 91, 12, 13, 14, 15, 16, 17, 18],
      [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22],
    ],
    [
      [90, 90, 90, 91, 90, 90, 90, 91, 11, 12, 13, 14],
      [11, 12, 13, 90, 90, 90, 91, 14, 15, 16, 90, 90],
      [11, 12, 13, 14, 15, 16, 17, 18, 19, 90, 90, 90],
    ],
  ]
)


def make(**changes):
  config = small_models.small_config(
    latent=dataclasses.replace(SHORT, **changes)
  )
  params = small_models.make_params(config)
  processor = small_models.make_processor(
    dataclasses.replace(config, latent=None)
  )
  chats = [
    small_models.user(small_models.picture(16, 16, 2), "is it?"),
    small_models.user("say yes to all of it"),
  ]
  prompt = small_models.on_device(processor(chats))
  return config, params, prompt


@functools.partial(jax.jit, static_argnums=1)
def prefix_of(params, config, prompt):
  visual = models.vision(params, config, prompt.patches)
  return models.prefill(params, config, prompt, visual)


embed = jax.jit(latent_lib.embed, static_argnums=1)


def by_passes(params, config, prefix, tokens):
  """Inputs by whole passes, each of which makes one more input known."""
  inputs = models.embed(params, config, tokens)
  inner = segments.kinds(tokens, config.latent) == segments.INNER
  for t in range(1, tokens.shape[-1]):
    hidden = models.extend(params, config, prefix, inputs).hidden
    fed = hidden[:, :, t - 1]
    inputs = inputs.at[:, :, t].set(
      jnp.where(inner[:, :, t, None], fed, inputs[:, :, t])
    )
  return inputs


@pytest.mark.full
def test_the_scan_equals_one_pass_after_the_other():
  config, params, prompt = make()
  prefix = prefix_of(params, config, prompt)
  tokens = jnp.asarray(TOKENS)
  found = embed(params, config, prefix, tokens)
  expected = jax.jit(by_passes, static_argnums=1)(
    params, config, prefix, tokens
  )
  # Two programs of a few hundred float32 products each.
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
  # The states are inputs of their own, far from the token's embedding.
  plain = models.embed(params, config, tokens)
  inner = segments.kinds(tokens, config.latent) == segments.INNER
  moved = np.abs(np.asarray(found - plain)).max(-1)
  assert (moved[np.asarray(inner)] > 0.1).all()
  assert (moved[~np.asarray(inner)] == 0).all()


@pytest.mark.full
def test_chunks_of_text_change_nothing(monkeypatch):
  config, params, prompt = make()
  prefix = prefix_of(params, config, prompt)
  tokens = jnp.asarray(TOKENS)
  whole = embed(params, config, prefix, tokens)
  monkeypatch.setattr(latent_lib, "_CHUNK", 3)
  # Traced anew.
  found = jax.jit(lambda *args: latent_lib.embed(*args), static_argnums=1)(
    params, config, prefix, tokens
  )
  np.testing.assert_allclose(found, whole, rtol=2e-4, atol=2e-4)


@functools.partial(jax.jit, static_argnames="config")
def logprob_sum(params, config, prompt, tokens):
  prefix = prefix_of(params, config, prompt)
  logprobs = score(params, config, prefix, tokens).logprobs
  return logprobs.sum()


@pytest.mark.full
def test_gradients_through_the_recurrence_are_those_of_differences():
  """In float64, along the direction of the gradient of one kernel."""
  config, params, prompt = make()
  tokens = jnp.asarray(TOKENS[:, :2])
  run = functools.partial(logprob_sum, config=config)
  grads = jax.grad(run)(params, prompt=prompt, tokens=tokens)
  kernel = grads["text"]["layers"]["mlp"]["down"]["kernel"]
  step = 2e-3 * kernel / jnp.linalg.norm(kernel)

  def moved(sign):
    changed = jax.tree.map(lambda x: x, params)
    down = changed["text"]["layers"]["mlp"]["down"]
    down["kernel"] = down["kernel"] + sign * step
    return float(run(changed, prompt=prompt, tokens=tokens))

  slope = (moved(1) - moved(-1)) / (2 * 2e-3)
  assert slope == pytest.approx(float(jnp.linalg.norm(kernel)), rel=1e-2)
  stopped = dataclasses.replace(
    config, latent=dataclasses.replace(SHORT, stop_feedback_grad=True)
  )
  run = functools.partial(logprob_sum, config=stopped)
  other = jax.grad(run)(params, prompt=prompt, tokens=tokens)
  cut = other["text"]["layers"]["mlp"]["down"]["kernel"]
  assert float(jnp.linalg.norm(cut - kernel)) > 0.05 * float(
    jnp.linalg.norm(kernel)
  )
  same = run(params, prompt=prompt, tokens=tokens)
  assert float(same) == pytest.approx(
    float(logprob_sum(params, config, prompt, tokens)), rel=1e-5
  )


@pytest.mark.full
@pytest.mark.parametrize(
  "changes",
  [
    {},
    pytest.param({"pre_norm": True}, marks=pytest.mark.full),
    pytest.param({"segments": 1}, marks=pytest.mark.full),
  ],
)
def test_sampler_and_scorer_agree_on_latent_answers(changes):
  config, params, prompt = make(**changes)
  # `<latent>` is likely enough to be drawn, and drawn again.
  table = params["text"]["embed"]["embedding"]
  params["text"]["embed"]["embedding"] = table.at[90].mul(3.0)
  batch = jax.jit(
    lambda params, prompt, key: sampler.rollout(
      params, config, prompt, key, answers=6, length=20
    )
  )(params, prompt, jax.random.key(3))
  tokens, mask = np.asarray(batch.tokens), np.asarray(batch.mask)
  kinds = np.asarray(segments.kinds(batch.tokens, config.latent))
  assert (kinds == segments.OPEN).sum() > 2
  # Exactly K positions each, unless the answer has no room for them.
  start = np.asarray(segments.starts(batch.tokens, config.latent))
  for row, places in zip(
    tokens.reshape(-1, 20), start.reshape(-1, start.shape[-1]), strict=True
  ):
    for at in places[places <= 16]:
      assert [*row[at : at + 4]] == segments.segment(config.latent)
  outside = kinds == segments.TEXT
  assert (tokens[outside] != config.latent.end_token_id).all()
  assert not mask[kinds >= segments.INNER].any()
  scores = jax.jit(score, static_argnums=1)(
    params, config, batch.prefix, batch.tokens
  )
  np.testing.assert_allclose(
    np.where(mask, scores.logprobs, 0),
    batch.fields["logprobs_sampler"],
    atol=2e-4,
  )
