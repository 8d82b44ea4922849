"""The three wrappers agree with one device, for RAL with uneven answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.probes.scores import Scorer
from mmrl.rollouts import sampler
from mmrl.train import objective, parallel, step
from mmrl.types import Batch

P = 16


@functools.cache
def make():
  """Loss, terms, parameters and a batch of uneven answers.

  The pictures of two prompts are packed together, on each of the devices.
  """
  model = small_models.make_model(small_models.small_config(remat=False))
  config = config_lib.add_ral(config_lib.get_config())
  scorer = Scorer(model.config, 1.0, (-1,), "self")
  fields = ("logprobs_old", "logprobs_ref", "attention_old")
  names = ("mask", "advantages", "token_weights", *fields)
  scores = ("logprobs", "entropies", "attention")
  terms = objective.bind_terms(
    objective.resolve_terms(config.losses.to_dict()),
    provided=(*names, *scores),
    remedies={},
  )
  questions = ["what shape?", "is it red?", "a", "what color is it?"] * 4
  pictures = [small_models.picture(8 * (1 + i % 4), 16, i) for i in range(5)]
  parts = [*pictures, small_models.clip(3, 16, 8, 1.0)] + [""] * 10
  prompt = model.processor(
    [small_models.user(*pair) for pair in zip(parts, questions, strict=True)],
    rows=8,
  )
  prompt = jax.tree.map(jnp.asarray, prompt)
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, 200, (P, 2, 5)), jnp.int32)
  lengths = rng.integers(1, 6, (P, 2, 1))
  mask = jnp.asarray(np.arange(5) < lengths)

  @jax.jit
  def score(params, prompt, tokens):
    return scorer(params, scorer.prefill(params, prompt, None), tokens)

  old = score(model.params, prompt, tokens)
  noise = 0.1 * rng.standard_normal((3, P, 2, 5)).astype(np.float32)
  attention = dataclasses.replace(
    old.attention, queries=1.1 * old.attention.queries
  )
  batch = Batch(
    prompt=prompt,
    visual=None,
    tokens=tokens,
    mask=mask,
    fields={
      "logprobs_old": old.logprobs + noise[0],
      "logprobs_ref": old.logprobs + noise[1],
      "attention_old": attention,
      "advantages": jnp.asarray(rng.standard_normal((P, 2)), jnp.float32),
      "token_weights": jnp.ones((P, 2, 5)),
    },
  )
  return step.make_loss(scorer, terms, ()), terms, model.params, batch


WRAPPERS = {
  "pmap": lambda loss, terms, mesh: parallel.pmap_loss(loss, terms),
  "shard_map": parallel.shard_map_loss,
  "jit": parallel.jit_loss,
}


@functools.cache
def one_device():
  """Loss and gradient on one device, and parameters after five steps."""
  loss, terms, params, batch = make()

  def whole(params, batch):
    weights = objective.reduction_coefficients(terms, batch.mask, batch.fields)
    value, (metrics, _) = loss(params, batch, weights)
    return value, metrics

  differentiated = jax.value_and_grad(jax.jit(whole), has_aux=True)
  found, gradient = differentiated(params, batch)
  return found, gradient, five_steps(differentiated, gradient, params, batch)


@pytest.mark.full
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_agree_with_one_device(wrapper):
  loss, terms, params, batch = make()
  mesh = parallel.data_mesh()
  assert mesh.shape["data"] == 8
  (expected, metrics), gradient, after = one_device()
  wrapped = WRAPPERS[wrapper](loss, terms, mesh)
  differentiated = jax.value_and_grad(wrapped, has_aux=True)
  (value, ours), grads = differentiated(params, batch)
  # A sum of 160 terms of size one, in another order.
  np.testing.assert_allclose(value, expected, atol=5e-6)
  for name, metric in metrics.items():
    np.testing.assert_allclose(ours[name], metric, atol=1e-5, err_msg=name)
  # Gradients of up to 1.4 are sums over 8,000 tokens in another order: the
  # square root of so many roundings by half an eps is 7e-6.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    grads,
    gradient,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    five_steps(differentiated, grads, params, batch),
    after,
  )


optimizer = optax.chain(
  optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)
)


@jax.jit
def apply(params, state, grads):
  updates, state = optimizer.update(grads, state, params)
  return optax.apply_updates(params, updates), state


def five_steps(differentiated, grads, params, batch):
  """Parameters after five steps of the optimiser, which is on one device.

  So all wrappers are called with parameters of the same kind, and compile once.
  """
  state = optimizer.init(params)
  start = params
  for done in range(5):
    if done:
      _, grads = differentiated(params, batch)
    params, state = apply(params, state, jax.device_get(grads))
  assert not np.allclose(
    params["text"]["norm"]["scale"], start["text"]["norm"]["scale"], atol=1e-3
  )
  return params


@pytest.mark.full
def test_rollouts_agree_token_for_token():
  model = small_models.make_model(small_models.small_config(remat=False))
  _, _, params, batch = make()
  keys = jax.random.split(jax.random.key(0), P)

  def rollout(params, prompt, keys):
    found = sampler.rollout(
      params, model.config, prompt, keys, answers=2, length=4
    )
    return found.tokens, found.mask, found.fields["logprobs_sampler"]

  tokens, mask, logprobs = jax.jit(rollout)(params, batch.prompt, keys)
  assert len(np.unique(tokens)) > 20
  mesh = parallel.data_mesh()
  for wrapped in (
    parallel.pmap_rollout(rollout),
    parallel.shard_map_rollout(rollout, mesh),
  ):
    ours = wrapped(params, batch.prompt, keys)
    np.testing.assert_array_equal(ours[0], tokens)
    np.testing.assert_array_equal(ours[1], mask)
    np.testing.assert_allclose(ours[2], logprobs, atol=1e-5)


@pytest.mark.full
def test_prompts_that_do_not_divide():
  loss, terms, params, batch = make()
  few = step.take_prompts(batch, 0, 6)
  with pytest.raises(UserError, match="multiple of 8 prompts .* found 6"):
    parallel.pmap_loss(loss, terms)(params, few)
