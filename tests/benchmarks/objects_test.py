"""Objects that descriptions name: shares by hand, words, what is refused."""

import json

import numpy as np
import pytest

from mmrl.benchmarks import objects as build_objects
from mmrl.benchmarks.contract import Answer, Benchmark
from mmrl.benchmarks.objects import counts, rates
from mmrl.errors import UserError

WHERE = "config.evaluation.benchmarks.mine"
MENTIONED = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0] * 4, [0, 1, 1, 0]], bool)
PRESENT = np.array(
  [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], bool
)


def test_golden():
  """Two of three responses err, in 3 of 7 mentions; 4 of 6 are found."""
  found = rates(counts(MENTIONED, PRESENT))
  assert list(found) == ["response", "mention", "recall"]
  np.testing.assert_allclose(found["response"], 2 / 3)
  np.testing.assert_allclose(found["mention"], 3 / 7)
  np.testing.assert_allclose(found["recall"], 4 / 6)


def test_nothing_named_is_nothing_wrong():
  found = rates(counts(np.zeros_like(MENTIONED), PRESENT))
  assert found == {"response": 0, "mention": 0, "recall": 0}
  assert rates(counts(MENTIONED, np.zeros_like(PRESENT)))["recall"] == 0


def test_shares_of_resampled_responses():
  """The second and the third response, and the first twice."""
  values = counts(MENTIONED, PRESENT)
  draws = {k: np.stack([x[[1, 2]], x[[0, 0]]]) for k, x in values.items()}
  found = rates(draws)
  np.testing.assert_allclose(found["response"], [1, 0])
  np.testing.assert_allclose(found["mention"], [2 / 3, 0])


@pytest.fixture
def path(tmp_path):
  rows = [
    {"question": "what is there?", "answer": "a red cup and a dog"},
    {"question": "what is there?", "answer": ["cat", "buses"]},
  ]
  file = tmp_path / "test.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  return str(file)


def build(path, objects=("cup", "dog", "cat", "bus"), **changes):
  data = {"name": "Files", "path": path}
  return build_objects(data=data, objects=objects, field=WHERE, **changes)


def graded(benchmark, *texts):
  answers = [Answer(text, 1, True) for text in texts]
  return benchmark.grade(answers, [*benchmark])


def test_words_are_found_whole_and_in_plural(path):
  benchmark = build(path)
  assert isinstance(benchmark, Benchmark) and len(benchmark) == 2
  found = graded(benchmark, "Cups, a cupboard and a hotdog; a CAT.", "A bus.")
  np.testing.assert_array_equal(found["named"], [2, 1])
  np.testing.assert_array_equal(found["false"], [1, 0])
  np.testing.assert_array_equal(found["right"], [1, 1])
  np.testing.assert_array_equal(found["there"], [2, 2])
  assert benchmark.baseline(None, [*benchmark]) == {}


def test_objects_have_synonyms(path):
  words = {"cup": ["cup", "mug"], "dog": ["dog", "hot dog"]}
  found = graded(build(path, words), "a mug, the cup", "none")
  np.testing.assert_array_equal(found["right"], [1, 0])
  np.testing.assert_array_equal(found["there"], [2, 0])


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"objects": []},
      ".objects: expected names of objects, or words for each,",
    ),
    ({"objects": {"cup": []}}, ".objects: expected names of objects, or words"),
    ({"questions": -1}, ".questions: expected a number of questions, or 0 for"),
  ],
)
def test_options_are_refused(path, changes, message):
  with pytest.raises(UserError, match=f"{WHERE}{message}"):
    build(path, **changes)


def test_a_question_without_objects_is_refused(tmp_path):
  file = tmp_path / "test.jsonl"
  file.write_text('{"question": "what?", "answers": ["a cup"]}\n')
  with pytest.raises(UserError, match="found none in question 1"):
    build(str(file))
