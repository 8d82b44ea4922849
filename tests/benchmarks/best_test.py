"""Which step of a run is best."""

import math

import pytest

from mmrl import config as config_lib
from mmrl.benchmarks import best, runner
from mmrl.benchmarks.best import Best
from mmrl.errors import UserError


@pytest.fixture
def config():
  found = config_lib.get_config()
  found.evaluation.every = 2
  found.checkpoint.best = "test/accuracy"
  return found


def check(config):
  best.check(config, runner.build_benchmarks(config.evaluation.to_dict()))


@pytest.mark.parametrize(
  ("mode", "values", "step"),
  [
    ("max", (0.5, 0.75, 0.25), 4),
    ("min", (0.5, 0.75, 0.25), 6),
    ("max", (0.5, 0.5, 0.5), 2),
    ("min", (0.5, 0.25, 0.25), 4),
    ("max", (math.nan, 0.5, math.nan), 4),
    ("min", (math.nan, 0.5, math.nan), 4),
    ("max", (None, None, -1.0), 6),
    ("max", (math.nan, None, math.nan), None),
  ],
)
def test_the_best_step(config, mode, values, step):
  """The earliest of equal ones; none without a number."""
  config.checkpoint.best_mode = mode
  found = None
  for number, value in enumerate(values, 1):
    numbers = {} if value is None else {"test/accuracy": value, "other": 9.0}
    found = best.after(config.checkpoint, found, 2 * number, numbers)
  assert (found and found.step) == step
  if step:
    assert found == Best(step, values[step // 2 - 1])


def test_evaluations_that_are_due(config):
  config.train.steps = 5
  assert [step for step in range(1, 6) if best.due(config, step)] == [2, 4, 5]
  config.checkpoint.best = ""
  assert [step for step in range(1, 6) if best.due(config, step)] == [2, 4]
  config.evaluation.every = 0
  assert not any(best.due(config, step) for step in range(1, 6))


@pytest.mark.parametrize(
  "name", ["test/format", "test/accuracy/colour", "test/attention/region", ""]
)
def test_numbers_of_a_benchmark_are_accepted(config, name):
  config.checkpoint.best = name
  check(config)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"best": "test/acuracy"}, "found 'test/acuracy'; the nearest is test/acc"),
    ({"best": "accuracy"}, r"expected a number .*\(test/accuracy, test/format"),
    ({"best": "test"}, "found 'test'"),
    ({"best": "tset/format"}, "the nearest is test/format"),
    ({"best": "reward/total"}, "found 'reward/total'"),
    ({"best_mode": "least"}, "best_mode: expected 'max', or 'min' .*'least'"),
    ({"best": "", "best_mode": "min"}, "'min' where config.checkpoint.best na"),
  ],
)
def test_a_mistake_is_one_line(config, fields, message):
  config.checkpoint.update(fields)
  with pytest.raises(UserError, match=message) as error:
    check(config)
  assert str(error.value).startswith("config.checkpoint.best")
  assert "\n" not in str(error.value)


def test_without_evaluations_there_is_no_best_step(config):
  config.evaluation.every = 0
  with pytest.raises(UserError, match="every = 0; set it, such as to 20"):
    check(config)


class Own:
  """A benchmark whose grades need an answer."""

  def __len__(self):
    return 1

  def __getitem__(self, index):
    raise NotImplementedError

  def baseline(self, train, examples):
    return {}

  def grade(self, answers, examples):
    return {"share": answers[0]}

  def summarise(self, values):
    return values


def test_numbers_that_are_known_before_the_first_step(config):
  config.checkpoint.best = "own/share/part"
  best.check(config, {"own": Own()})
  best.check_results(config, {"own/share/part": 0.5})
  with pytest.raises(UserError, match="the nearest is own/share/parts"):
    best.check_results(config, {"own/share/parts": 0.5})
  with pytest.raises(UserError, match="found 'one/share'"):
    config.checkpoint.best = "one/share"
    best.check(config, {"own": Own()})
