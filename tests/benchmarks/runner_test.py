"""Evaluation of a model on benchmarks, whatever their items are."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest

from mmrl import config as config_lib
from mmrl import data, hub
from mmrl.benchmarks import greedy, runner
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.probes.scores import Scorer
from mmrl.rollouts import decode_loop


@pytest.fixture(scope="module")
def evaluate():
  """Evaluates the model that ships on a benchmark."""
  model = hub.load("tiny")
  config = dataclasses.replace(model.config, remat=False)
  scorer = Scorer(config, 1.0, (-1,), "self")
  layout = sharding.on_one(jax.devices()[0])
  answer = greedy.make_answer(scorer, 10, layout)
  train = data.EasyVQA(split="train")

  def run(benchmark, shown=5):
    return runner.evaluate(
      benchmark,
      answer,
      model.params,
      model.processor,
      layout,
      train=train,
      batch=16,
      length=10,
      shown=shown,
      lengths=(40,),
      patches=(64,),
    )

  return run


@pytest.fixture(scope="module")
def benchmark():
  settings = config_lib.get_config().evaluation.to_dict()
  settings["benchmarks"]["test"]["questions"] = 30
  return runner.build_benchmarks(settings)["test"]


@pytest.fixture(scope="module")
def result(evaluate, benchmark):
  return evaluate(benchmark)


def test_kinds_add_up(result, benchmark):
  kinds = [example.kind for example in benchmark]
  assert result.items == len(kinds) == 30
  total = sum(
    result.numbers[f"accuracy/{kind}"].value * kinds.count(kind)
    for kind in set(kinds)
  )
  assert total / 30 == pytest.approx(result.numbers["accuracy"].value)


def test_first_number_is_the_first_score(result):
  assert [*result.numbers][:2] == ["accuracy", "format"]


def test_baseline_is_of_what_compares_with_the_right_answer(result):
  assert {name.partition("/")[0] for name in result.baseline} == {"accuracy"}


def test_attention_on_regions(result):
  for name in ("region", "region_uniform", "border", "entropy"):
    number = result.numbers[f"attention/{name}"]
    assert 0 < number.low < number.value < number.high < 1


def test_shown_answers_are_spread_and_have_heat(result):
  assert [shown.index for shown in result.shown] == [0, 6, 12, 18, 24]
  for shown in result.shown:
    assert set(shown.scores) == {"accuracy", "format"}
    assert 0 < shown.region < 1
    heat = np.array(shown.heat)
    assert heat.shape == (1, 4, 4) and (heat >= 0).all() and heat.sum() <= 1


@pytest.mark.full
def test_lanes_answer_as_batches(evaluate, benchmark, result, monkeypatch):
  """In order, with attention of the same tokens."""
  monkeypatch.setattr(decode_loop, "_ONE_WIDTH", 9)
  batches = mock.Mock(side_effect=AssertionError)
  monkeypatch.setattr(greedy, "_in_batches", batches)
  found = evaluate(benchmark)
  for name, number in result.numbers.items():
    # Float32 sums over other numbers of padded keys.
    assert found.numbers[name].value == pytest.approx(number.value, abs=1e-5)
  for one, other in zip(found.shown, result.shown, strict=True):
    assert (one.index, one.text) == (other.index, other.text)
    np.testing.assert_allclose(one.heat, other.heat, atol=1e-5)


class Pairs:
  """An item is two questions. Its number is of those that are answered."""

  def __init__(self, source):
    self.source = source

  def __len__(self):
    return 6

  def __getitem__(self, index):
    example = self.source[index]
    (message,) = example.messages
    text = [part for part in message["content"] if part["type"] == "text"]
    return dataclasses.replace(
      example, messages=[{"role": "user", "content": text}]
    )

  def grade(self, answers, examples):
    assert [x.name for x in examples] == [self[i].name for i in range(6)]
    assert all(answer.length <= 10 for answer in answers)
    assert all(answer.ended for answer in answers if answer.length < 10)
    return {"both": np.array([1.0, 0.0, 1.0]), "asked": np.array([2.0, 4, 2])}

  def summarise(self, values):
    both, asked = (values[name].sum(-1) for name in ("both", "asked"))
    return {"consistency": both / asked, "nothing": both * np.nan}

  def baseline(self, train, examples):
    return {}


def test_items_of_two_questions_and_a_ratio(evaluate):
  """Without pictures there is no attention on a region, nor heat."""
  found = evaluate(Pairs(data.EasyVQA(split="test")), shown=2)
  assert found.items == 3 and found.baseline == {}
  assert set(found.numbers) == {"consistency"}
  number = found.numbers["consistency"]
  # Items alone have 1/2, 0 and 1/2.
  assert (number.low, number.value, number.high) == (0, 0.25, 0.5)
  for shown in found.shown:
    assert shown.scores == {} and shown.heat == [] and shown.region is None


@pytest.mark.parametrize(
  ("name", "value"), [("every", -1), ("batch", 0), ("shown", -3)]
)
def test_numbers_out_of_range(name, value):
  settings = config_lib.get_config().evaluation.to_dict() | {name: value}
  with pytest.raises(
    UserError, match=rf"^config.evaluation.{name}: .*, found {value}$"
  ):
    runner.check_settings(settings)


def test_an_unknown_benchmark():
  settings = {"benchmarks": {"test": {"name": "accuracy"}}}
  with pytest.raises(
    UserError,
    match=r"^config.evaluation.benchmarks.test: .*no 'accuracy'.* questions, ",
  ):
    runner.build_benchmarks(settings)
