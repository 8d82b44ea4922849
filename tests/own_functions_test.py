"""Functions of a user's file in every slot, by path/to/file.py:function."""

import json
import pathlib
import pickle
import subprocess
import sys

from contract_test import build_parts
import numpy as np
import pytest

from mmrl import build, data, losses, rewards
from mmrl import config as config_lib
from mmrl.benchmarks import runner
from mmrl.errors import UserError
from mmrl.train import walk
from mmrl.workdir import claim

EXAMPLE = pathlib.Path(__file__).parents[1] / "docs/examples/mine.py"
# One of each slot; `lucky` adds a field that `cautious` names.
FILE = """
from __future__ import annotations
from typing import NamedTuple
import jax
import jax.numpy as jnp
from mmrl.data import Example
from mmrl.losses.state import Stateful

imported = []
imported.append(1)

class Lucky(NamedTuple):
  luck: jax.Array

def lucky(logprobs_sampler, mask) -> Lucky:
  return Lucky(jnp.where(mask, logprobs_sampler, 0.0))

def wordy(text, answer, *, scale=1.0):
  return [[scale * len(one) for one in row] for row in text]

def long(length, entropies_old):
  return length / entropies_old.shape[-1]

def centred(rewards, *, factor: float = 1.0):
  return factor * (rewards - rewards.mean(-1, keepdims=True))

def cautious(luck, mask):
  return jnp.where(mask, jnp.exp(luck), 0.0)

def plain(logprobs, advantages, mask, token_weights):
  return jnp.where(mask, -logprobs * advantages[..., None], 0.0)

def remembered(*, start: float = 0.0) -> Stateful:
  def term(logprobs, mask, learned):
    return jnp.where(mask, logprobs * learned["a"], 0.0), {}
  return Stateful(term, lambda shapes: ({"a": jnp.float32(start)}, {}), None)

def rate(*, value):
  return lambda count: value

class Source:
  def __init__(self, *, count=8):
    self.count = count
  def __len__(self):
    return self.count
  def __getitem__(self, i):
    chat = [{"role": "user", "content": "a"}]
    return Example(str(i), "a", chat, "b")
  def pairs(self):
    return (("a", "b") for _ in range(self.count))

class Bare:
  def __len__(self):
    return 1

class Words(Source):
  def __getitem__(self, i):
    return "a"

class Benchmark:
  def __init__(self, field, *, size):
    self.size = size
  def __len__(self):
    return self.size
  def __getitem__(self, i):
    return Source()[i]
  def grade(self, answers, examples):
    return {}
  def summarise(self, values):
    return {}
  def baseline(self, train, examples):
    return {}

class Ungraded(Source):
  def __init__(self, field):
    super().__init__()

class NoField:
  pass

def of_shape(mask, advantages, logprobs):
  return advantages.sum()

def broken(mask, logprobs):
  return mask.nonesuch

def flat(rewards):
  return 1.0

def slow_text(text):
  return 1 / 0

def anything(*data):
  return data

def options(text, **options):
  return text

def unknown(mask, gold):
  return mask

def positional(text, scale=2.0):
  return text

def nothing(mask):
  return None

nothing_annotated = nothing
number = 3

def weighed(logprobs, mask, *, weight=0.5):
  return weight * logprobs

def started(text, *, start=0):
  return [[start for one in row] for row in text]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """The file, named as a config does: relative to the current directory."""
  monkeypatch.chdir(tmp_path)
  pathlib.Path("own").mkdir()
  pathlib.Path("own/mine.py").write_text(FILE)
  return lambda name, **spec: {"name": f"own/mine.py:{name}", **spec}


def with_all(mine):
  """A config with a function of the file in every slot."""
  config = config_lib.get_config()
  config.probes.lucky = mine("lucky")
  config.rewards = {
    "words": mine("wordy", scale=2.0, weight=0.5),
    "long": mine("long", weight=0.5),
  }
  config.advantage = mine("centred", factor=2.0)
  config.token_weights.cautious = mine("cautious")
  config.losses = {
    "own": mine("plain", weight=1.0, reduce="token_mean"),
  }
  config.optimizer = {"name": "sgd"}
  config.schedule = mine("rate", value=0.5)
  config.shares.every = 0
  return config


def test_functions_of_a_file_stand_in_every_slot(mine):
  """They are bound, and traced on shapes as a run does before it starts."""
  config = with_all(mine)
  parts = build_parts(config)
  found = parts.method
  assert [r.name for r in found.rewards] == ["long", "words"]
  assert [r.on_host for r in found.rewards] == [False, True]
  # `long` names a field of a probe of ours, which is computed for it.
  assert "behaviour" in [probe.name for probe in found.probes]
  assert found.advantage.options == {"factor": 2.0}
  assert found.token_weights[0].needs == ("luck", "mask")
  walk.check(parts)
  context = {"text": [["ab", "c"]], "answer": ["x"]}
  assert found.rewards[1].bound(context) == [[4.0, 2.0]]


def test_a_file_is_imported_once_and_by_any_path_to_it(mine, tmp_path):
  first = build.lookup(rewards, mine("wordy"), "x")
  path = f"{tmp_path}/own/mine.py"
  assert build.lookup(losses, {"name": f"{path}:wordy"}, "x") is first
  assert first.__globals__["imported"] == [1]


def test_sources_and_benchmarks_are_made(mine):
  source = data.sources.make(mine("Source", count=3), "config.data.train")
  assert len(source) == 3 and source[2].answer == "b"
  settings = config_lib.get_config().evaluation.to_dict()
  settings["benchmarks"] = {
    "own": mine("Benchmark", size=4),
    "ours": {
      "name": "questions",
      "data": mine("Source", count=3),
      "questions": 2,
      "scores": {"words": mine("wordy")},
    },
  }
  found = runner.build_benchmarks(settings)
  assert found["own"].size == 4
  assert [found["ours"][i].answer for i in (0, 1)] == ["b", "b"]


@pytest.mark.full
def test_another_process_reads_pickles_of_a_file_s_classes(mine, tmp_path):
  """As workers do that read questions: neither has imported the file."""
  source = data.sources.make(mine("Source", count=3), "x")
  (tmp_path / "pickle").write_bytes(pickle.dumps(source))
  program = (
    "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb'));"
    "print(len(s), s[1].name)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, tmp_path / "pickle"],
    env={"PYTHONPATH": str(EXAMPLE.parents[2]), "PATH": ""},
    cwd="/",
    capture_output=True,
    text=True,
  )
  assert (done.stdout, done.stderr) == ("3 1\n", "")


@pytest.mark.full
def test_workers_read_questions_of_a_file(mine):
  """Those of grain, which start without the file's module."""
  from mmrl import hub
  from mmrl.data import pipeline

  source = data.sources.make(mine("Source", count=4), "x")
  iterator = pipeline.batches(
    *(source, hub.load("tiny").processor),
    **{"batch_size": 2, "answer_length": 4, "seed": 0, "workers": 1},
  )
  try:
    examples = next(iterator).examples
  finally:
    iterator.close()
  assert [one.answer for one in examples] == ["b", "b"]


def test_the_claim_records_the_name(mine, tmp_path):
  claim.claim(tmp_path / "run", with_all(mine))
  found = json.loads((tmp_path / "run" / "config.json").read_text())
  assert found["advantage"]["name"] == "own/mine.py:centred"


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "own/mien.py:a",
      "a file of Python with functions, found no file at own",
    ),
    ("own/mien.py:a", "; the nearest is mine.py"),
    ("own/mine.py:worthy", "worthy in own/mine.py, found "),
    ("own/mine.py:worthy", "; the nearest is wordy"),
    ("own/mine.py:number", "to be a function or class, found int"),
    ("own/mine.py:anything", "and behind a `*` its options, found *data"),
    ("own/mine.py:options", "and behind a `*` its options, found **options"),
    ("own/mine.py", "valid names: of a file it is own/mine.py:FUNCTION"),
    ("own/bad.py:f", "config.x: own/bad.py:3: ZeroDivisionError: division by"),
    ("own/half.py:f", "config.x: own/half.py:2: SyntaxError: '(' was never cl"),
    ("own/user.py:f", "config.x: expected more"),
    ("own:f", "mmrl.rewards has no 'own:f'"),
  ],
)
def test_what_cannot_be_looked_up_is_one_line(mine, name, message):
  pathlib.Path("own/bad.py").write_text("def f():\n  1 / 0\nf(1 / 0)\n")
  pathlib.Path("own/half.py").write_text("\nx = (\n")
  pathlib.Path("own/user.py").write_text(
    "from mmrl.errors import UserError\nraise UserError('expected more')\n"
  )
  with pytest.raises(UserError) as error:
    build.lookup(rewards, {"name": name}, "config.x")
  assert message in str(error.value) and "\n" not in str(error.value)
  assert str(error.value).startswith("config.x: ")


@pytest.mark.parametrize(
  ("field", "spec", "message"),
  [
    ("advantage", {"name": "unknown"}, "needs gold, which this run doesn't"),
    (
      "advantage",
      {"name": "centred", "fctor": 1},
      "has no option fctor; val",
    ),
    ("advantage", {"name": "flat"}, "return an array [P, G] or [P, G, R]"),
    (
      "rewards.x",
      {"name": "positional", "weight": 1.0, "scale": 3.0},
      "has no option scale; valid options: none; scale stands before the `*`",
    ),
    ("token_weights.x", {"name": "broken"}, "x: own/mine.py:85: AttributeErr"),
    (
      "token_weights.x",
      {"name": "of_shape"},
      "return an array [P, G, R], w",
    ),
    ("token_weights.x", {"name": "nothing"}, "found NoneType"),
    (
      "losses.x",
      {"name": "of_shape", "weight": 1.0, "reduce": "token_mean"},
      "to return an array [P] or [P, G] or [P, G, R], with [P, G, R] =",
    ),
    ("probes.x", {"name": "nothing"}, "annotated with the NamedTuple that it"),
    # The config's `weight` is the term's, and would never reach the function.
    (
      "losses.x",
      {"name": "weighed", "weight": 1.0, "reduce": "token_mean"},
      "by other names than weight, reduce, placebo, which say how it counts,"
      " found weight; rename it",
    ),
    (
      "rewards.x",
      {"name": "started", "weight": 1.0},
      "by other names than weight, times, start, placebo, which say how it",
    ),
  ],
)
def test_what_cannot_run_is_one_line(mine, field, spec, message):
  config = with_all(mine)
  *tables, last = field.split(".")
  table = config[tables[0]] if tables else config
  with config.unlocked():
    table[last] = spec | mine(spec["name"])
  with pytest.raises(UserError) as error:
    walk.check(build_parts(config))
  assert message in str(error.value) and "\n" not in str(error.value)
  assert str(error.value).startswith(f"config.{field}: ")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "Bare",
      "to have __len__, __getitem__, pairs, found no __getitem__, p",
    ),
    ("Words", "to hold mmrl.data.Example, found str"),
  ],
)
def test_a_source_that_is_none_is_one_line(mine, name, message):
  with pytest.raises(UserError) as error:
    data.sources.make(mine(name), "config.data.train")
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("NoField", "NoField to take field, which a run gives it"),
    ("Ungraded", "to have __len__, .* found no grade, summarise, baseline"),
  ],
)
def test_a_benchmark_that_is_none_is_one_line(mine, name, message):
  settings = config_lib.get_config().evaluation.to_dict()
  settings["benchmarks"] = {"own": mine(name)}
  with pytest.raises(UserError, match=message):
    runner.build_benchmarks(settings)


def test_a_reward_that_raises_names_its_line_and_its_answer(mine):
  from mmrl.rollouts import answers

  bound = build.bind(
    rewards, mine("slow_text"), "config.rewards.x", provided=("text",)
  )
  example = data.sources.make(mine("Source"), "x")[0]
  sizes = np.ones((1, 1), int)
  context = answers.text_context([example], [["a"]], sizes, sizes > 0)
  with pytest.raises(UserError, match=r"division by zero at own/mine.py:\d+"):
    answers.score(bound, context)


def test_the_example_of_the_docs_runs(monkeypatch):
  """The docs name it, and it is what a config would name."""
  monkeypatch.chdir(EXAMPLE.parents[2])
  name = "docs/examples/mine.py"
  readme = pathlib.Path("docs/add-a-method.md").read_text("utf-8")
  (block,) = [
    block
    for block in readme.split("```python\n")[1:]
    if f'"{name}"' in block.split("```")[0]
  ]
  config = config_lib.get_config()
  exec(block.split("```")[0], {"config": config})
  config_lib.check_fields(config)
  config.shares.every = 0
  parts = build_parts(config)
  walk.check(parts)
  texts = {"text": [["Because it is.", "no"]], "answer": ["4"]}
  by_name = {one.name: one for one in parts.method.rewards}
  assert by_name["said_why"].bound(texts) == [[1.0, 0.0]]
  assert not by_name["sure"].on_host
  source = data.sources.make(config.data.train.to_dict(), "config.data.train")
  assert source[12].question == "1 + 3?" and source[12].answer == "4"
  scores = config.evaluation.benchmarks.test.scores.to_dict()
  assert "said_why" in scores
  runner.build_benchmarks(config.evaluation.to_dict())
