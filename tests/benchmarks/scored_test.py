"""Questions of a source, scored by the rewards that a table names."""

import json

import numpy as np
import pytest

from mmrl import data, rewards
from mmrl.benchmarks import blind, questions, runner
from mmrl.benchmarks.contract import Answer, Benchmark
from mmrl.errors import UserError
from mmrl.rewards.answer import extract

WHERE = "config.evaluation.benchmarks.mine"
SCORES = {
  "right": {"name": "exact_answer"},
  "formed": {"name": "answer_format", "form": "answer"},
}


@pytest.fixture
def path(tmp_path):
  rows = [
    {"question": "one?", "answer": "1", "kind": "count"},
    {"question": "two?", "answer": "2", "kind": "count"},
    {"question": "red?", "answer": "yes", "kind": "yes/no"},
  ]
  file = tmp_path / "test.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  return str(file)


def build(path, **changes):
  options = {
    "data": {"name": "Files", "path": path},
    "scores": SCORES,
    "field": WHERE,
  }
  return questions(**(options | changes))


def answers(*texts):
  return [Answer(text, len(text), True) for text in texts]


def test_it_is_a_benchmark(path):
  assert isinstance(build(path), Benchmark)


def test_grades_of_each_score_and_kind(path):
  benchmark = build(path)
  given = answers("<answer>1</answer>", "2", "<answer>no</answer>")
  found = benchmark.grade(given, [*benchmark])
  nan = np.nan
  wanted = {
    "right": [1, 0, 0],
    "formed": [1, 0, 1],
    "right/count": [1, 0, nan],
    "right/yes/no": [nan, nan, 0],
    "formed/count": [1, 0, nan],
    "formed/yes/no": [nan, nan, 1],
  }
  assert [*found] == [*wanted]
  for name, values in wanted.items():
    np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_one_kind_has_no_parts(path):
  benchmark = build(path, questions=1)
  assert [*benchmark.grade(answers("1"), [*benchmark])] == ["right", "formed"]


@pytest.mark.parametrize(
  "data, chance",
  [
    ({"name": "Scenes", "kinds": ("attribute", "exists")}, [1 / 8, 1 / 2]),
    ({"name": "Kitchens", "split": "L1", "kinds": ("planning",)}, [1 / 4]),
    ({"name": "Figures"}, [1 / 93]),
  ],
  ids=["Scenes", "Kitchens", "Figures"],
)
def test_drawn_questions_have_their_chance_beside(data, chance):
  made = questions(
    data={"split": "test", "count": 2} | data,
    scores={"accuracy": {"name": "exact_answer"}},
    field="test",
  )
  examples = [made[0], made[1]]
  found = made.grade([Answer("", 1, True)] * 2, examples)
  np.testing.assert_allclose(found["chance"], chance * (2 // len(chance)))
  kinds = {example.kind for example in examples}
  parts = {f"chance/{kind}" for kind in kinds if len(kinds) > 1}
  assert {name for name in found if "chance/" in name} == parts


def test_questions_are_spread(path):
  assert [x.answer for x in build(path, questions=2)] == ["1", "2"]
  assert len(build(path, questions=0)) == len(build(path, questions=9)) == 3


def test_a_score_reads_all_that_a_text_reward_may(path, monkeypatch):
  def long(text, example, length, ended):
    assert [x.question for x in example] == ["one?", "two?", "red?"]
    assert length.shape == ended.shape == (3, 1) and text == [
      ["a"],
      ["b"],
      [""],
    ]
    return np.where(length > 0, ended, np.nan)

  monkeypatch.setattr(rewards, "long", long, raising=False)
  monkeypatch.setattr(rewards, "__all__", [*rewards.__all__, "long"])
  benchmark = build(path, scores={"long": {"name": "long"}})
  found = benchmark.grade(answers("a", "b", ""), [*benchmark])
  np.testing.assert_array_equal(found["long"], [1, 1, np.nan])
  # What depends on the length isn't asked of a guess.
  assert benchmark.baseline(benchmark._source, [*benchmark]) == {}


def test_baseline_guesses_from_the_questions(path):
  """The source itself as training data knows every answer."""
  benchmark = build(path)
  found = benchmark.baseline(benchmark._source, [*benchmark])
  np.testing.assert_array_equal(found["right"], [1, 1, 1])
  assert not any(name.startswith("formed") for name in found)


def test_without_training_it_is_the_best_constant_answer_to_each_kind(path):
  """Of two counts one is right; the only yes or no is."""
  benchmark = build(path)
  found = benchmark.baseline(None, [*benchmark])
  np.testing.assert_array_equal(found["right"], [1, 0, 1])


def test_no_baseline_from_a_source_without_pairs(path):
  benchmark = build(path)
  assert benchmark.baseline(object(), [*benchmark]) == {}


@pytest.mark.parametrize("block", ["answer", "boxed"])
def test_the_baseline_is_read_in_any_block(path, block, monkeypatch):
  def mine(text, answer):
    pairs = zip(text, answer, strict=True)
    return [[float(extract(t[0], block) == right)] for t, right in pairs]

  monkeypatch.setattr(rewards, "mine", mine, raising=False)
  monkeypatch.setattr(rewards, "__all__", [*rewards.__all__, "mine"])
  benchmark = build(path, scores={"mine": {"name": "mine"}})
  found = benchmark.baseline(benchmark._source, [*benchmark])
  np.testing.assert_array_equal(found["mine"], [1, 1, 1])


def with_answer(tmp_path, *found):
  """A file of questions, some of which have no right answer."""
  rows = [
    {"question": "q", "answers": ["t"]} | ({"answer": one} if one else {})
    for one in found
  ]
  file = tmp_path / "some.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  return str(file)


def test_no_baseline_from_data_without_right_answers(path, tmp_path):
  learn = data.Files(path=with_answer(tmp_path, None, None))
  assert build(path).baseline(learn, [*build(path)]) == {}


def test_questions_without_a_right_answer_are_refused_at_once(tmp_path):
  path = with_answer(tmp_path, "a", None)
  with pytest.raises(UserError, match=rf"{WHERE}.scores.right: .*some.jsonl:2"):
    build(path)
  form = {"formed": {"name": "answer_format"}}
  assert len(build(path, scores=form)) == 2


def test_a_score_of_another_shape_is_refused(path, monkeypatch):
  def one(text):
    return np.ones(len(text))

  monkeypatch.setattr(rewards, "one", one, raising=False)
  monkeypatch.setattr(rewards, "__all__", [*rewards.__all__, "one"])
  benchmark = build(path, scores={"mine": {"name": "one"}})
  with pytest.raises(UserError, match=rf"{WHERE}.scores.mine: .*shape \(3,\)"):
    benchmark.grade(answers("", "", ""), [*benchmark])


class Empty:
  def __len__(self):
    return 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"questions": -1}, "questions: expected .* 0 for all, found -1"),
    ({"scores": {}}, "scores: expected at least one reward, found none; add"),
    (
      {"scores": {"a": {"name": "exact"}}},
      "scores.a: mmrl.rewards has no 'exact'; valid names: accuracy",
    ),
    (
      {"scores": {"a": {"name": "answer_format", "from": "think"}}},
      "scores.a: answer_format has no option from; valid options: form",
    ),
    (
      {"scores": {"a": {"name": "soft_overlong", "longest": 9, "buffer": 1}}},
      "scores.a: expected a reward that reads text, .*, found soft_overlong",
    ),
    ({"data": {"name": "EasyVAQ"}}, "data: mmrl.data.sources has no 'EasyVAQ'"),
    ({"data": {"name": "Empty"}}, "data: expected at least one question"),
  ],
)
def test_a_mistake_is_one_line(path, changes, message, monkeypatch):
  from mmrl.data import sources

  monkeypatch.setattr(sources, "Empty", Empty, raising=False)
  monkeypatch.setattr(sources, "__all__", [*sources.__all__, "Empty"])
  with pytest.raises(UserError, match=rf"^{WHERE}\.{message}") as error:
    build(path, **changes)
  assert "\n" not in str(error.value)


def test_no_answers_have_no_values(path):
  found = build(path).grade([], [])
  assert {name: len(x) for name, x in found.items()} == {
    "right": 0,
    "formed": 0,
  }


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (np.inf, r"found inf for answer 0 to question \S+:2, 'b'"),
    (None, r"found None for answer 0 to question \S+:2, 'b'"),
  ],
)
def test_a_score_that_is_no_number_is_refused(
  path, monkeypatch, value, message
):
  def one(text):
    return [[0.0], [value], [0.0]]

  monkeypatch.setattr(rewards, "one", one, raising=False)
  monkeypatch.setattr(rewards, "__all__", [*rewards.__all__, "one"])
  benchmark = build(path, scores={"mine": {"name": "one"}})
  with pytest.raises(UserError, match=rf"{WHERE}.scores.mine: .*{message}"):
    benchmark.grade(answers("a", "b", "c"), [*benchmark])


def test_a_score_may_ask_a_model(tmp_path):
  """It is given to it, asked once, and not about guesses."""
  rows = [
    {"question": "one?", "answer": "1", "facts": ["A star."]},
    {"question": "two?", "answer": "2", "facts": ["A ring.", "A dot."]},
  ]
  path = tmp_path / "facts.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  asked = []

  def ask(conversations, **options):
    asked.extend(conversations)
    return ["<info1>1</info1>", None][: len(conversations)]

  scores = SCORES | {"facts": {"name": "judged_facts"}}
  benchmark = build(str(path), scores=scores)
  assert benchmark.asks == {"ask_judge": None}
  assert runner.give_models({"x": benchmark}, {"ask_judge": ask}) == [
    "ask_judge"
  ]
  examples = [*benchmark]
  found = benchmark.grade(answers("a star", "a ring"), examples)
  assert found["facts"].round(5).tolist() == [1, 0] and len(asked) == 2
  known = data.Files(str(path))
  assert "facts" not in benchmark.baseline(known, examples)
  assert len(asked) == 2
  assert blind.WithoutPictures(benchmark).asks is benchmark.asks


def test_a_score_counts_where_it_applies(tmp_path):
  """A question without facts isn't one of which no fact was stated."""
  rows = [
    {"question": "one?", "answer": "1", "facts": ["A star."]},
    {"question": "two?", "answer": "2"},
    {"question": "three?", "answer": "3", "facts": ["A dot."]},
  ]
  path = tmp_path / "facts.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  facts = {"name": "stated_facts", "without": "zero"}
  benchmark = build(str(path), scores=SCORES | {"facts": facts})
  found = benchmark.grade(answers("a star", "a dot", "a ring"), [*benchmark])
  np.testing.assert_array_equal(found["facts"].round(4), [1, np.nan, 0])
  assert benchmark.summarise(found)["facts"].round(4) == 0.5
