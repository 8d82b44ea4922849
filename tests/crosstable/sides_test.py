"""Which models can be crossed, and which can't: one line each."""

import json
import re
import shutil

import pytest

from mmrl import config as config_lib
from mmrl import hub
from mmrl.crosstable import __main__, sides, table
from mmrl.errors import UserError
from mmrl.hub import directory


@pytest.fixture
def make(tmp_path):
  """Makes a working directory of a run that has finished."""

  def one(name, *, finished=True, **changes):
    config = config_lib.get_config()
    config.update_from_flattened_dict(changes)
    place = tmp_path / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config.to_dict()))
    if finished:
      shutil.copytree(directory.tiny_path(), place / "model")
    return place

  return one


def change(folder, file, **values):
  """Changes values of a JSON file in a model directory."""
  path = folder / "model" / file
  raw = json.loads(path.read_text())
  path.write_text(json.dumps(raw | values))


def refused(first, second, **options):
  """What is said of two models that can't be crossed."""
  with pytest.raises(UserError) as found:
    table.make(
      *(sides.find(str(x)) for x in (first, second)),
      options.get("config"),
      table.Settings(benchmark=options.get("benchmark", "")),
    )
  message = str(found.value)
  assert "\n" not in message
  return message


def test_a_run_and_its_model_are_the_same(make):
  place = make("a")
  one, other = sides.find(str(place)), sides.find(str(place / "model"))
  assert one.model == other.model == place / "model"
  assert one.config == other.config and one.config.rollout.prompts == 64


def test_the_config_of_the_one_that_has_one(make):
  one, other = sides.find("tiny"), sides.find(str(make("a")))
  config, name = sides.choose_config(one, other, None, "")
  assert config is other.config and name == "test"


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("data.train.split", "test"),
    ("evaluation.benchmarks.test.questions", 7),
    ("models.policy.max_pixels", 4096),
  ],
)
def test_runs_of_different_data(make, field, value):
  a, b = make("a"), make("b", **{field: value})
  found = refused(a, b)
  assert re.match(
    rf"expected runs of the same data, found config\.{field} .* in \S+/a and"
    rf" {value!r} in \S+/b; pass --config",
    found,
  )


def test_what_may_differ(make):
  """A method is what differs; and with --config, what is asked is said."""
  one, other = (sides.find(str(make(*x))) for x in (("a",), ("b",)))
  other.config.schedule.value = 1.0
  other.config.seed = 7
  assert sides.choose_config(one, other, None, "")[0] is one.config
  other.config.data.train.split = "test"
  config = config_lib.get_config()
  assert sides.choose_config(one, other, config, "") == (config, "test")


def test_share_of_tokens_of_the_target_score(make):
  """Of a run's reward; of the given config's, where it has one."""
  a, b = (sides.find(str(make(name))) for name in "ab")
  assert sides.target_fraction(a, b, None) is None
  b.config.rewards.looks = {"name": "region_attention", "weight": 1.0}
  assert sides.target_fraction(sides.find("tiny"), b, None) == 0.3
  assert sides.target_fraction(a, b, config_lib.get_config()) == 0.3
  b.config.rewards.looks.fraction = 0.2
  assert sides.target_fraction(a, b, None) == 0.2
  b.config.rewards.score = {"name": "target_attention", "fraction": 0.4}
  assert sides.target_fraction(a, b, None) == 0.4
  a.config.rewards.looks = {"name": "region_attention", "fraction": 0.3}
  with pytest.raises(UserError, match=r"found 0\.3 in \S+/a and 0\.4 in \S+/b"):
    sides.target_fraction(a, b, None)
  assert sides.target_fraction(b, a, a.config) == 0.3


def test_no_config():
  found = refused("tiny", "tiny")
  assert found.startswith(
    "expected the working directory of a run, or --config"
  )


def test_no_such_benchmark(make):
  found = refused(make("a"), "tiny", benchmark="tset")
  assert "benchmarks, test, found 'tset'; the nearest is test" in found
  config = config_lib.get_config()
  config.evaluation.benchmarks = {}
  assert "of which there is none" in refused("tiny", "tiny", config=config)


def test_a_run_that_has_not_finished(make):
  with pytest.raises(UserError, match="expected a trained model at .*/a/model"):
    sides.find(str(make("a", finished=False)))


def test_models_of_another_shape(make):
  a, b = make("a"), make("b")
  raw = json.loads((b / "model" / "config.json").read_text())
  part = raw.get("text_config", raw)
  part["num_hidden_layers"] += 1
  (b / "model" / "config.json").write_text(json.dumps(raw))
  found = refused(a, b)
  assert "one shape and vocabulary, found text.num_hidden_layers" in found


def test_models_of_another_vocabulary(make):
  a, b = make("a"), make("b")
  path = b / "model" / "tokenizer.json"
  raw = json.loads(path.read_text())
  vocabulary = raw["model"]["vocab"]
  one, other = sorted(vocabulary, key=vocabulary.get)[100:102]
  vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
  path.write_text(json.dumps(raw))
  found = refused(a, b)
  assert "one shape and vocabulary, found the token" in found


def test_models_that_see_pictures_differently(make):
  a, b = make("a"), make("b")
  change(b, "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
  assert "found picture settings" in refused(a, b)


def test_output_is_no_folder(tmp_path):
  """It is said before a model is read."""
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"--output: expected a folder .*/file"):
    __main__._make_folder(str(tmp_path / "file"))


def test_a_model_of_another_name_is_no_run(make, tmp_path):
  """A model directory without a run above it says nothing of data."""
  shutil.copytree(directory.tiny_path(), tmp_path / "kept")
  assert sides.find(str(tmp_path / "kept")).config is None
  assert hub.is_tiny(hub.load(tmp_path / "kept").config)
