"""One model asked once or more often: the thought, the vote, the judge."""

import pytest

from mmrl import build, strategies
from mmrl.errors import UserError
from mmrl.strategies import best_of_n, chain_of_thought, self_consistency
from mmrl.strategies.plain import _label, parse_mark
from strategies.scripts import Turns, answer, garbage, question


def test_a_thought_is_asked_for_behind_the_question():
  policy = Turns("so <answer>7</answer>")
  found = answer(chain_of_thought, policy=policy)
  assert found.answer.text == "so <answer>7</answer>"
  assert policy.texts[0].startswith("how many?\n\n\nThink")


def test_the_majority_is_taken_and_the_first_of_equals():
  replies = ["a <answer>Red</answer>", "<answer>blue </answer>", "x", "x", "y"]
  policy = Turns(*replies, "b <answer>red</answer>")
  found = answer(self_consistency, options={"n": 6}, policy=policy).answer
  assert found.text == "a <answer>Red</answer>"
  assert found.notes["votes"] == {"red": 2, "blue": 1, "x": 2, "y": 1}
  assert {ask.options["temperature"] for ask in policy.asked} == {0.7}


def test_what_fails_has_no_vote():
  def fails(ask):
    raise OSError("busy")

  policy = Turns(fails, fails, "7")
  found = answer(self_consistency, options={"n": 3}, policy=policy).answer
  assert found.text == "7" and found.notes["votes"] == {"7": 1}
  found = answer(self_consistency, options={"n": 2}, policy=Turns(fails))
  assert "busy" in found.failure.error


def test_the_judges_best_is_taken():
  policy, judge = Turns("a", "b", "c"), Turns("3", "so 9.5", "none, 11 of 12")
  options = {"n": 3, "thought": False}
  found = answer(best_of_n, options=options, policy=policy, judge=judge).answer
  assert found.text == "b" and found.notes["marks"] == [3.0, 9.5, None]
  found = answer(
    best_of_n, options=options, policy=Turns("a", "b"), judge=Turns("5")
  )
  assert found.answer.text == "a"


@pytest.mark.parametrize(
  ("text", "mark"),
  [
    ("8", 8),
    ("8/10", 10),
    ("I say 7.5.", 7.5),
    ("v2 is 3", 3),
    ("99", None),
    ("", None),
  ],
)
def test_marks(text, mark):
  assert parse_mark(text) == mark


def test_any_reply_can_be_read():
  for text in garbage():
    mark = parse_mark(text)
    assert mark is None or 0 <= mark <= 10
    assert isinstance(_label(text), str)


@pytest.mark.parametrize("options", [{"n": 0}, {"temperature": 0.0}])
@pytest.mark.parametrize("name", ["self_consistency", "best_of_n"])
def test_numbers_are_checked(name, options):
  with pytest.raises(UserError, match="expected n of at least 1"):
    build.bind(
      strategies, {"name": name, **options}, "strategy", provided=("example",)
    )


def test_a_strategy_that_never_ends_fails_by_itself():
  def restless(example):
    while True:
      yield strategies.Ask("policy", example.messages)

  found = answer(restless, question(), policy=Turns("x"))
  assert "at most 1000 requests" in found.failure.error

  def idle(example):
    while True:
      yield []

  found = answer(idle, question())
  assert "at most 1000 requests" in found.failure.error
