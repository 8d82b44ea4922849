"""The three wrappers agree with one device, for RAL with uneven answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import parallel
from mmrl.errors import UserError
from mmrl.probes.policies import Scorer
from mmrl.train import defaults, objective, step
from mmrl.types import Batch

P = 16


@functools.cache
def make():
  """Loss, terms, parameters and a batch of uneven answers.

  The pictures of two prompts are packed together, on each of the devices.
  """
  model = small_models.make_model(small_models.small_config(remat=False))
  config = defaults.add_ral(defaults.get_config())
  scorer = Scorer(model.config, 1.0, (-1,), "self")
  fields = ("logprobs_old", "logprobs_ref", "attention_old")
  names = ("mask", "advantages", "token_weights", *fields)
  scores = ("logprobs", "entropies", "attention")
  terms = objective.build_terms(
    config.losses.to_dict(), provided=(*names, *scores), remedies={}
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
  prefix = scorer.prefill(model.params, prompt, None)
  old = scorer(model.params, prefix, tokens)
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
  return step.make_loss(scorer, terms, None), terms, model.params, batch


def test_wrappers_agree_with_one_device():
  loss, terms, params, batch = make()

  def one_device(params, batch):
    return loss(params, batch, objective.reduction_weights(terms, batch.mask))

  def value_and_gradient(function):
    return jax.value_and_grad(function, has_aux=True)(params, batch)

  mesh = parallel.data_mesh()
  assert mesh.shape["data"] == 8
  (expected, metrics), gradient = value_and_gradient(jax.jit(one_device))
  for wrapped in (
    parallel.pmap_loss(loss, terms),
    parallel.shard_map_loss(loss, terms, mesh),
    parallel.jit_loss(loss, terms, mesh),
  ):
    (value, ours), grads = value_and_gradient(wrapped)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    for name, metric in metrics.items():
      np.testing.assert_allclose(ours[name], metric, atol=1e-5, err_msg=name)
    # Gradients of up to 1.4 are sums of 32 answers in another order.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6),
      grads,
      gradient,
    )


def test_prompts_that_do_not_divide():
  loss, terms, params, batch = make()
  few = step.take_prompts(batch, 0, 6)
  with pytest.raises(UserError, match="multiple of 8 prompts .* found 6"):
    parallel.pmap_loss(loss, terms)(params, few)
