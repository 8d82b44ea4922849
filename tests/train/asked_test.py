"""Runs whose rewards ask models, and runs of questions in pairs."""

import importlib
import json

import jax
import pytest
import runs
from servers import completion, serve

from mmrl import config as config_lib
from mmrl import evaluate
from mmrl.errors import UserError
from mmrl.train import loop
from mmrl.train import run as run_lib


def small(config, **rollout):
  """One step of the tiny model; 16 prompts go on eight devices, too."""
  config.models.policy.path = "tiny"
  config.models.policy.remat = False
  config.rollout.update({"prompts": 16, "answers": 2, "length": 8} | rollout)
  config.train.steps = config.train.minibatches = config.train.accumulate = 1
  config.data.lengths = config.data.patches = ()
  config.shares.every = 0
  config.checkpoint.every = 1
  config.trackers = {}
  config.evaluation.batch = 8
  for benchmark in config.evaluation.benchmarks.values():
    benchmark.data.count = 8
  config.data.train.count = 32
  return config


def logged(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return json.loads(lines[-1])


def experiment(name, arm, **rollout):
  module = importlib.import_module(f"experiments.{name}")
  return small(module.get_config(arm), **rollout)


def with_judge(judge, **rollout):
  """A run on scenes whose only reward asks a model."""
  config = config_lib.get_config()
  scenes = {"name": "Scenes", "kinds": ("attribute",), "count": 4}
  config.data.train = scenes | {"split": "train"}
  config.evaluation.benchmarks = {}
  config.models.judge = judge
  config.rewards = {
    "facts": {"name": "judged_facts", "weight": 0.7},
    "judged": {"name": "judged_share", "weight": 0.0},
  }
  return small(config, **rollout)


ENDPOINT = {"name": "Endpoint", "model": "judge", "wait": 0.01, "attempts": 2}


@pytest.mark.full
@pytest.mark.parametrize(
  "name, arm", [("react", "runlocal,cold"), ("react", "runlocal")]
)
def test_a_step_of_the_local_arms(name, arm, tmp_path, monkeypatch):
  runs.use_devices(monkeypatch, 1)
  # A right answer must fit, and a text to learn.
  sizes = {"length": 100, "prompts": 4}
  if arm.endswith("cold"):
    sizes |= {"length": 400, "answers": 1}
  loop.train(experiment(name, arm, **sizes), str(tmp_path))
  found = logged(tmp_path)
  if arm.endswith("cold"):
    assert found["loss/total"] > 0
  else:
    assert -6 < found["reward/preference"] < 0
    assert found["reward/format"] == 0


@pytest.mark.full
def test_a_judge_that_fails_never_stops_a_run(tmp_path, monkeypatch, capsys):
  """Half of the requests fail for good, and the key is written nowhere."""
  pytest.importorskip("openai")
  runs.use_devices(monkeypatch, 1)
  key = "sk-secret-of-a-judge"

  def half(body, count):
    text = body["messages"][-1]["content"]
    if len(text) % 2:
      return 500, {"error": {"message": f"no memory for {key}"}}
    return 200, completion("<info1>1</info1>")

  with serve(half) as server:
    monkeypatch.setenv("OPENAI_BASE_URL", server.address)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    loop.train(with_judge(ENDPOINT, prompts=4), str(tmp_path))
    address = server.address
  found = logged(tmp_path)
  assert found["asked/judge_requests"] > 0
  judged = found["reward/judged"]
  failures = found["asked/judge_failures"]
  assert (judged < 1) == (failures > 0)
  assert found["reward/facts"] == pytest.approx(judged, abs=1e-5)
  said = "".join(capsys.readouterr())
  for path in tmp_path.rglob("*"):
    if path.is_file():
      data = path.read_bytes()
      assert key.encode() not in data and address.encode() not in data, path
  assert key not in said


@pytest.mark.full
def test_each_process_asks_about_its_own_answers(tmp_path, monkeypatch):
  """And all of them have the same numbers, failures counted together."""
  pytest.importorskip("openai")
  folder = runs.make_folder(
    tmp_path,
    'scenes = {"name": "Scenes", "kinds": ("attribute",), "count": 16}',
    'config.data.train = scenes | {"split": "train"}',
    "config.data.lengths = config.data.patches = ()",
    "config.evaluation.benchmarks = {}",
    f"config.models.judge = {ENDPOINT!r}",
    "config.rewards = {",
    '  "facts": {"name": "judged_facts", "weight": 0.7},',
    '  "judged": {"name": "judged_share", "weight": 0.0},',
    "}",
    "config.rollout.prompts, config.rollout.answers = 8, 2",
    "config.rollout.length = 8",
    "config.train.steps = config.train.minibatches = 1",
    "config.shares.every = 0",
  )

  def judge(body, count):
    if count % 8 < 2:
      return 400, {"error": {"message": "too long"}}
    return 200, completion("<info1>1</info1>")

  with serve(judge) as server:
    monkeypatch.setenv("OPENAI_BASE_URL", server.address)
    runs.finish(folder, tmp_path / "run", 2)
    sent = len(server.bodies)
  found = logged(tmp_path / "run")
  assert sent == found["asked/judge_requests"] == 16
  assert found["asked/judge_failures"] == 4
  # A hit rate has 1e-6 in its divisor.
  assert found["reward/judged"] == pytest.approx(12 / 16, abs=1e-5)
  assert found["reward/facts"] == pytest.approx(12 / 16, abs=1e-5)


@pytest.mark.full
def test_a_judge_of_one_s_own_devices(tmp_path, monkeypatch):
  """Of which it has two, and shares its parameters out to both."""
  runs.use_devices(monkeypatch, 2)
  judge = {
    "name": "LocalModel",
    "path": "tiny",
    "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
    "batch": 8,
    "length": 8,
  }
  loop.train(with_judge(judge, prompts=4), str(tmp_path))
  found = logged(tmp_path)
  assert found["asked/judge_failures"] == 0
  assert found["asked/judge_completion_tokens"] > 0
  assert found["reward/facts"] == 0  # the tiny model knows no verdicts


SCORES = {
  "facts": {"name": "judged_facts"},
  "right": {"name": "exact_answer"},
}


def judged_benchmark(judge):
  """A run whose rewards ask nobody, and whose benchmark asks a model."""
  config = with_judge(judge)
  config.rewards = {"right": {"name": "exact_answer", "weight": 1.0}}
  scenes = config.data.train.to_dict() | {"split": "test"}
  config.evaluation.benchmarks.test = {
    "name": "questions",
    "data": scenes,
    "scores": SCORES,
  }
  return small(config)


@pytest.mark.full
def test_a_judge_scores_a_benchmark(tmp_path, monkeypatch, capsys):
  """While a run trains, and after it; two of eight requests have no reply."""
  pytest.importorskip("openai")
  runs.use_devices(monkeypatch, 1)
  config = judged_benchmark(ENDPOINT)
  config.evaluation.every = 1

  def judge(body, count):
    if count % 8 < 2:
      return 400, {"error": {"message": "too long"}}
    return 200, completion("<info1>1</info1>")

  with serve(judge) as server:
    monkeypatch.setenv("OPENAI_BASE_URL", server.address)
    loop.train(config, str(tmp_path))
    trained = len(server.bodies)
    capsys.readouterr()
    evaluate.run(config, str(tmp_path))
  # Before, after the only step, and at the end: eight questions each.
  found = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]
  assert trained % 8 == 0 and len(server.bodies) == trained + 8
  printed = json.loads(capsys.readouterr().out)["test"]
  every = [found["test"]["before"], found["test"]["after"], printed["numbers"]]
  for numbers in every:
    assert numbers["facts"]["value"] == pytest.approx(0.75, abs=1e-5)
    assert numbers["asked/judge_failures"]["value"] == 2
    assert numbers["asked/judge_requests"]["value"] == 8
  assert {*printed["baseline"]} == {"right"}
  step = logged(tmp_path)
  assert step["test/asked/judge_failures"] == 2
  assert step["asked/judge_requests"] == 0


def refused(config, message):
  with pytest.raises(UserError, match=message):
    run_lib.build_run(config, jax.devices()[:1])


def test_models_that_are_asked_are_checked_before_a_run():
  pytest.importorskip("openai")
  config = with_judge(ENDPOINT)
  del config.models["judge"]
  refused(config, "needs ask_judge, .* add a model 'judge' to config.models")
  config = with_judge(ENDPOINT | {"modle": "x"})
  refused(config, "config.models.judge: Endpoint has no option modle")
  config = with_judge(ENDPOINT)
  config.rewards = {"facts": {"name": "stated_facts", "weight": 1.0}}
  refused(config, "config.models.judge: expected a reward that reads ask_judge")
  config = judged_benchmark(ENDPOINT)
  del config.models["judge"]
  refused(
    config,
    "config.evaluation.benchmarks.test: a score needs ask_judge, .* add a model"
    " 'judge' to config.models",
  )
  blind = {"name": "without_pictures"}
  blind["of"] = config.evaluation.benchmarks.test.to_dict()
  config.evaluation.benchmarks = {"blind": blind}
  refused(config, "config.evaluation.benchmarks.blind: a score needs ask_judge")
  local = {"name": "LocalModel", "path": "tiny"}
  config = with_judge(local | {"mesh": {"data": 3, "fsdp": 1, "tensor": 1}})
  refused(config, "config.models.judge.mesh: expected sizes that multiply to 1")


def test_an_address_must_be_there(monkeypatch):
  pytest.importorskip("openai")
  monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
  refused(
    with_judge(ENDPOINT),
    "config.models.judge: .* environment variable OPENAI_BASE_URL, found none",
  )


@pytest.mark.full
def test_pairs_are_checked_before_a_run():
  config = experiment("react", "runlocal", length=100)
  config.data.train.pairs = False
  refused(config, "config.rollout: expected data with pairs of questions")
  config = experiment("react", "runlocal", length=100, prompts=3)
  refused(config, "config.rollout.prompts: expected an even number, two for")
  config = experiment("react", "runlocal", length=100)
  config.rollout.of = {
    "name": "refilled",
    "of": config.rollout.of.to_dict(),
    "rounds": 1,
    "reward": "format",
  }
  refused(config, "config.rollout.of: expected answers to single questions")
