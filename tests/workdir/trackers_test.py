"""Trackers by config: what they are given, and that none stops a run."""

import json
import os
import pathlib
import subprocess
import sys
import types

from etils import epath
import pytest

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.workdir import claim, trackers, writing
from mmrl.workdir import log as log_lib

OWN = """
import pathlib
import threading

class Kept:
  def __init__(self, run, *, title="a"):
    self.file = open(run.workdir / "kept.txt", "a")
    self.file.write(f"{title} {run.step} {run.settings['seed']}\\n")
  def write(self, step, values):
    self.file.write(f"{step} {sorted(values.items())}\\n")
  def close(self):
    self.file.close()

class Failing:
  calls = []
  def __init__(self, run, *, at="write", times=100):
    self.at, self.times = at, times
    self._reach("begin")
  def _reach(self, place):
    self.calls.append(place)
    if place == self.at and self.calls.count(place) <= self.times:
      raise OSError("no\\nnetwork")
  def write(self, step, values):
    self._reach("write")
  def close(self):
    self._reach("close")

class Hanging:
  entered, ready = threading.Event(), threading.Event()
  def __init__(self, run):
    self.steps = []
  def write(self, step, values):
    self.entered.set()
    self.ready.wait()
    self.steps.append(step)
  def close(self):
    pathlib.Path("steps.txt").write_text(f"{self.steps}")

class Half:
  def write(self, step, values):
    pass
"""


@pytest.fixture
def own(tmp_path):
  (tmp_path / "own.py").write_text(OWN)
  return lambda name, **spec: {"name": f"{tmp_path}/own.py:{name}", **spec}


def run_at(tmp_path, step=0):
  return trackers.Run(epath.Path(tmp_path), step, {"seed": 7})


def log_two(tmp_path, specs, step=0):
  """A log of two steps with trackers."""
  opened = trackers.Trackers(specs, run_at(tmp_path, step))
  log = log_lib.Log(tmp_path, step=step, trackers=opened)
  log.write(step + 1, {"a": 1.0, "b/c": 2.0})
  log.write(step + 2, {"a": 3.0})
  log.close()


def test_tensorboard_is_the_default(tmp_path):
  specs = config_lib.get_config().trackers.to_dict()
  assert [*specs] == ["tensorboard"]
  log_two(tmp_path, specs)
  (file,) = (tmp_path / "tensorboard").iterdir()
  assert b"b/c" in file.read_bytes()


def test_no_tracker_is_fine(tmp_path):
  log_two(tmp_path, {})
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_one_of_a_file_is_given_the_numbers(tmp_path, own):
  log_two(tmp_path, {"x": own("Kept", title="t")}, step=4)
  assert (tmp_path / "kept.txt").read_text().split("\n") == [
    "t 4 7",
    "5 [('a', 1.0), ('b/c', 2.0)]",
    "6 [('a', 3.0)]",
    "",
  ]


@pytest.mark.parametrize(
  ("at", "calls"),
  [
    ("begin", ["begin", "begin", "begin"]),
    ("write", ["begin", "write", "write", "close"]),
    ("close", ["begin", "write", "write", "close"]),
  ],
)
def test_one_that_fails_is_told_of_once_and_kept(
  tmp_path, own, at, calls, capsys, monkeypatch
):
  monkeypatch.setattr(writing, "_PAUSE", 0.0)
  specs = {"bad": own("Failing", at=at), "good": own("Kept")}
  log_two(tmp_path, specs)
  (line,) = capsys.readouterr().err.splitlines()
  then = "; training goes on, and it is tried again" * (at != "close")
  assert line == f"warning: config.trackers.bad: OSError: no network{then}"
  make, _ = trackers.resolve(specs)["bad"]
  assert make.calls == calls
  assert len((tmp_path / "kept.txt").read_text().split("\n")) == 4
  assert len(log_lib.read(tmp_path)) == 2


@pytest.mark.parametrize("at", ["begin", "write"])
def test_one_that_works_again_goes_on(tmp_path, own, at, capsys, monkeypatch):
  monkeypatch.setattr(writing, "_PAUSE", 0.0)
  specs = {"bad": own("Failing", at=at, times=1)}
  log_two(tmp_path, specs)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2 and lines[0].startswith("warning: config.trackers.bad")
  assert lines[1] == (
    "config.trackers.bad works again; metrics.jsonl has what it lacks"
  )
  make, _ = trackers.resolve(specs)["bad"]
  assert make.calls[-3:] == ["write", "write", "close"]


def test_what_takes_long_to_fail_is_made_less_often(tmp_path, own, monkeypatch):
  monkeypatch.setattr(writing, "_PAUSE", 1e9)
  specs = {"bad": own("Failing", at="begin")}
  log_two(tmp_path, specs)
  make, _ = trackers.resolve(specs)["bad"]
  assert make.calls == ["begin"]


def test_one_that_hangs_holds_nothing_up(tmp_path, own, capsys, monkeypatch):
  """Neither a step nor the end; once it goes on, it is given what waited."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(writing, "_HELD", 2)
  monkeypatch.setattr(writing, "_LAST_SECONDS", 0.01)
  specs = {"x": own("Hanging")}
  make, _ = trackers.resolve(specs)["x"]
  opened = trackers.Trackers(specs, run_at(tmp_path))
  (told,) = opened._all
  for step in range(1, 7):
    opened.write(step, {"a": 1.0})
    assert make.entered.wait(60)
  opened.close()
  behind, late = capsys.readouterr().err.splitlines()
  assert behind.startswith("warning: config.trackers.x: 2 reports wait for it")
  assert late == (
    "warning: config.trackers.x: not done after 0 s; the run ends without it"
  )
  make.ready.set()
  told._reports.put(None)
  told._thread.join()
  assert (tmp_path / "steps.txt").read_text() == "[1, 2, 3]"


def test_tensorboard_at_a_store_is_told_of(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(trackers.storage, "is_remote", lambda path: True)
  opened = trackers.Trackers({"x": {"name": "tensorboard"}}, run_at(tmp_path))
  opened.write(1, {"a": 1.0})
  opened.close()
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: no TensorBoard files are written to")
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"name": "tensorbord"}, "valid names: mlflow, tensorboard, wandb"),
    ({"name": "tensorboard", "dir": "x"}, "tensorboard has no option dir"),
    ({"name": "wandb", "mode": "on"}, "mode: expected one of 'online', 'offl"),
  ],
)
def test_a_mistake_is_refused_before_a_run(spec, message):
  with pytest.raises(UserError) as error:
    trackers.resolve({"x": spec})
  assert str(error.value).startswith("config.trackers.x")
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_class_that_is_none_is_refused(own):
  with pytest.raises(UserError, match="Half to be a class .* found no close"):
    trackers.resolve({"x": own("Half")})


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_with_the_command(package, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UserError, match=rf"pip install -e '.\[{package}\]'"):
    trackers.resolve({"x": {"name": package}})


class Recorder:
  """Stands for a module: keeps all calls, of it and of what it returns."""

  def __init__(self, calls, name="", **found):
    self._calls, self._name, self._found = calls, name, found

  def __getattr__(self, name):
    return Recorder(self._calls, f"{self._name}.{name}", **self._found)

  def __call__(self, *args, **kwargs):
    self._calls.append((self._name, args, kwargs))
    return self._found.get(self._name, Recorder(self._calls, self._name))


def test_wandb_is_given_steps_and_goes_on_in_the_same_run(
  tmp_path, monkeypatch
):
  calls = []
  monkeypatch.setitem(sys.modules, "wandb", Recorder(calls))
  spec = {"name": "wandb", "project": "p", "mode": "offline"}
  log_two(tmp_path, {"w": spec})
  log_two(tmp_path, {"w": spec}, step=2)
  begun = [kwargs for name, _, kwargs in calls if name == ".init"]
  assert begun[0]["project"] == "p" and begun[0]["config"] == {"seed": 7}
  assert begun[0]["mode"] == "offline" and begun[0]["name"] == tmp_path.name
  assert begun[0]["id"] == begun[1]["id"]
  logged = [args[0] for name, args, _ in calls if name == ".init.log"]
  assert logged[0] == {"step": 1, "a": 1.0, "b/c": 2.0}
  assert [row["step"] for row in logged] == [1, 2, 3, 4]
  assert [name for name, *_ in calls].count(".init.finish") == 2


def test_mlflow_is_given_steps_and_goes_on_in_the_same_run(
  tmp_path, monkeypatch
):
  calls = []
  made = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
  module = Recorder(calls, **{".MlflowClient.create_run": made})
  client = Recorder(calls, ".MlflowClient", **module._found)
  module._found[".MlflowClient"] = client
  metric = types.SimpleNamespace(Metric=lambda *x: x)
  monkeypatch.setitem(sys.modules, "mlflow", module)
  monkeypatch.setitem(sys.modules, "mlflow.entities", metric)
  log_two(tmp_path, {"m": {"name": "mlflow", "uri": "http://x"}})
  log_two(tmp_path, {"m": {"name": "mlflow", "uri": "http://x"}}, step=2)
  names = [name for name, *_ in calls]
  assert names.count(".MlflowClient.create_run") == 1
  logged = [args for name, args, _ in calls if name.endswith("log_batch")]
  assert {number for number, _ in logged} == {"r1"}
  steps = [[(k, v, s) for k, v, _, s in metrics] for _, metrics in logged]
  assert steps[0] == [("a", 1.0, 1), ("b/c", 2.0, 1)]
  assert steps[3] == [("a", 3.0, 4)]


@pytest.mark.full
def test_wandb_itself_offline(tmp_path):
  pytest.importorskip("wandb")
  check_itself(tmp_path, {"name": "wandb", "mode": "offline"})
  assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of what MLflow uses
def test_mlflow_itself_in_a_file(tmp_path):
  pytest.importorskip("mlflow")
  check_itself(tmp_path, {"name": "mlflow"})
  from mlflow import MlflowClient

  client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
  number = (tmp_path / "trackers" / "mlflow").read_text()
  found = client.get_metric_history(number, "a")
  assert [(one.step, one.value) for one in found] == [
    *((1, 1.0), (2, 3.0), (3, 1.0), (4, 3.0)),
  ]
  assert client.get_run(number).info.status == "FINISHED"


def check_itself(tmp_path, spec):
  """Two parts of a run in a process of its own, with the real package."""
  program = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
from workdir import trackers_test
path, spec = pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
for step in (0, 2):
  trackers_test.log_two(path, {"x": spec}, step=step)
"""
  tests = pathlib.Path(__file__).parents[1]
  # The package may be installed in a folder of its own.
  paths = str(tests.parent), os.environ.get("PYTHONPATH", "")
  done = subprocess.run(
    [sys.executable, "-c", program, tests, tmp_path, json.dumps(spec)],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "config.trackers" not in done.stderr


def test_a_run_may_go_on_with_other_trackers(tmp_path):
  config = config_lib.get_config()
  claim.claim(tmp_path, config)
  config.trackers = {}
  assert claim.check(tmp_path, config) is None
  claim.claim(tmp_path, config)
  config.seed = 1
  with pytest.raises(UserError, match="another config"):
    claim.check(tmp_path, config)
