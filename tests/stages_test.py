"""Stages of a recipe: each starts from the model before, and is run once."""

import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from experiments import cold_start, egoreasoner, look_back, react, stages
from mmrl import config as config_lib
from mmrl.errors import UserError

loop = importlib.import_module("mmrl.train.loop")


@pytest.fixture
def ran(monkeypatch):
  """Runs by name and model, which write what the next stage reads."""
  found = []

  def train(config, workdir):
    path = pathlib.Path(workdir)
    if (path / "model").exists():
      return
    found.append((path.name, config.models.policy.path))
    if config.seed == 13:
      raise UserError("config.seed: expected luck, found 13")
    (path / "model").mkdir(parents=True)

  monkeypatch.setattr(loop, "train", train)
  return found


def recipe(**seeds):
  found = {}
  for name, seed in seeds.items():
    found[name] = config_lib.get_config()
    found[name].seed = seed
  return found


def test_each_stage_starts_from_the_model_before(ran, tmp_path):
  stages.run(recipe(a=1, b=2, c=3), tmp_path)
  models = [f"{tmp_path}/{name}/model" for name in "ab"]
  assert ran == [("a", "tiny"), ("b", models[0]), ("c", models[1])]
  stages.run(recipe(a=1, b=2, c=3), tmp_path)
  assert len(ran) == 3


def test_it_goes_on_at_the_stage_that_failed(ran, tmp_path):
  with pytest.raises(UserError) as error:
    stages.run(recipe(a=1, b=13, c=3), tmp_path)
  assert str(error.value) == (
    "stage 'b' failed: config.seed: expected luck, found 13. Later ones weren't"
    " begun; the same command goes on here"
  )
  assert [name for name, _ in ran] == ["a", "b"]
  stages.run(recipe(a=1, b=2, c=3), tmp_path)
  assert [name for name, _ in ran] == ["a", "b", "b", "c"]


def test_a_stage_that_leaves_no_model_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(loop, "train", lambda config, workdir: {})
  with pytest.raises(
    UserError, match="stage 'b': expected the model of the st"
  ):
    stages.run(recipe(a=1, b=2), tmp_path)


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("none.py", None, "expected a file with get_stages, found no"),
    ("a.txt", "", "expected a file FILE.py, found"),
    ("a.py", "x = 1", "with get_stages, found none; a file with get_config"),
    (
      "a.py",
      "def get_stages(arg):\n  raise ValueError(f'a.py:{arg}: expected :b')",
      "a.py:c: expected :b",
    ),
  ],
)
def test_what_is_no_recipe_is_refused(tmp_path, name, text, message):
  path = tmp_path / name
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=f"--config: .*{message}"):
    stages.stages_of(f"{path}:c")


def test_the_recipe_that_ships():
  found = stages.stages_of(f"{cold_start.__file__}:data,MODEL")
  assert list(found) == ["sft", "rl"]
  assert found["sft"].models.policy.path == "MODEL"
  assert found["sft"].losses.likelihood.reduce == "weighted_token_mean"
  assert "attention" in found["rl"].losses


@pytest.mark.parametrize(
  "recipe, arm, first",
  [
    (egoreasoner, "gated", "sft"),
    (look_back, "control", "cold"),
    (react, "labels", "cold"),
  ],
)
def test_a_recipe_s_run_card_has_the_command_of_each_stage(recipe, arm, first):
  """The first learns texts, the second is rewarded, as the arm says."""
  for argument in ("data", f"data,{arm}"):
    taught, rewarded = stages.stages_of(
      f"{recipe.__file__}:{argument}"
    ).values()
    assert list(taught.losses) == ["likelihood"] and not taught.rewards
    assert rewarded.rewards and "likelihood" not in rewarded.losses
    assert rewarded == recipe.get_config(argument)
  command = " ".join(recipe.__doc__.replace("\\", " ").split())
  name = f"experiments/{recipe.__name__.split('.')[-1]}.py:DIR"
  assert (
    f"--config {name},{first} --workdir w/{first} && python -m mmrl.train"
    f" --config {name} --workdir w/rl --config.models.policy.path=w/{first}/mod"
  ) in command
  # One stage is no recipe.
  with pytest.raises(UserError, match=f"--config: .*:data,{first}.*: expected"):
    stages.stages_of(f"{recipe.__file__}:data,{first}")


@pytest.mark.full
def test_the_command(tmp_path):
  """Two stages of a step each; then nothing; then a stage that fails."""
  rows = [
    {"question": f"is it {x}?", "answer": "yes", "answers": ["<answer>yes"]}
    for x in "abcdefgh"
  ]
  for split in ("train", "test"):
    path = tmp_path / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "from experiments import cold_start\n"
    "def get_stages(arg):\n"
    "  found = cold_start.get_stages(arg)\n"
    "  for config in found.values():\n"
    "    config.train.steps = config.train.minibatches = 1\n"
    "  return found\n"
  )
  command = [
    *(sys.executable, "-m", "experiments.stages"),
    *(f"--config={recipe}:{tmp_path}", f"--workdir={tmp_path / 'w'}"),
  ]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "w" / "rl" / "model" / "config.json").exists()
  again = subprocess.run(command, capture_output=True, text=True)
  assert again.returncode == 0
  assert (again.stdout + again.stderr).count("has already finished its 1") == 2
  (tmp_path / "train.jsonl").unlink()
  (tmp_path / "w" / "rl" / "summary.json").unlink()
  failed = subprocess.run(command, capture_output=True, text=True)
  assert failed.returncode == 2
  assert failed.stderr.splitlines()[-1].startswith(
    "error: stage 'rl' failed: config.data.train: expected a readable data file"
  )
