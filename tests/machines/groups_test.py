"""Few prompts: their answers are shared out, and nothing else changes."""

import concurrent.futures
import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import config as config_lib
from mmrl.machines import batches, groups, sharding
from mmrl.train import collect, loop
from mmrl.train import run as run_lib

ONE, MANY = (1, 1, 1), (2, 4, 1)


def make_config(mesh):
  """Two prompts with four answers in an update."""
  config = config_lib.add_ral(config_lib.get_config())
  config.mesh = dict(zip(sharding.AXES, mesh, strict=True))
  config.rollout.prompts, config.rollout.answers = 4, 4
  config.train.minibatches = 2
  config.schedule.value = 1e-3
  config.shares.every = 0
  return config


@functools.cache
def trained(mesh):
  """Tokens by prompt, metrics and parameters of four updates."""
  config = make_config(mesh)
  run = run_lib.build_run(config, jax.devices()[: int(np.prod(mesh))])
  questions = loop.read_questions(run)
  state, tokens, metrics = run.initial_state(), [], []
  order = np.argsort(run.layout.order(config.rollout.prompts))
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for step in (1, 2):
      batch, values = collect.collect(
        run, state, next(questions), step, pool, small_models.no_more
      )
      tokens.append(np.asarray(batch.tokens)[order])
      state, values = loop.learn(run, state, batch, values, step, 0)
      state = run.at_step(state, step)
      metrics.append(values)
  questions.close()
  return tokens, metrics, state, run, batch


@pytest.mark.full
def test_training_does_not_depend_on_who_has_which_answer():
  tokens, metrics, state, run, _ = trained(ONE)
  ours, measured, after, many, batch = trained(MANY)
  assert many.layout.shared == 4
  for one, other in zip(tokens, ours, strict=True):
    np.testing.assert_array_equal(other, one)
  for one, other in zip(metrics, measured, strict=True):
    assert set(one) == set(other)
    for name, value in one.items():
      if not name.startswith(("time/", "rollout/sampler_scorer")):
        # As in sharding_test: the same numbers, added in another order.
        np.testing.assert_allclose(
          other[name], value, rtol=2e-4, atol=2e-6, err_msg=name
        )
  start = run.initial_state().trainable
  for path, leaf in state.trainable.items():
    moved = np.abs(np.asarray(leaf) - np.asarray(start[path])).max()
    difference = np.abs(np.asarray(after.trainable[path]) - np.asarray(leaf))
    # Adam makes whole steps of gradients that are only rounding.
    assert moved > 0 and np.quantile(difference, 0.99) < 0.02 * moved, path
  # Each device has one answer to one prompt of each minibatch.
  for x in (batch.tokens, batch.fields["logprobs_old"]):
    assert {s.data.shape[:2] for s in x.addressable_shards} == {(2, 1)}


@pytest.mark.full
def test_evaluation_takes_as_many_questions_as_there_are_devices():
  prompt = jax.tree.map(np.asarray, trained(MANY)[-1].prompt)
  prompt = jax.tree.map(lambda x: np.concatenate([x, x]), prompt)
  found = []
  for mesh in (ONE, MANY):
    *_, run, _ = trained(mesh)
    answered = run.answer.batch(run.params, run.layout.put_whole(prompt))
    found.append(jax.tree.map(np.asarray, answered))
  for one, other in zip(*map(jax.tree.leaves, found), strict=True):
    # Tokens are equal, attention is a float32 sum in another order.
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def make_layout(prompts=4, answers=4, mesh=MANY):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)))
  sizes = SimpleNamespace(prompts=prompts, answers=answers)
  parts = SimpleNamespace(minibatches=prompts // 2, accumulate=1)
  return batches.layout(mesh, sizes, parts)


def numbered(*shape):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


MOVED = "all-gather|all-to-all|collective-permute|all-reduce"


def test_groups_are_cut_and_joined_where_they_are():
  layout = make_layout()
  x, prompts = numbered(4, 4, 3), numbered(4, 5)

  def both(x, prompts):
    own = groups.apart(x)
    return own, groups.repeat(prompts, 4), groups.together(own, 4, 4)

  program = layout.jit(both)
  arrays = layout.put((x, prompts))
  assert {s.data.shape for s in arrays[0].addressable_shards} == {(2, 1, 3)}
  own, again, joined = program(*arrays)
  np.testing.assert_array_equal(layout.local(joined), x)
  # A prompt's answers stand beside its copies.
  own, again = np.asarray(own), np.asarray(again)
  assert own.shape == (16, 1, 3) and again.shape == (16, 5)
  at = (again[:, 0] // 5).astype(int)
  for row, p in zip(own[:, 0], at, strict=True):
    assert (x[p] == row).all(-1).any()
  assert len({tuple(row) for row in own[:, 0]}) == 16
  text = program.lower(*arrays).compile().as_text()
  assert not re.search(MOVED, text)


def test_tokens_in_a_line_come_back():
  layout = make_layout()
  for shape in ((4, 4, 3), (4,), (8, 2), (3, 4, 2)):
    x = numbered(*shape, 2)
    line = layout.jit(lambda x, n=shape: groups.flat(x, n))(x)
    back = layout.jit(lambda x, n=shape: groups.unflat(x, n))(line)
    assert line.shape == (np.prod(shape), 2)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize(
  "prompts, answers, cut",
  # All devices have prompts of their own; 3 answers don't divide; 3 prompts
  # don't either.
  [(4, 4, 4), (8, 4, 1), (4, 3, 1), (3, 4, 1)],
)
def test_when_groups_are_cut(prompts, answers, cut):
  layout = make_layout()
  shape = jax.eval_shape(layout.jit(groups.apart), numbered(prompts, answers))
  assert shape.shape == (prompts * cut, answers // cut)
  alone = groups.apart(jnp.asarray(numbered(prompts, answers)))
  assert alone.shape == (prompts, answers)


def test_a_minibatch_is_cut_where_it_is():
  layout = make_layout()
  stream = numbered(4, 4, 3)
  batch = layout.put(stream[layout.order(4)][layout.places(4)])
  cut = layout.jit(lambda x, part: layout.cut(x, 2, part))
  for part in (0, 1):
    piece = cut(batch, part)
    assert piece.sharding.is_equivalent_to(batch.sharding, 3)
    np.testing.assert_array_equal(
      layout.local(piece), stream[2 * part : 2 * part + 2]
    )
  assert not re.search(MOVED, cut.lower(batch, 0).compile().as_text())


def test_parameters_are_sharded_as_without_groups():
  few, many = make_layout(answers=3, prompts=16), make_layout()
  assert (few.shared, many.shared) == (1, 4)
  for path, shape in (
    ("text/layers/q/kernel", (4, 96, 96)),
    ("text/layers/down/kernel", (4, 256, 96)),
    ("text/embed/embedding", (384, 96)),
    ("text/head/kernel", (6, 384)),
  ):
    one, other = (x.parameter(path, shape) for x in (few, many))
    assert one.is_equivalent_to(other, len(shape)), path
