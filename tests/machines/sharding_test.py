"""A run on any mesh is the run on one device."""

import concurrent.futures
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.train import collect, loop
from mmrl.train import run as run_lib

PROMPTS = 16
# Mesh, and whether adapters train.
CASES = ((1, 8, 1), False), ((2, 2, 2), False), ((2, 2, 2), True)


# With adapters, which alone train.
LORA = {"rank": 4, "alpha": 8, "targets": ".*"}


def make_config(mesh=(1, 1, 1), lora: bool = False):
  config = config_lib.add_ral(config_lib.get_config())
  config.mesh = dict(zip(sharding.AXES, mesh, strict=True))
  config.rollout.prompts = PROMPTS
  config.rollout.answers = 2
  config.train.minibatches = 2
  config.schedule.value = 1e-3
  config.shares.every = 0
  # Every kind of parameter trains.
  config.frozen = ("vision/patch_embed/.*",)
  if lora:
    config.models.policy.lora = LORA
  return config


@functools.cache
def trained(mesh, lora: bool = False):
  """Tokens by prompt, metrics and parameters of six updates."""
  config = make_config(mesh, lora)
  run = run_lib.build_run(config, jax.devices()[: int(np.prod(mesh))])
  questions = loop.read_questions(run)
  state, tokens, metrics = run.initial_state(), [], []
  order = np.argsort(run.layout.order(PROMPTS))
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for step in range(1, 4):
      samples = next(questions)
      batch, values = collect.collect(
        run, state, samples, step, pool, small_models.no_more
      )
      tokens.append((np.asarray(batch.tokens)[order], np.asarray(batch.mask)))
      state, values = loop.learn(run, state, batch, values, step, 0)
      state = run.at_step(state, step)
      metrics.append(values)
  questions.close()
  return tokens, metrics, state, run


@pytest.mark.full
@pytest.mark.parametrize("mesh, lora", CASES)
def test_training_does_not_depend_on_the_mesh(mesh, lora):
  tokens, metrics, state, _ = trained((1, 1, 1), lora)
  lengths = tokens[0][1].sum(-1)
  assert len(np.unique(lengths)) > 2
  ours, measured, after, run = trained(mesh, lora)
  for (one, _), (other, _) in zip(tokens, ours, strict=True):
    np.testing.assert_array_equal(other, one)
  for one, other in zip(metrics, measured, strict=True):
    assert set(one) == set(other)
    for name, value in one.items():
      if not name.startswith(("time/", "rollout/sampler_scorer")):
        np.testing.assert_allclose(
          other[name], value, rtol=2e-4, atol=2e-6, err_msg=name
        )
  start = run.initial_state().trainable
  for path, leaf in state.trainable.items():
    moved = np.abs(np.asarray(leaf) - np.asarray(start[path])).max()
    difference = np.abs(np.asarray(after.trainable[path]) - np.asarray(leaf))
    # Adam divides by the square root of squared gradients: where these are
    # only rounding, it makes whole steps of them.
    assert moved > 0 and np.quantile(difference, 0.99) < 0.02 * moved, path


@pytest.mark.full
@pytest.mark.parametrize("mesh", [(2, 2, 2)])
def test_parameters_and_moments_are_shared_out(mesh):
  _, _, state, run = trained(mesh)
  parts = mesh[1] * mesh[2]
  kernels = [p for p in state.trainable if re.match("text/layers/.*kernel", p)]
  moments = state.optimizer[1][0]
  for path in kernels:
    for leaf in (state.trainable[path], moments.mu[path], moments.nu[path]):
      (shape,) = {shard.data.shape for shard in leaf.addressable_shards}
      assert np.prod(shape) * parts == leaf.size, path
  again = run.layout.of(state)
  same = jax.tree.map(
    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim),
    dataclasses.replace(state, step=jnp.int32(0)),
    dataclasses.replace(again, step=jnp.int32(0).sharding),
  )
  assert all(jax.tree.leaves(same))


PAIRS = {
  # The axis that a pair shares with its kernel is sharded as there.
  "text/layers/q/lora_a": ((4, 96, 4), (None, "fsdp", None)),
  "text/layers/q/lora_b": ((4, 4, 96), (None, None, "tensor")),
  "text/layers/mlp/down/lora_a": ((4, 256, 4), (None, "tensor", None)),
  "text/layers/mlp/down/lora_b": ((4, 4, 96), (None, None, "fsdp")),
  "vision/blocks/proj/lora_a": ((2, 64, 4), (None, "tensor", None)),
  "vision/merger/fc1/lora_a": ((256, 4), ("fsdp", None)),
  "vision/merger/fc1/lora_b": ((4, 256), (None, "tensor")),
  "vision/merger/fc2/lora_a": ((256, 4), ("tensor", None)),
  "vision/merger/fc2/lora_b": ((4, 96), (None, "fsdp")),
  "text/layers/q/lora_scale": ((4,), ()),
  # Of 50 columns the axis, 4, is no divisor.
  "text/layers/k/lora_b": ((4, 4, 50), (None, None, None)),
}


@pytest.mark.parametrize("path", PAIRS)
def test_pairs_are_sharded_as_their_kernel(path):
  mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
  shape, spec = PAIRS[path]
  found = sharding.Layout(mesh).parameter(path, shape)
  assert tuple(found.spec) == spec


def test_minibatches_hold_the_same_prompts_on_any_mesh():
  # One size is what is left.
  mesh = sharding.make_mesh({"data": -1, "fsdp": 2, "tensor": 2})
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  layout = sharding.Layout(mesh, parts=2)
  assert layout.shards == 4
  stream = np.arange(16)
  order = layout.order(16)
  assert sorted(order) == list(stream)
  batch = layout.put(stream[order].reshape(16, 1)[layout.places(16)])
  cut = layout.jit(lambda x, part: layout.cut(x, 2, part))
  for part in (0, 1):
    piece = cut(batch, part)
    assert piece.sharding.is_equivalent_to(layout.prompts, 2)
    found = layout.local(piece)[:, 0]
    np.testing.assert_array_equal(found, stream[8 * part : 8 * part + 8])
  moved = cut.lower(batch, 0).compile().as_text()
  assert not re.search("all-gather|all-to-all|collective-permute", moved)


@pytest.mark.parametrize(
  "sizes, message",
  [
    ((3, 1, 1), "expected sizes that multiply to 8 devices, found data 3 x"),
    ((2, 2, 1), "expected sizes that multiply to 8 devices"),
    ((-1, 3, 1), "expected sizes that multiply to 8 devices"),
    ((-1, -1, 1), "one of them -1 at most"),
    ((0, 1, 1), "expected sizes of at least 1"),
  ],
)
def test_a_mesh_that_cannot_be(sizes, message):
  with pytest.raises(UserError, match=f"config.mesh: .*{message}"):
    sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))


@pytest.mark.parametrize(
  "mesh, prompts, message",
  [
    ((1, 1, 8), 16, "tensor: expected a divisor of the model's num_"),
    ((8, 1, 1), 8, "prompts: expected a multiple of .*8 shards of the mesh"),
  ],
)
def test_a_config_that_does_not_fit_its_mesh(mesh, prompts, message):
  config = make_config(mesh)
  config.rollout.prompts = prompts
  with pytest.raises(UserError, match=message):
    run_lib.build_run(config)


def test_every_matrix_has_a_rule():
  """What grows with the model is shared out over fsdp and tensor."""
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  layout = sharding.Layout(mesh)
  shapes = small_models.make_params(small_models.small_config())
  for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
    name = "/".join(key.key for key in path)
    axes = set(layout.parameter(name, leaf.shape).spec) - {None}
    if name.endswith("kernel") or "embed/embedding" in name:
      assert axes >= {"fsdp"}, name
    assert axes <= {"fsdp", "tensor"}, name
