"""Accuracy, baseline and attention of an evaluation."""

import dataclasses

import jax
import numpy as np
import pytest

from mmrl import data, hub
from mmrl.benchmarks import accuracy
from mmrl.machines import sharding
from mmrl.probes.policies import Scorer


class Pairs:
  """A source of questions without pictures."""

  def __init__(self, *pairs):
    self._pairs = pairs

  def pairs(self):
    return iter(self._pairs)


def test_blind_baseline_by_hand():
  """a: mostly yes; b: mostly no; unseen c: the most frequent of all, yes."""
  train = Pairs(
    *[("a", "yes")] * 3, ("a", "no"), *[("b", "no")] * 2, ("b", "yes")
  )
  test = Pairs(("a", "yes"), ("a", "no"), ("b", "no"), ("c", "yes"))
  assert accuracy.blind_baseline(train, test) == 0.75


def test_blind_baseline_of_easy_vqa():
  train, test = (data.EasyVQA(split=split) for split in ("train", "test"))
  share = accuracy.blind_baseline(train, test)
  assert share == pytest.approx(0.670, abs=5e-4)


def test_spread():
  assert accuracy.spread(10, 4) == [0, 2, 5, 7]
  assert accuracy.spread(3, 9) == [0, 1, 2]


@pytest.fixture(scope="module")
def result():
  model = hub.load("tiny")
  config = dataclasses.replace(model.config, remat=False)
  scorer = Scorer(config, 1.0, (-1,), "self")
  source = data.EasyVQA(split="test")
  layout = sharding.on_one(jax.devices()[0])
  return source, accuracy.evaluate(
    accuracy.make_answer(scorer, 10, layout),
    model.params,
    model.processor,
    source,
    layout,
    questions=30,
    batch=16,
    length=10,
    shown=5,
    form="think",
    lengths=(40,),
    patches=(64,),
  )


def test_evaluation_adds_up(result):
  source, found = result
  assert found.questions == 30
  indices = accuracy.spread(len(source), 30)
  kinds = [source[i].kind for i in indices]
  mean = sum(
    found.accuracy_by_kind[kind] * kinds.count(kind) for kind in set(kinds)
  )
  assert mean / 30 == pytest.approx(found.accuracy)
  assert 0 < found.region < 1
  assert 0 < found.region_uniform < 1
  assert len(found.shown) == 5
  for shown in found.shown:
    assert shown.index in indices
    heat = np.array(shown.heat)
    assert heat.shape == (4, 4) and (heat >= 0).all() and heat.sum() <= 1
