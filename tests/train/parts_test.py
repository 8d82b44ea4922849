"""Tests of the optimiser and of which parameters it moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models

from mmrl.errors import UserError
from mmrl.models import parameters
from mmrl.train.parts import make_optimizer

CONSTANT = {"name": "constant_schedule", "value": 0.5}


@pytest.fixture(scope="module")
def params():
  return small_models.make_params(small_models.small_config())


@pytest.mark.parametrize(
  "frozen",
  [
    (),
    ("vision/.*",),
    ("vision/(patch_embed|blocks)/.*", "text/embed"),
    (".*/bias",),
  ],
)
def test_partition_and_merge_undo_each_other(params, frozen):
  trainable, stays = parameters.partition(params, frozen)
  assert not set(trainable) & set(stays)
  merged = parameters.merge(trainable, stays)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  for ours, theirs in zip(
    jax.tree.leaves(merged), jax.tree.leaves(params), strict=True
  ):
    assert ours is theirs


def test_rule_freezes_what_it_matches_from_the_start(params):
  trainable, stays = parameters.partition(params, ("vision/merger/.*",))
  assert stays
  assert all(path.startswith("vision/merger/") for path in stays)
  assert any(path.startswith("vision/blocks/") for path in trainable)
  trainable, stays = parameters.partition(params, ("text/head|text/embed",))
  assert set(stays) == {"text/embed/embedding"}


def test_rule_that_matches_nothing_is_refused(params):
  with pytest.raises(UserError) as error:
    parameters.partition(params, ("vision/.*", "projector/.*"))
  assert str(error.value) == (
    "config.frozen: 'projector/.*' matches no parameter; paths begin with"
    " text, vision"
  )


def test_nothing_left_to_train_is_refused(params):
  with pytest.raises(UserError, match="expected a parameter to train"):
    parameters.partition(params, ("text/.*", "vision/.*"))


def test_update_golden():
  # norm 5, clipped to 1: [0.6, 0.8], times -0.5
  transform = make_optimizer({"name": "sgd"}, CONSTANT, 1.0)
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  updates, _ = transform.update(gradient, transform.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.3], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [-0.4], rtol=1e-6)


def test_infinite_norm_clips_nothing():
  transform = make_optimizer({"name": "sgd"}, CONSTANT, float("inf"))
  params, gradient = {"a": jnp.zeros(1)}, {"a": jnp.array([3000.0])}
  updates, _ = transform.update(gradient, transform.init(params), params)
  np.testing.assert_allclose(updates["a"], [-1500.0], rtol=1e-6)


def test_schedule_counts_updates():
  schedule = {
    "name": "linear_schedule",
    "init_value": 0.0,
    "end_value": 1.0,
    "transition_steps": 2,
  }
  transform = make_optimizer({"name": "sgd"}, schedule, float("inf"))
  params, gradient = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
  state, rates = transform.init(params), []
  for _ in range(4):
    updates, state = transform.update(gradient, state, params)
    rates.append(-updates["a"].item())
  np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 1.0])


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_and_updates_keep_the_type_of_the_parameters(dtype):
  transform = make_optimizer(
    {"name": "adamw", "weight_decay": 0.01}, CONSTANT, 1.0
  )
  params = {"a": jnp.ones(3, dtype)}
  state = transform.init(params)
  updates, state = transform.update(params, state, params)
  assert optax.apply_updates(params, updates)["a"].dtype == dtype
  moments = [x for x in jax.tree.leaves(state) if x.ndim]
  assert len(moments) == 2
  assert all(x.dtype == dtype for x in moments)


def test_head_of_its_own_is_a_parameter():
  """A tied model has none: its head is the embedding table."""
  paths = [
    set(parameters.partition(small_models.make_params(config), ())[0])
    for config in (
      small_models.small_config(tied=True),
      small_models.small_config(tied=False),
    )
  ]
  assert paths[1] - paths[0] == {"text/head/kernel"}
