"""A working directory belongs to one config, of which some may change."""

import json

from etils import epath
import pytest
import small_models
from storage_test import store  # noqa: F401 (a fixture)

from mmrl import config as config_lib
from mmrl import storage
from mmrl.errors import UserError
from mmrl.workdir import claim


def begin(path, config):
  """As a run does."""
  assert claim.check(path, config) is None
  claim.claim(path, config)


def stored(path):
  return json.loads(storage.read_text(path / "config.json"))


def refused(path, config, *parts):
  """In one line with all of these parts, and nothing is written."""
  before = storage.read_text(path / "config.json")
  with pytest.raises(UserError) as caught:
    claim.check(path, config)
  text = str(caught.value)
  assert "\n" not in text
  for part in parts:
    assert part in text, text
  assert storage.read_text(path / "config.json") == before


@pytest.mark.parametrize("place", small_models.first("local", "gs://b/run"))
def test_workdir_of_another_config(tmp_path, store, place):  # noqa: F811
  path = storage.path(tmp_path / "run" if place == "local" else place)
  config = config_lib.get_config()
  assert claim.check(path, config) is None
  assert storage.names(path) == frozenset(), "nothing is written by a check"
  begin(path, config)
  begin(epath.Path(path), config)
  config.train.minibatches = 4
  config.optimizer = {"name": "sgd"}
  refused(
    path,
    config,
    f"{path} belongs to a run with another config",
    "config.train.minibatches is 2 there, found 4",
    "config.optimizer.name is 'adamw' there, found 'sgd'",
    "config.optimizer.weight_decay is 0.01 there, found nothing",
    "new --workdir",
    "only mesh, models.*.mesh, train.steps, ",
  )
  config.seed = 7
  refused(path, config, "; and 1 more;")
  assert storage.names(path) == {"config.json"}


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("mesh.tensor", 2),
    ("models.teacher.mesh", {"data": 1}),
    ("train.steps", 101),
    ("checkpoint.every", 3),
    ("checkpoint.keep", 5),
    ("evaluation.every", 7),
    ("evaluation.batch", 3),
    ("compilation_cache", ""),
    ("data.threads", 0),
  ],
)
def test_what_may_change_is_the_config_from_then_on(tmp_path, field, value):
  config = config_lib.get_config()
  config.models.teacher = {"name": "Directory", "path": "tiny", "mesh": None}
  begin(tmp_path, config)
  with config.ignore_type():
    config.update_from_flattened_dict({field: value})
  begin(tmp_path, config)
  assert stored(tmp_path) == json.loads(json.dumps(config.to_dict()))


def test_every_row_of_the_table_is_a_field():
  """Of the base config, but for meshes of models of their own."""
  fields = claim.flat(config_lib.get_config().to_dict())
  for pattern in claim.MAY_CHANGE:
    if not pattern.startswith("models."):
      assert any(name.startswith(pattern.rstrip("*")) for name in fields)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("seed", 1),
    ("data.workers", 2),
    ("data.lengths", (40, 48)),
    ("evaluation.shown", 3),
    ("shares.every", 0),
    ("schedule.value", 1e-5),
    ("models.policy.path", "elsewhere"),
    ("checkpoint.other", 1),
  ],
)
def test_what_may_not_change(tmp_path, field, value):
  config = config_lib.get_config()
  begin(tmp_path, config)
  with config.unlocked():
    config.update_from_flattened_dict({field: value})
  refused(tmp_path, config, f"config.{field} is ")


def test_steps_are_not_fewer_than_are_saved(tmp_path):
  config = config_lib.get_config()
  begin(tmp_path, config)
  for step in (20, 40):
    folder = tmp_path / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
  config.train.steps = 40
  begin(tmp_path, config)
  config.train.steps = 39
  refused(tmp_path, config, "config.train.steps: expected at least 40", "39")


def finish(path, steps):
  for name in ("before.json", "after.json", "report.html", "model/config.json"):
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("{}")
  (path / "summary.json").write_text(json.dumps({"steps": steps}))


def test_a_finished_run(tmp_path):
  """Of the steps of the config; with more, what it made at its end goes."""
  config = config_lib.get_config()
  begin(tmp_path, config)
  steps = config.train.steps
  finish(tmp_path, steps)
  assert claim.check(tmp_path, config) == {"steps": steps}
  config.train.steps += 1
  begin(tmp_path, config)
  assert storage.names(tmp_path) == {"config.json", "before.json"}
  finish(tmp_path, steps)
  assert claim.check(tmp_path, config) is None, "of fewer steps"
  finish(tmp_path, steps + 1)
  for name in ("before.json", "after.json", "report.html", "model/config.json"):
    (tmp_path / name).rename(tmp_path / "aside")
    assert claim.check(tmp_path, config) is None, name
    (tmp_path / "aside").rename(tmp_path / name)
  (tmp_path / "summary.json").write_text("{")
  assert claim.check(tmp_path, config) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_config_that_is_none(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  refused(tmp_path, config_lib.get_config(), "expected the config of a run at")


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  for action in (claim.check, claim.claim):
    with pytest.raises(UserError, match="writable --workdir"):
      action(tmp_path / "file", config_lib.get_config())
