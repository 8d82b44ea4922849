"""A run with an adapter: only the pairs train, are saved, and differ."""

import concurrent.futures
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import runs
import small_models

from mmrl import config as config_lib
from mmrl import hub
from mmrl.errors import UserError
from mmrl.export import export
from mmrl.hub import adapters
from mmrl.machines import sharding
from mmrl.models import parameters
from mmrl.models.config import Lora
from mmrl.train import collect, loop, walk
from mmrl.train import models as models_lib
from mmrl.train import parts as parts_lib
from mmrl.train import run as run_lib

LORA = {"rank": 4, "alpha": 8, "targets": "text/layers/(q|v|mlp/.*)"}
LENGTH = {"name": "soft_overlong", "weight": 1.0, "longest": 6, "buffer": 4}
LAYERS = {f"text/layers/{x}" for x in ("q", "v", "mlp/gate", "mlp/up")} | {
  "text/layers/mlp/down"
}
PAIRS = {f"{layer}/lora_{one}" for layer in LAYERS for one in "ab"}


def make_config(**policy):
  """Two updates on a batch of one step, with a reference."""
  config = config_lib.get_config()
  config.rollout.update(prompts=8, answers=4, length=6)
  config.schedule.value = 1e-2
  # What no answer differs in teaches nothing.
  config.rewards.length = LENGTH
  config.losses.kl.weight = 1.0
  config.shares.every = 0
  for name, value in policy.items():
    config.models.policy[name] = value
  return config


def step(run, state, number=1):
  questions = loop.read_questions(run)
  samples = next(questions)
  questions.close()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    batch, values = collect.collect(
      run, state, samples, number, pool, small_models.no_more
    )
  return batch, *loop.learn(run, state, batch, values, number, 0)


@functools.cache
def trained():
  """A run, and what is left of its first step: (run, state, metrics)."""
  run = run_lib.build_run(make_config(lora=LORA), jax.devices()[:1])
  return run, *step(run, run.initial_state())[1:]


@pytest.mark.full
def test_only_the_pairs_train():
  """Embeddings, norms and kernels stay as they are in the directory."""
  run, state, metrics = trained()
  assert set(state.trainable) == PAIRS
  first = run.initial_state()
  for path, leaf in state.trainable.items():
    assert (np.asarray(leaf) != np.asarray(first.trainable[path])).any(), path
  base = parameters.flat(hub.load("tiny").params)
  scales = {f"{layer}/lora_scale" for layer in LAYERS}
  assert set(state.frozen) == set(base) | scales
  for path, leaf in base.items():
    np.testing.assert_array_equal(state.frozen[path], leaf, err_msg=path)
  moments = state.optimizer[1][0]
  assert set(moments.mu) == set(moments.nu) == PAIRS
  assert metrics["gradient/norm"] > 0


@pytest.mark.full
def test_the_reference_is_the_policy_without_its_pairs():
  """Its parameters are the policy's own arrays: no second copy."""
  run, state, metrics = trained()
  assert not jax.tree.leaves(run.fixed)
  found = models_lib.parameters_by_name(state, run.fixed, {"params_reference"})
  leaves = parameters.flat(found["params_reference"])
  assert {p for p in leaves if parameters.is_pair(p)} == set()
  assert all(leaves[path] is state.frozen[path] for path in leaves)
  assert len(leaves) == len(state.frozen)
  # Equal before the first update, but for the rounding of two programs, about
  # 1e-7 nats, which the estimator squares; no longer at the second.
  assert 0 <= metrics["first/loss/kl"] < 1e-10 < metrics["loss/kl"]


@pytest.mark.full
def test_another_seed_is_another_adapter():
  run, _, _ = trained()
  config = make_config(lora=LORA)
  policy = models_lib.load_policy(config)
  config.seed = 1
  other = parameters.flat(models_lib.load_policy(config).params)
  for path, leaf in parameters.flat(policy.params).items():
    same = (np.asarray(leaf) == np.asarray(other[path])).all()
    assert same != path.endswith("/lora_a"), path
  jax.tree.map(np.testing.assert_array_equal, policy.params, run.params)


@pytest.mark.full
def test_a_reference_without_an_adapter_shares_what_is_frozen():
  """Of the others it keeps the values of step 0."""
  config = make_config()
  layout = sharding.on_one(jax.devices()[0])
  model = models_lib.compute_as(config, hub.load("tiny").config)
  parts = parts_lib.build_parts(config, model, layout, {})
  fixed = walk.fixed_shapes(parts)["reference"]
  assert fixed.trainable and all(p.startswith("text/") for p in fixed.trainable)


def random_adapter(path, base="tiny", **fields):
  """A folder of PEFT's with an adapter that has learned something."""
  config = hub.load("tiny").config
  lora = Lora(**{"rank": 4, "alpha": 8, "targets": "text/layers/.*"} | fields)
  config = dataclasses.replace(config, lora=lora)
  pairs = {
    p: 0.05 * jax.random.normal(jax.random.key(len(p)), x.shape)
    for p, x in parameters.init_adapter(jax.random.key(0), config).items()
  }
  adapters.save(pairs, config, path, base)
  return str(path)


@pytest.mark.full
def test_training_goes_on_from_an_adapter(tmp_path):
  """The reference is then the policy with the adapter as it was."""
  config = make_config(adapter=random_adapter(tmp_path))
  config.probes.reference = {"name": "reference"}
  run = run_lib.build_run(config, jax.devices()[:1])
  kept = run.fixed["reference"].trainable
  assert set(kept) == set(run.initial_state().trainable)
  assert all(parameters.is_pair(path) for path in kept)
  plain = run_lib.build_run(make_config(), jax.devices()[:1])
  state = run.initial_state()
  batch, state, metrics = step(run, state)
  mask = np.asarray(batch.mask)
  assert (
    np.asarray(batch.tokens)
    != np.asarray(step(plain, plain.initial_state())[0].tokens)
  ).any()
  np.testing.assert_allclose(
    np.asarray(batch.fields["logprobs_ref"])[mask],
    np.asarray(batch.fields["logprobs_old"])[mask],
    atol=1e-5,
  )
  assert 0 <= metrics["first/loss/kl"] < 1e-10 < metrics["loss/kl"]


def refused(config, message):
  with pytest.raises(UserError, match=message) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert "\n" not in str(error.value)


WHERE = "^config.models.policy.lora: "
MISTAKES = {
  "layers": (
    {"lora": LORA | {"targets": "q_proj"}},
    WHERE + "expected targets to match .* found 'q_proj', which matches none",
  ),
  "expression": (
    {"lora": LORA | {"targets": "*"}},
    WHERE + "expected targets to be a regular expression, found",
  ),
  "rank": ({"lora": LORA | {"rank": 0}}, WHERE + "expected rank .* found 0"),
  "large": (
    {"lora": LORA | {"rank": 49}},
    WHERE + "expected a rank of at most 48, .* text/layers/v, found 49",
  ),
  "alpha": ({"lora": LORA | {"alpha": 0}}, WHERE + "expected alpha .* found 0"),
  "unknown": (
    {"lora": LORA | {"dropout": 0.1}},
    WHERE + "Lora has no option dropout; valid options: rank, alpha, targets",
  ),
  "missing": (
    {"lora": {"rank": 4}},
    WHERE + "Lora needs alpha, targets",
  ),
  "frozen": (
    {"lora": LORA | {"targets": ".*"}},
    "^config.frozen: expected the new adapter to train, found it frozen at vi",
  ),
  "both": (
    {"lora": LORA, "adapter": "somewhere"},
    WHERE + "expected none beside an adapter, .* leave one of the two out",
  ),
  "nowhere": (
    {"adapter": "some/where/else"},
    "^config.models.policy.adapter: expected a model directory, found none at",
  ),
  "model": ({"adapter": "tiny"}, "^config.models.policy.adapter: .* PEFT's"),
}


@pytest.mark.parametrize("policy, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(policy, message):
  refused(make_config(**policy), message)


@pytest.mark.full
def test_an_adapter_of_another_model(tmp_path):
  path = random_adapter(tmp_path / "one", base="Qwen/Qwen2.5-VL-3B-Instruct")
  refused(
    make_config(adapter=path),
    "^config.models.policy.adapter: .* an adapter of tiny, found one of Qwen/",
  )
  path = random_adapter(tmp_path / "two")
  config = make_config(path=path)
  refused(config, "found adapter_config.json: .*config.models.policy.adapter")


# Whole runs.

STEPS = 20
CONFIG = (
  "config.rollout.update(prompts=8, answers=4, length=6)",
  f"config.train.steps = {STEPS}",
  "config.checkpoint.every = 4",
  "config.schedule.value = 1e-2",
  f"config.rewards.length = {LENGTH!r}",
  f"config.models.policy.lora = {LORA!r}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return runs.make_folder(tmp_path_factory.mktemp("lora"), *CONFIG)


@pytest.fixture(scope="module")
def whole(folder):
  runs.finish(folder, folder / "whole")
  return folder / "whole"


@pytest.mark.full
def test_killed_and_resumed_equals_uninterrupted(folder, whole):
  """Twenty steps, to the last bit; checkpoints have the size of the pairs."""
  workdir = folder / "killed"
  with runs.start(folder, workdir) as run:
    assert run.until(lambda: runs.logged(workdir) >= 10)
    run.processes[0].kill()
  assert 0 < runs.saved(workdir) < STEPS
  runs.finish(folder, workdir)
  runs.assert_same(workdir, whole)
  files = (whole / "checkpoints" / str(STEPS)).rglob("*")
  size = sum(file.stat().st_size for file in files if file.is_file())
  model = (whole / "model" / "model.safetensors").stat().st_size
  assert size < model / 2


@pytest.mark.full
def test_the_adapter_alone_and_merged(whole, tmp_path):
  """The run's own model, its export, and its adapter on the base are one."""
  assert export(str(whole), str(tmp_path / "adapter"), adapter=True) == STEPS
  raw = json.loads((tmp_path / "adapter" / adapters.CONFIG).read_text())
  assert (raw["r"], raw["lora_alpha"]) == (4, 8)
  assert export(str(whole), str(tmp_path / "merged")) == STEPS
  hub.save(
    hub.load(raw["base_model_name_or_path"], adapter=tmp_path / "adapter"),
    tmp_path / "again",
  )
  wanted = hub.load(whole / "model")
  base = parameters.flat(hub.load("tiny").params)
  for name in ("merged", "again"):
    found = parameters.flat(hub.load(tmp_path / name).params)
    for path, leaf in parameters.flat(wanted.params).items():
      np.testing.assert_array_equal(found[path], leaf, err_msg=path)
      same = (np.asarray(leaf) == np.asarray(base[path])).all()
      assert same != (path.removesuffix("/kernel") in LAYERS), path


@pytest.mark.full
def test_a_run_goes_on_from_its_own_base(folder, whole, tmp_path):
  """Another model in its place is named, and nothing is overwritten."""
  source = tmp_path / "base"
  hub.save(hub.load("tiny"), source)
  mine = tmp_path / "mine"
  where = f"--config.models.policy.path={source}"
  with runs.start(
    folder, mine, arguments=(where, "--config.train.steps=4")
  ) as run:
    assert run.wait() == [0], run.error()
  other = hub.load("tiny")
  leaves = parameters.flat(other.params)
  leaves["text/norm/scale"] = leaves["text/norm/scale"].at[0].add(1e-3)
  changed = dataclasses.replace(other, params=parameters.merge(leaves))
  hub.save(changed, source)
  with pytest.raises(UserError, match="text/norm/scale first; put that model"):
    export(str(mine), str(tmp_path / "out"))
  with runs.start(
    folder, mine, arguments=(where, "--config.train.steps=5")
  ) as run:
    assert run.wait() == [2]
    assert "text/norm/scale first" in run.error()
    assert run.error().count("\n") == 1
