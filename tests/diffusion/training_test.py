"""The loop that trains, the model that it writes, and grids of its samples."""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from experiments.diffusion import shapes as experiment
from mmrl.diffusion import grid, training
from mmrl.errors import UserError


def small(steps: int):
  config = experiment.get_config()
  config.train.steps = steps
  config.train.batch = 2
  config.every = config.checkpoint.every = 1
  config.checkpoint.keep = 2
  config.model.update(size=8, channels=(8,), attention=(True,))
  config.model.update(heads=2, groups=4)
  config.model.update(text_width=4, condition_width=4)
  return config


def flags(**changes):
  """Flags of `mmrl.diffusion.sample`, as they are by default."""
  fields = {
    "count": 2,
    "seed": 0,
    "prompt": None,
    "steps": 4,
    "weight": 2.0,
    "key_control": None,
    "key_encoder": None,
    "tau": None,
    "gate": None,
    "inter": None,
    "intra": 0.5,
  }
  return types.SimpleNamespace(**(fields | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  training.train(small(3), str(folder))
  return folder


@pytest.mark.full
def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(
  run, tmp_path, capsys
):
  """Stopped after the second of three steps, with the third one's line."""
  stopped = tmp_path / "stopped"
  shutil.copytree(run, stopped)
  shutil.rmtree(stopped / "checkpoints" / "3")
  shutil.rmtree(stopped / "model")
  training.train(small(3), str(stopped))
  assert f"resuming {stopped} after step 2" in capsys.readouterr().out
  lines = (stopped / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
  (config, one), (_, other) = (
    training.load(folder / "model") for folder in (run, stopped)
  )
  assert config.size == 8
  jax.tree.map(np.testing.assert_array_equal, one, other)
  with pytest.raises(UserError, match="config.train.batch is 2 there, found 3"):
    changed = small(3)
    changed.train.batch = 3
    training.train(changed, str(run))


@pytest.mark.full
def test_a_grid_has_a_row_for_each_picture(run):
  model = str(run / "model")
  page = grid.sampled(flags(model=model, prompt="red rows", tau=0.5))
  # Four columns of 8 pixels, eight times as large, and text below.
  assert page.width == 4 * (64 + 8 + 8) + 8 and page.height > 2 * 64
  with pytest.raises(UserError, match="--key_control or --tau, found both"):
    grid.sampled(flags(model=model, key_control=["0"], tau=0.5))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train": {"stps": 3}}, "config.train.stps: .*nearest is steps"),
    ({"train": {"steps": 0}}, "config.train.steps: expected a whole number"),
    ({"train": {"steps": 30}}, "train.steps: expected a multiple of config.ev"),
    ({"train": {"rate": 0.0}}, "config.train.rate: expected a number from"),
    ({"train": {"decay": 100}}, "config.train.decay: expected more than"),
    ({"train": {"dropped": 1.5}}, "config.train.dropped: expected a number"),
    ({"checkpoint": {"every": 30}}, "checkpoint.every: expected a multiple"),
    ({"checkpoint": {"keep": 0}}, "config.checkpoint.keep: expected a whole"),
    ({"every": 0}, "config.every: expected a whole number"),
    ({"seed": "a"}, "config.seed: expected int, found 'a'"),
    ({"model": {"size": 10}}, "config.model.size: expected a multiple of 4"),
    ({"model": {"attention": (True,)}}, "config.model.attention: expected"),
  ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message):
  config = experiment.get_config()
  config = type(config)(config.to_dict())
  for name, value in changes.items():
    with config.unlocked(), config.ignore_type():
      if isinstance(value, dict):
        config[name].update(value)
      else:
        config[name] = value
  with pytest.raises(UserError, match=message):
    training.check(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"inter": ["a"]}, "--inter: expected numbers with commas between"),
    ({"key_control": ["0", "x"]}, "--key_control: expected numbers"),
    ({"key_encoder": ["0.5"]}, "--key_encoder: expected numbers"),
  ],
)
def test_lists_that_are_none_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    grid.config_of(flags(**changes), {})


def test_what_is_not_given_fits_fewer_steps():
  found = grid.config_of(flags(inter=["0.5", "1"]), {})
  assert found.key_control == found.key_encoder == (0, 1, 2, 3)
  assert found.gate == 4 and found.inter == (0.5, 1.0)
  assert grid.config_of(flags(inter=["1"]), {}).inter == 1.0
  chosen = {"key_control": (0, 2), "key_encoder": (0, 3)}
  assert grid.config_of(flags(), chosen).key_control == (0, 2)


@pytest.mark.parametrize("prompt", ["red", "rows red", "red rows x", "pink x"])
def test_a_prompt_that_there_is_not_is_refused(prompt):
  with pytest.raises(UserError, match="--prompt: expected a colour"):
    grid.words_of(prompt)


def test_a_folder_without_a_model_is_refused(tmp_path):
  message = "expected a model of mmrl.diffusion.train at"
  with pytest.raises(UserError, match=message):
    training.load(tmp_path)
  (tmp_path / "config.json").write_text('{"size": 8, "colours": 3}')
  (tmp_path / "model.safetensors").write_bytes(b"no")
  with pytest.raises(UserError, match=message):
    training.load(tmp_path)
