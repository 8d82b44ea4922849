"""Tests of the models of a run: teachers, of on-policy distillation."""

import concurrent.futures
import dataclasses
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import config as config_lib
from mmrl import hub, models
from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.machines import sharding
from mmrl.models.config import ModelConfig
from mmrl.train import collect, loop
from mmrl.train import models as models_lib
from mmrl.train import parts as parts_lib
from mmrl.train import run as run_lib
from mmrl.train import step as step_lib
from mmrl.types import Attention, Logits, map_prompts

PROMPTS, ANSWERS, LENGTH = 8, 2, 6
TERMS = {
  "distillation": {
    "name": "distillation_kl",
    "weight": 1.0,
    "reduce": "sequence_mean",
  },
  "attention": {
    "name": "attention_distillation",
    "weight": 1.0,
    "reduce": "sequence_mean",
  },
}
ONE, OWN = (1, 1, 1), (1, 4, 2)


def make_config(path: str = "tiny", terms=tuple(TERMS)):
  """Distillation alone, of the model that ships with the library."""
  config = config_lib.get_config()
  config.models.policy.remat = False
  config.rollout.update(prompts=PROMPTS, answers=ANSWERS, length=LENGTH)
  config.train.minibatches = 1
  config.shares.every = 0
  config.optimizer = {"name": "sgd"}
  config.schedule.value = 0.1
  if path:
    config.models.teacher = {"name": "Directory", "path": path}
  config.losses = {name: TERMS[name] for name in terms}
  return config


def on_mesh(config, mesh, teacher=ONE):
  """With a mesh of the teacher's own, or on the run's."""
  config.mesh = dict(zip(sharding.AXES, mesh, strict=True))
  if teacher:
    mesh_of_teacher = dict(zip(sharding.AXES, teacher, strict=True))
    config.models.teacher.mesh = mesh_of_teacher
  return config


def other(config: ModelConfig) -> ModelConfig:
  """A model of other depth, width, heads and vocabulary for the same data."""
  text = dataclasses.replace(
    config.text,
    vocab_size=400,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    mrope_section=(1, 1, 2),
  )
  vision = dataclasses.replace(
    config.vision, hidden_size=32, num_heads=2, out_hidden_size=64
  )
  return dataclasses.replace(
    config, text=text, vision=vision, tie_word_embeddings=False, pad_token_id=0
  )


@functools.cache
def tiny() -> hub.Model:
  return hub.load("tiny")


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory()


@functools.cache
def another() -> str:
  """The directory of such a teacher, its weights random."""
  config = other(tiny().config)
  path = pathlib.Path(folder().name) / "another"
  params = small_models.make_params(config)
  hub.save(hub.Model(config, params, tiny().processor), path)
  return str(path)


@functools.cache
def distilled(path: str, mesh=ONE, teacher=ONE, accumulate=1):
  """A run, the batch of its first step, the state after, and metrics."""
  config = on_mesh(make_config(path), mesh, teacher)
  config.train.accumulate = accumulate
  run = run_lib.build_run(config, jax.devices()[: int(np.prod(mesh))])
  questions = loop.read_questions(run)
  samples, state = next(questions), run.initial_state()
  questions.close()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    batch, _ = collect.collect(
      run, state, samples, 1, pool, small_models.no_more
    )
  state, metrics = run.programs.update(state, run.fixed, batch, np.int32(0))
  return run, batch, state, jax.device_get(metrics)


@pytest.mark.full
def test_a_teacher_that_is_the_student_teaches_nothing():
  """At theta_old; what is left is the rounding of two programs.

  Here it is exactly nothing, with XLA's optimiser as without: they compute the
  same in the same order. Where they don't, with the teacher on another mesh of
  eight devices, it is 2e-8 nats and 2e-14 nats, and 2e-6 of the gradient where
  another teacher makes 4; so it may be on another processor.
  """
  run, batch, _, metrics = distilled("tiny")
  assert batch.mask.sum() > PROMPTS * ANSWERS
  assert run.fixed["teacher"] is not run.params
  *_, taught = distilled(another())
  for name in ("loss/distillation", "loss/attention", "gradient/norm"):
    assert taught[name] > 1e-2, name
    assert abs(metrics[name]) < 1e-5 * taught[name], name


@pytest.mark.full
def test_a_teacher_of_another_size():
  """Its hidden states and heads are wider; the positions are the same."""
  run, batch, after, metrics = distilled(another())
  logits, attention = (
    batch.fields[f"{name}_teacher"] for name in ("logits", "attention")
  )
  assert logits.hidden.shape == (PROMPTS, ANSWERS, LENGTH, 64)
  assert sorted(logits.head.shape) == [64, 400]
  rows = models.map_rows(lambda rows: rows, attention)
  keys = batch.tokens.shape[-1] + batch.prompt.tokens.shape[-1]
  assert rows.shape == (PROMPTS, ANSWERS, LENGTH, keys)
  totals = np.asarray(rows.sum(-1))[np.asarray(batch.mask)]
  np.testing.assert_allclose(totals, 1, rtol=1e-5)
  assert all(np.isfinite(value) for value in metrics.values()), metrics
  assert 0 < metrics["loss/attention"] < np.log(2)
  start = run.initial_state().trainable
  moved = {k: np.abs(after.trainable[k] - start[k]).max() for k in start}
  assert all(np.isfinite(x) and x > 0 for x in moved.values()), moved


@pytest.mark.full
@pytest.mark.parametrize(("teacher", "parts"), [(OWN, 8), (None, 4)])
def test_the_teachers_mesh_changes_nothing(teacher, parts):
  """Its own mesh of eight devices beside another one of the policy; or that."""
  _, batch, after, metrics = distilled(another())
  run, ours, state, measured = distilled(another(), (2, 2, 2), teacher, 2)
  own = run.method.models["teacher"].layout
  apart = dict(own.mesh.shape) != dict(run.layout.mesh.shape)
  assert apart == bool(teacher) == bool(run.programs.probes_apart)
  kernel = run.fixed["teacher"]["text"]["head"]["kernel"]
  (shape,) = {shard.data.shape for shard in kernel.addressable_shards}
  assert np.prod(shape) * parts == kernel.size
  np.testing.assert_array_equal(ours.tokens, batch.tokens)
  for name in ("logits_teacher", "attention_teacher"):
    for one, two in zip(
      *(jax.tree.leaves(b.fields[name]) for b in (batch, ours)), strict=True
    ):
      np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5, err_msg=name)
  taught = ours.fields["logits_teacher"]
  assert taught.hidden.sharding.is_equivalent_to(run.layout.prompts, 4)
  if teacher:
    assert taught.head.sharding.is_equivalent_to(run.layout.everywhere, 2)
  for name, value in metrics.items():
    np.testing.assert_allclose(
      measured[name], value, rtol=2e-4, atol=1e-6, err_msg=name
    )
  start = run.initial_state().trainable
  for path, leaf in after.trainable.items():
    moved = np.abs(np.asarray(leaf) - np.asarray(start[path])).max()
    difference = np.abs(np.asarray(state.trainable[path]) - np.asarray(leaf))
    assert difference.max() < 1e-3 * moved, path


@pytest.mark.full
@pytest.mark.parametrize("mesh", [ONE, None])
@pytest.mark.parametrize("terms", [["distillation"], ["attention"], [*TERMS]])
def test_what_no_loss_names_is_not_there(terms, mesh):
  config = on_mesh(make_config(terms=terms), ONE, mesh)
  layout = sharding.on_one(jax.devices()[0])
  parts = parts_lib.build_parts(
    config, tiny().config, layout, {"teacher": tiny().config}
  )
  run, batch, _, _ = distilled("tiny")
  if mesh:
    found = jax.eval_shape(
      parts.programs.probes_apart["teacher"],
      run.fixed["teacher"],
      layout.reshard(step_lib.for_probes_apart(batch)),
    )
  else:
    assert not parts.programs.probes_apart
    found, _ = jax.eval_shape(
      parts.programs.probe, run.initial_state(), run.fixed, batch
    )
  names = {"distillation": "logits_teacher", "attention": "attention_teacher"}
  assert {name for name in found if name.endswith("teacher")} == {
    names[term] for term in terms
  }


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_published_models_teach_those_of_their_family(family):
  """The paper's pair, which disagrees on the token of padding, among them."""
  sizes = {"qwen2_5_vl": ("7B", "32B"), "qwen3_vl": ("8B", "32B")}[family]
  name = {"qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}[family]
  small, large = (
    directory.public_config(f"Qwen/{name}-{size}-Instruct") for size in sizes
  )

  def bind(teacher: ModelConfig):
    layout = sharding.on_one(jax.devices()[0])
    return models_lib.bind(make_config(), small, layout, {"teacher": teacher})

  assert bind(large)["teacher"].config.text == large.text
  with pytest.raises(UserError, match=f"found family qwen2_vl .* {family};"):
    bind(directory.public_config("Qwen/Qwen2-VL-7B"))


def changed(part: str = "", **fields):
  """A teacher without weights: it is refused before they are read."""
  config, processor = tiny().config, tiny().processor
  if part == "vision":
    vision = dataclasses.replace(config.vision, **fields)
    config = dataclasses.replace(config, vision=vision)
  elif part == "picture":
    picture = dataclasses.replace(processor.picture, **fields)
    processor = dataclasses.replace(processor, picture=picture)
  elif part == "processor":
    processor = dataclasses.replace(processor, **fields)
  else:
    config = dataclasses.replace(config, **fields)
  path = tempfile.mkdtemp(dir=folder().name)
  config_json.write(config, pathlib.Path(path), "float32")
  dataclasses.replace(processor, config=config).save(path)
  return path


@pytest.mark.parametrize(
  "change, message",
  [
    (
      lambda: changed("processor", tokenizer=small_models.make_tokenizer()),
      "expected the policy's tokenizer, found another vocabulary",
    ),
    (
      lambda: changed("vision", patch_size=16, window_size=64),
      "found patch_size 16 where the policy has 8",
    ),
    (
      lambda: changed("vision", window_size=64),
      "found window_size 64 where the policy has 32",
    ),
    (
      lambda: changed(vision_end_token_id=3),
      "found vision_end_token_id 3 where the policy has 376",
    ),
    pytest.param(
      lambda: changed("picture", mean=(0.5, 0.5, 0.5)),
      r"expected pictures normalised as the policy's, found mean \(0.5, 0.5",
      marks=pytest.mark.full,
    ),
  ],
)
def test_a_teacher_that_cannot_read_what_the_policy_does(change, message):
  refused(
    on_mesh(make_config(change()), ONE), f"models.teacher.path: .*{message}"
  )


def refused(config, message, devices=1):
  with pytest.raises(UserError, match="config." + message) as found:
    run_lib.build_run(config, jax.devices()[:devices])
  assert "\n" not in str(found.value)


@pytest.mark.parametrize(
  "mesh, message",
  [
    ((3, 1, 1), "mesh: expected sizes that multiply to 8 devices, found data"),
    ((-1, -1, 1), "mesh: expected sizes of at least 1, one of them -1"),
    ((1, 8, 1), "mesh: expected data x fsdp to divide rollout.prompts, 4, fo"),
    ((1, 2, 4), "mesh.tensor: .* num_key_value_heads, 2, found 4"),
  ],
)
def test_a_mesh_of_the_teacher_that_cannot_be(mesh, message):
  config = on_mesh(make_config(), (4, 1, 2), mesh)
  # An odd number of answers isn't shared out.
  config.rollout.prompts, config.rollout.answers = 4, 3
  refused(config, "models.teacher." + message, 8)


def test_a_teacher_of_another_type():
  for field in ("dtype", "param_dtype"):
    config = on_mesh(make_config(), ONE)
    config.models.teacher[field] = "int8"
    message = f"{field}: expected one of 'float32', .* found 'int8'"
    refused(config, f"models.teacher.{message}")


@pytest.mark.full
def test_a_layer_that_the_teacher_lacks():
  config = on_mesh(make_config(another()), ONE)
  config.attention.layers = (3,)
  refused(
    config,
    "attention.layers: expected layers of model 'teacher', a 2-layer decoder,",
  )


def test_a_method_that_lacks_its_teacher():
  policy = {"policy": config_lib.get_config().losses.policy}
  config = make_config("", terms=["distillation"])
  message = "logits_teacher,.* add a model 'teacher' to config.models"
  refused(config, f"losses.distillation: .* {message}")
  config = on_mesh(make_config(), ONE)
  config.losses = policy
  refused(
    config,
    "models.teacher: expected .* reads params_teacher or logits_teacher or"
    " attention_teacher, found none; take the model out",
  )
  config.probes.teacher = {"name": "teacher"}
  refused(config, "probes.teacher: .* found none; take the probe out")
  config = make_config("")
  config.losses = policy
  config.probes.teacher = {"name": "teacher"}
  refused(config, "probes.teacher: .*; add a model 'teacher' to config.models")


@pytest.mark.parametrize(
  "options, message",
  [
    ({"decay": 1.0}, r"average: expected decay in \[0, 1\), .* found 1.0, 1"),
    ({"every": 0}, "average: expected .* every of at least 1 .* 0.999, 0 and"),
    ({"rise_over": -1}, "average: .* rise_over of at least 0, found 0.999, 1"),
    ({"path": "tiny"}, "average: Average has no option path"),
  ],
)
def test_an_average_that_cannot_be(options, message):
  config = make_config("")
  config.models.average = {"name": "Average", **options}
  refused(config, f"models.{message}")


def make_tree(layout):
  """All that a field may be, in a layout."""

  def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)

  put = functools.partial(jax.device_put, device=layout.prompts)
  logits = Logits(put(normal(8, 2, 3, 4)), normal(5, 4), "vd", (1,), 2.0)
  arrays = (normal(8, 2, 3, 1, 4, 2), normal(8, 2, 3, 1, 2, 2))
  prefix = (normal(8, 6, 1, 2, 2), normal(8, 6) > 0, normal(8, 1, 4, 2))
  attention = Attention(*map(put, (*arrays, *prefix)), row="self")
  return {"mask": put(normal(8, 2, 3) > 0), "l": logits, "a": attention}


def test_arrays_are_taken_over_from_another_mesh():
  """Prompts are shared out anew; every device has the head."""
  one, two = (
    sharding.Layout(
      sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)))
    )
    for mesh in ((2, 2, 2), (1, 8, 1))
  )
  tree = make_tree(one)
  head = one.parameter("text/head/kernel", tree["l"].head.shape)
  head = jax.device_put(tree["l"].head, head)
  tree["l"] = dataclasses.replace(tree["l"], head=head)
  taken = two.reshard(tree)
  assert jax.tree.structure(taken) == jax.tree.structure(tree)
  jax.tree.map(np.testing.assert_array_equal, taken, tree)
  for leaf in jax.tree.leaves(taken):
    by_prompts = leaf is not taken["l"].head
    where = two.prompts if by_prompts else two.everywhere
    assert leaf.sharding.is_equivalent_to(where, leaf.ndim)


def test_a_head_is_of_no_prompt():
  layout = sharding.on_one(jax.devices()[0])
  tree = make_tree(layout)
  found = map_prompts(lambda x: x[2:4], tree)
  assert found["l"].head is tree["l"].head
  found["l"] = dataclasses.replace(found["l"], head=jnp.zeros(2))
  assert all(len(leaf) == 2 for leaf in jax.tree.leaves(found))
  np.testing.assert_array_equal(found["mask"], tree["mask"][2:4])
  # Of two minibatches the second, cut in a program.
  second = layout.jit(lambda x, part: layout.cut(x, 2, part))(tree, 1)
  np.testing.assert_array_equal(second["l"].hidden, tree["l"].hidden[4:])
  np.testing.assert_array_equal(second["l"].head, tree["l"].head)
