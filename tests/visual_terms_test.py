"""Runs with latent segments and with reconstruction: whole steps, any mesh."""

import concurrent.futures
import dataclasses
import functools
import importlib
import json

import jax
import numpy as np
import pytest

from experiments import laver, valr
from mmrl import config as config_lib
from mmrl import data, hub
from mmrl.errors import UserError
from mmrl.hub import config_json, latent_tokens
from mmrl.models.passes import segments
from mmrl.train import collect
from mmrl.train import run as run_lib
from mmrl.workdir import checkpoint

loop = importlib.import_module("mmrl.train.loop")
PROMPTS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny model with segments of 4, and questions with a text to learn."""
  path = tmp_path_factory.mktemp("latent")
  model = latent_tokens.add(hub.load("tiny"), length=4, segments=2)
  hub.save(model, path / "model")
  source, lines = data.EasyVQA(split="train"), []
  for question, answer, picture in source.rows[:8]:
    text = f"<answer>{answer}</answer>"
    lines.append(
      {
        "question": question,
        "images": [source.pictures[picture]],
        "answer": answer,
        "answers": [text if len(lines) % 2 else f"{text}<latent>{answer}"],
      }
    )
  (path / "rows.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )
  return path


def make_config(folder, mesh: int = 1):
  config = config_lib.get_config()
  config.models.policy.path = str(folder / "model")
  config.models.policy.remat = False
  config.mesh = {"data": mesh, "fsdp": 1, "tensor": 1}
  config.data.train = {"name": "Files", "path": str(folder / "rows.jsonl")}
  config.rewards = {}
  config.rollout = {
    "name": "given",
    "prompts": PROMPTS,
    "answers": 1,
    "length": 20,
    "mask_truncated": False,
  }
  config.train.minibatches = 1
  config.shares.every = 0
  config.frozen = ("vision/.*",)
  config.losses = {
    "likelihood": {
      "name": "likelihood",
      "weight": 1.0,
      "reduce": "token_mean",
    }
  }
  return config


def aligned(folder, mesh: int = 1):
  config = make_config(folder, mesh)
  config.rollout.first = True
  config.losses.alignment = {
    "name": "latent_alignment",
    "weight": 0.5,
    "reduce": "segment_mean",
    "hidden": 16,
    "encoders": (
      {"name": "own_tower", "side": 3},
      {"name": "projection", "width": 8, "patch": 16, "side": 32},
    ),
  }
  return config


def reconstructed(folder, mesh: int = 1):
  config = make_config(folder, mesh)
  config.models.policy.mixed_attention = True
  config.models.average = {"name": "Average", "decay": 0.9, "rise_over": 4}
  config.losses.reconstruction = {
    "name": "visual_reconstruction",
    "weight": 1.0,
    "reduce": "prompt_mean",
    "steps": 4,
    "schedule": "constant",
    "mask_ratio": 0.4,
  }
  config.rewards = {
    "first": {"name": "visual_cosine", "weight": 0.0, "layer": 0}
  }
  return config


def steps(config, count: int, state=None):
  """The state after some steps, and what each logged."""
  run = run_lib.build_run(config, jax.devices()[: config.mesh.data])
  questions = loop.read_questions(run)
  state, logged = state or run.initial_state(), []
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for step in range(1, count + 1):
      batch, values = collect.collect(
        *(run, state, next(questions), step, pool), lambda: next(questions)
      )
      state, values = loop.learn(run, state, batch, values, step, 0)
      state = run.at_step(state, step)
      logged.append(values)
  questions.close()
  return run, batch, jax.device_get(state), logged


@functools.cache
def trained(folder, make, mesh: int):
  return steps(make(folder, mesh), 2)


@pytest.mark.full
def test_segments_are_learned_and_aligned(folder):
  run, batch, state, logged = trained(folder, aligned, 1)
  latent = run.model_config.latent
  tokens, mask = np.asarray(batch.tokens), np.asarray(batch.mask)
  kinds = np.asarray(segments.kinds(batch.tokens, latent))
  counts = (kinds == segments.OPEN).sum((1, 2))
  assert sorted(counts) == [1] * 4 + [2] * 4
  assert not mask[kinds >= segments.INNER].any()
  opened = np.asarray(batch.fields["segment_pictures"]) == 0
  np.testing.assert_array_equal(opened, kinds == segments.OPEN)
  assert tokens[0, 0, 3] == latent.end_token_id
  for values in logged:
    assert -1 <= values["loss/alignment"] <= 1
    both = [values[f"alignment/loss_{i}"] for i in range(2)]
    assert values["loss/alignment"] == pytest.approx(np.mean(both), abs=1e-5)
    total = values["loss/likelihood"] + 0.5 * values["loss/alignment"]
    assert values["loss/total"] == pytest.approx(total, abs=1e-5)
  heads = [path for path in state.trainable if path.startswith("terms/")]
  assert len(heads) == 12
  texts = run.processor.decode(tokens, mask)
  assert all(text.startswith("<latent><answer>") for text in texts)


@pytest.mark.full
def test_masked_tokens_are_reconstructed(folder):
  _, _, state, logged = trained(folder, reconstructed, 1)
  # Of 4 steps none is before the constant mask begins but the first.
  assert logged[0]["reconstruction/masked"] == 0
  assert 0.2 < logged[1]["reconstruction/masked"] <= 0.4
  assert logged[0]["reconstruction/mim"] == 0 < logged[1]["reconstruction/mim"]
  # The teacher began as the student.
  assert logged[0]["reconstruction/gram"] < 1e-8
  assert logged[1]["reconstruction/centre"] > 0
  assert -1 <= logged[0]["reward/first"] <= 1
  running = state.running["reconstruction"]
  assert running["updates"] == 2
  average = state.averages["average"].values
  own = "terms/reconstruction/visual_head/fc1/kernel"
  assert (average[own] != state.trainable[own]).any()


@pytest.mark.full
def test_the_mesh_changes_nothing(folder):
  """What is masked, its centre and the average of the head among it."""
  _, _, one, logged = trained(folder, reconstructed, 1)
  _, _, other, sharded = trained(folder, reconstructed, 8)
  for name, value in logged[-1].items():
    if not name.startswith(("time/", "memory/")):
      # Sums of a few thousand float32 numbers, in another order.
      assert sharded[-1][name] == pytest.approx(value, rel=2e-3, abs=2e-3), name
  assert one.trainable.keys() == other.trainable.keys()


@pytest.mark.full
def test_grpo_runs_on_a_model_with_segments(folder):
  """Its sampler and its scorer agree, whether or not segments were opened."""
  config = config_lib.get_config()
  config.models.policy.path = str(folder / "model")
  config.models.policy.remat = False
  config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
  config.rollout.prompts, config.rollout.answers = PROMPTS, 4
  config.rollout.length = 12
  config.rollout.temperature = 4.0
  config.shares.every = 0
  config.train.minibatches = 1
  del config.losses["kl"]
  run, batch, _, logged = steps(config, 1)
  kinds = np.asarray(segments.kinds(batch.tokens, run.model_config.latent))
  assert not np.asarray(batch.mask)[kinds >= segments.INNER].any()
  assert logged[0]["rollout/sampler_scorer_gap"] < 1e-3
  assert np.isfinite(logged[0]["loss/total"])


@pytest.mark.parametrize("recipe", [valr, laver])
def test_recipes_have_their_arms_and_no_other(recipe):
  arms = ("data", "runlocal", "runlocal,begin=tiny")
  for arm in arms:
    stages = recipe.get_stages(arm)
    assert len(stages) in (2, 3)
  names = [list(config.losses) for config in stages.values()]
  assert sum(len(found) for found in names) == len(names) + 1
  with pytest.raises(UserError, match=r"\.py:data,more: expected"):
    recipe.get_stages("data,more")


@pytest.mark.full
@pytest.mark.parametrize("make", [aligned, reconstructed])
def test_a_checkpoint_has_all_that_a_term_has(folder, tmp_path, make):
  """Heads and their average, encoders, centre and the count of updates."""
  run, _, state, _ = trained(folder, make, 1)
  state = jax.device_put(state, run.layout.of(state))
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  saved.save(state, {"next_index": 16})
  saved.wait()
  saved.close()
  opened = checkpoint.Checkpoints(tmp_path, keep=1)
  found, _ = opened.restore(run.initial_state())
  opened.close()
  for name in ("trainable", "running", "averages", "optimizer"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(found, name), getattr(state, name)
    )


def test_files_say_what_a_model_computes(folder, tmp_path):
  config = config_json.read(folder / "model")
  assert config.latent.length == 4 and "inner positions" in config_json.caveat(
    config
  )
  model = hub.load(folder / "model")
  mixed = dataclasses.replace(model.config, mixed_attention=True)
  hub.save(dataclasses.replace(model, config=mixed), tmp_path / "mixed")
  found = config_json.read(tmp_path / "mixed")
  assert "only those before" in config_json.caveat(found)
  assert config_json.caveat(hub.load("tiny").config) == ""
  assert found.mixed_attention and found.latent == config.latent
  plain = aligned(folder)
  plain.models.policy.path = str(tmp_path / "mixed")
  with pytest.raises(UserError, match="mixed_attention: expected True"):
    run_lib.build_run(plain, jax.devices()[:1])


@pytest.mark.parametrize(
  ("own", "message"),
  [
    ({"segments": 2}, "expected latent and mixed_attention"),
    ({"mixed_attention": 1}, "true or false"),
    ({"latent": {"token_id": 1}}, "with token_id, end_token_id"),
    (
      {"latent": {"token_id": 1, "end_token_id": 2, "length": 5}},
      "a square",
    ),
    ({"latent": {"token_id": 1, "end_token_id": 9999}}, "in a vocabulary of"),
  ],
)
def test_wrong_files_are_refused(folder, tmp_path, own, message):
  raw = json.loads((folder / "model" / "config.json").read_text())
  raw["mmrl"] = own
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(UserError, match=message):
    config_json.read(tmp_path)


def test_tokens_are_added_or_refused(folder):
  tiny = hub.load("tiny")
  with pytest.raises(UserError, match="expected a tokenizer with <latent> and"):
    latent_tokens.add(tiny, new=False)
  found = hub.load(folder / "model")
  with pytest.raises(UserError, match="without latent segments, found one"):
    latent_tokens.add(found)
  ids = [found.config.latent.token_id, found.config.latent.end_token_id]
  table = np.asarray(found.params["text"]["embed"]["embedding"])
  before = np.asarray(tiny.params["text"]["embed"]["embedding"])
  known = sorted(tiny.processor.tokenizer.get_vocab().values())
  np.testing.assert_allclose(table[ids[0]], before[known].mean(0), atol=1e-6)
  np.testing.assert_array_equal(table[ids[0]], table[ids[1]])


@pytest.mark.full
def test_segments_and_pictures_must_fit(folder, tmp_path):
  config = aligned(folder)
  config.models.policy.path = "tiny"
  with pytest.raises(UserError, match="rollout.*first: expected a model with"):
    run_lib.build_run(config, jax.devices()[:1])
  config.rollout.first = False
  with pytest.raises(UserError, match="needs .*segment_pictures"):
    run_lib.build_run(config, jax.devices()[:1])
  line = json.loads((folder / "rows.jsonl").read_text().splitlines()[0])
  line["answers"] = ["<latent>" * 3]
  path = tmp_path / "rows.jsonl"
  path.write_text((json.dumps(line) + "\n") * PROMPTS)
  config = make_config(folder)
  config.data.train.path = str(path)
  with pytest.raises(UserError, match="at most 2 latent segments"):
    steps(config, 1)
