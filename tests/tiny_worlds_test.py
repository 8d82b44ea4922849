"""Tiny models of the worlds: their stages run, their score reads labels."""

import numpy as np
import pytest
import runs

from experiments import stages, tiny_worlds
from mmrl import hub

STAGES = [
  (w, name) for w, found in tiny_worlds.STAGES.items() for name in found
]


def test_labels_are_all_of_a_frame_or_none():
  right = '{"labels": ["extra limb", "motion blur"], "score": 2.1}'
  texts = [
    '<answer>{"labels": ["motion blur", "extra limb"], "score": 3.0}</answer>',
    '{"labels": []}<answer>{"labels": ["extra limb"], "score": 3.0}</answer>',
    '{"labels": ["extra limb", "motion blur"], "score": 2.1}{"labels": []}',
    "",
    '{"labels": [[3]]}',
    '{"labels": ["extra limb"',
  ]
  assert tiny_worlds.labels([texts, [right]], [right, right]) == [
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [1.0],
  ]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """The first model of each world."""
  folder = tmp_path_factory.mktemp("worlds")
  for world in tiny_worlds.STAGES:
    texts = [*tiny_worlds._texts(world)]
    tiny_worlds.write_model(folder / world, texts, 0)
  return folder


@pytest.mark.full
def test_a_world_begins_with_the_shipped_model_and_its_own_words(begun):
  shipped, model = hub.load("tiny"), hub.load(begun / "scenes")
  old = shipped.processor.tokenizer.get_vocab()
  new = model.processor.tokenizer.get_vocab()
  tables = [m.params["text"]["embed"]["embedding"] for m in (shipped, model)]
  both = {*old} & {*new}
  assert {"<answer>", "<|im_end|>", "a"} <= both < {*new}
  for token in both:
    np.testing.assert_array_equal(tables[1][new[token]], tables[0][old[token]])
  encode = model.processor.tokenizer.tokenize
  assert len(encode("a purple triangle and an orange arrow")) == 7
  np.testing.assert_array_equal(
    model.params["text"]["norm"]["scale"],
    shipped.params["text"]["norm"]["scale"],
  )


@pytest.mark.full
@pytest.mark.parametrize("world, name", STAGES)
def test_a_stage_learns_and_is_tested(
  world, name, begun, tmp_path, monkeypatch
):
  """One step on a few items, on one device; the sizes are the stage's."""
  runs.use_devices(monkeypatch, 1)
  config = tiny_worlds.configs_of(world)[name]
  config.models.policy.path = str(begun / world)
  config.data.train.count = 8
  config.rollout.prompts = 2
  config.train.steps = 1
  config.evaluation.batch = 4
  for benchmark in config.evaluation.benchmarks.values():
    benchmark.data.count = 4
  stages.run({name: config}, tmp_path)
  assert (tmp_path / name / "model" / "config.json").exists()
