"""What a run trained, written as a model directory."""

import dataclasses
import json
import pathlib
import re

from hub import publish_test
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import safetensors.numpy
import small_models

from mmrl import config as config_lib
from mmrl import hub
from mmrl.benchmarks.best import Best
from mmrl.errors import UserError
from mmrl.export import export, push
from mmrl.models import parameters
from mmrl.models.config import Lora
from mmrl.train.state import State
from mmrl.workdir import checkpoint

FROZEN = ("vision/",)


@dataclasses.dataclass(frozen=True)
class Run:
  """A directory as training leaves it.

  Attributes:
    path: of the run.
    source: directory of the model that it started from.
    params: of its newest checkpoint.
  """

  path: str
  source: str
  params: dict


def train(tmp_path, config, best=None, lora=None, **changes) -> Run:
  """A run of two checkpoints: what trains, plus their step."""
  source, workdir = tmp_path / "source", tmp_path / "run"
  model = small_models.make_model(config)
  hub.save(model, source)
  if lora is not None:
    pairs = parameters.init_adapter(
      jax.random.key(0), dataclasses.replace(config, lora=lora)
    )
    params = parameters.merge(parameters.flat(model.params), pairs)
    model = dataclasses.replace(model, params=params)
    changes["models"] = {"policy": {"lora": dataclasses.asdict(lora)}}
  settings = config_lib.get_config()
  settings.models.policy.path = str(source)
  settings.frozen = FROZEN
  settings.update(changes)
  workdir.mkdir()
  (workdir / "config.json").write_text(settings.to_json())
  saved = checkpoint.Checkpoints(workdir, keep=2)
  for step in (3, 6):
    trainable, frozen = parameters.partition(model.params, FROZEN)
    trainable = {path: leaf + step for path, leaf in trainable.items()}
    params = parameters.merge(trainable, frozen)
    state = State(
      step=jnp.asarray(step, jnp.int32),
      trainable=trainable,
      frozen=frozen,
      optimizer=({"mu": jnp.zeros(4)}, ()),
      running={},
      averages={},
      norms={},
    )
    saved.best = best
    saved.save(state, {"next_index": 0})
  saved.wait()
  saved.close()
  return Run(str(workdir), str(source), params)


@pytest.fixture(
  scope="module",
  params=small_models.one_family(["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]),
)
def run(request, tmp_path_factory):
  config = small_models.small_config(tied=False, family=request.param)
  return train(tmp_path_factory.mktemp("run"), config)


def check_same(params, wanted):
  jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.full
def test_newest_checkpoint_is_written(run, tmp_path):
  """Trained and frozen parameters together, to the last bit."""
  assert export(run.path, str(tmp_path / "out")) == 6
  exported, source = hub.load(tmp_path / "out"), hub.load(run.source)
  check_same(exported.params, run.params)
  assert exported.config == source.config
  assert exported.processor.picture == source.processor.picture
  assert exported.processor.video == source.processor.video
  chats = small_models.mixed()
  check_same(exported.processor(chats), source.processor(chats))


@pytest.mark.full
def test_type_and_shards(run, tmp_path):
  export(run.path, str(tmp_path), dtype="bfloat16", max_shard_bytes=60_000)
  files = sorted(tmp_path.glob("model-*.safetensors"))
  assert len(files) > 2
  tensors = [t for f in files for t in safetensors.numpy.load_file(f).values()]
  assert {str(tensor.dtype) for tensor in tensors} == {"bfloat16"}
  assert json.loads((tmp_path / "config.json").read_text())["dtype"] == (
    "bfloat16"
  )
  wanted = jax.tree.map(lambda x: x.astype(jnp.bfloat16), run.params)
  check_same(hub.load(tmp_path, dtype="bfloat16").params, wanted)


def test_no_run_and_no_checkpoint_yet(tmp_path):
  config = config_lib.get_config().to_json()
  for said in (
    "the --workdir of a run, found",
    "a checkpoint in .* found none",
  ):
    with pytest.raises(UserError, match=f"expected {said}"):
      export(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "config.json").write_text(config)


@pytest.mark.full
def test_checkpoint_of_another_model(run, tmp_path):
  """The run's config was changed by hand, or its model replaced."""
  settings = json.loads(pathlib.Path(run.path, "config.json").read_text())
  other = train(tmp_path, small_models.small_config())
  settings["models"]["policy"]["path"] = other.source
  path = tmp_path / "mixed"
  path.mkdir()
  (path / "config.json").write_text(json.dumps(settings))
  (path / "checkpoints").symlink_to(f"{run.path}/checkpoints")
  with pytest.raises(
    UserError, match="found text/head/kernel in shape|norm/bias"
  ):
    export(str(path), str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_output_is_a_file(run, tmp_path):
  (tmp_path / "out").write_text("mine")
  with pytest.raises(UserError, match="expected to write a model to .*out"):
    export(run.path, str(tmp_path / "out"))
  assert (tmp_path / "out").read_text() == "mine"


def test_the_best_checkpoint_is_written(tmp_path):
  """Or none, where the run has none or doesn't choose one."""
  run = train(tmp_path, small_models.small_config(), best=Best(3, 0.5))
  out = tmp_path / "out"
  with pytest.raises(UserError, match="best names a number.*leave out --best"):
    export(run.path, str(out), best=True)
  settings = json.loads(pathlib.Path(run.path, "config.json").read_text())
  settings["checkpoint"]["best"] = "test/accuracy"
  pathlib.Path(run.path, "config.json").write_text(json.dumps(settings))
  assert export(run.path, str(out), best=True) == 3
  newest = jax.tree.leaves(run.params["text"])
  found = jax.tree.leaves(hub.load(out).params["text"])
  for one, other in zip(found, newest, strict=True):
    np.testing.assert_allclose(one, other - 3, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("adapter", [False, True])
def test_push(tmp_path, monkeypatch, capsys, adapter):
  """The model or the adapter, each with its card."""
  lora = Lora(rank=2, alpha=4, targets="text/layers/.*") if adapter else None
  run = train(tmp_path, small_models.small_config(), lora=lora)
  service = publish_test.Hub()
  monkeypatch.setattr(huggingface_hub, "HfApi", service)
  monkeypatch.setattr(huggingface_hub, "get_token", lambda: "t")
  step, _ = push(run.path, publish_test.NAME, adapter=adapter, private=True)
  assert step == 6
  names = {"adapter_config.json"} if adapter else {"config.json"}
  assert names | {"README.md"} <= {*service.pushed}
  assert service.repositories[publish_test.NAME].private
  told = capsys.readouterr().err
  assert ("warning: someone/model names its base model" in told) == adapter


@pytest.mark.full
def test_command(tmp_path):
  run = train(tmp_path, small_models.small_config())
  out = tmp_path / "out"
  done = runs.command(
    *("mmrl.export", f"--workdir={run.path}", f"--output={out}"),
    "--dtype=float16",
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"wrote step 6 of {run.path} to {out}\n"
  wanted = jax.tree.map(lambda x: x.astype(jnp.float16), run.params)
  check_same(hub.load(out, dtype="float16").params, wanted)


@pytest.mark.full
@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--workdir=x"], "expected --output or --push, found none"),
    (["--workdir=x", "--output=y", "--push=a/b"], "or --push, found both"),
    (["--workdir=x", "--push=y"], "expected --push=USER/NAME, .* found 'y'"),
    (["--workdir=x", "--output=y", "--private"], "expected --push beside"),
    (["--workdir=x", "--output=y"], "expected the --workdir of a run, found x"),
  ],
)
def test_mistakes_are_one_line(arguments, message):
  done = runs.command("mmrl.export", *arguments)
  assert done.returncode == 2
  assert re.search(message, done.stderr)
  assert done.stderr.count("\n") == 1
