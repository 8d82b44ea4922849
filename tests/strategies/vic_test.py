"""VIC against its note's values, with models whose replies are written down."""

import pytest

from mmrl import strategies
from mmrl.strategies import shown, vic
from mmrl.strategies.vic import is_refusal, numbered, parse_chain
from strategies.scripts import PICTURE, Turns, answer, garbage, question

PLAN = "Look for cups.\nCount them.\nAnswer with a number."


@pytest.mark.parametrize(
  ("text", "wanted", "strict"),
  [
    (
      "Reasoning Steps:\n\nIdentify the shape.\n Estimate: width and"
      " height.\n\nAnswer with yes or no.",
      [
        "Identify the shape.",
        "Estimate: width and height.",
        "Answer with yes or no.",
      ],
      [
        "Identify the shape.",
        " Estimate width and height.",
        "Answer with yes or no.",
      ],
    ),
    (
      "Note: plan\nStep-by-step reasoning: first\nFormat: letter",
      ["Note: plan", "Step-by-step reasoning: first", "Format: letter"],
      ["plan", "Step-by-step reasoning first", "Format letter"],
    ),
    ("1. Find: A\n2. Say A", ["1. Find: A", "2. Say A"], None),
    ("Count the dots.", ["Count the dots."], None),
    ("Reasoning steps\nLook.", ["Look."], []),
    ("", [], None),
    ("  \n \n", [], None),
  ],
)
def test_chains_golden(text, wanted, strict):
  strict = wanted if strict is None else strict
  assert parse_chain(text) == (wanted or None)
  assert parse_chain(text, strict_upstream=True) == (strict or None)


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("I'm sorry, I cannot provide that.", True),
    ("I can't answer without the picture", True),
    ("I Cannot answer this.", False),
    ("Say what cannot be seen", False),
  ],
)
def test_refusals_golden(text, wanted):
  assert is_refusal(text) == wanted


def test_any_reply_can_be_read():
  for text in garbage():
    is_refusal(text)
    for strict in (False, True):
      found = parse_chain(text, strict_upstream=strict)
      assert found is None or all(line.strip() for line in found)


def test_plan_is_blind_and_answers_see():
  planner, eyes = Turns(PLAN), Turns("two cups, 1 and 2", "2")
  found = answer(vic, planner=planner, eyes=eyes)
  assert found.answer.text == "2"
  assert found.answer.notes["evidence"] == "two cups, 1 and 2"
  (plan,), (look, last) = planner.asked, eyes.asked
  assert not shown(plan.messages)
  assert [message["role"] for message in plan.messages] == ["system", "user"]
  assert shown(look.messages) == shown(last.messages) == [PICTURE]
  assert eyes.texts[0].endswith("1. Look for cups.\n2. Count them.\n")
  assert "Answer with a number." not in eyes.texts[0]
  assert "two cups, 1 and 2" in eyes.texts[1]
  assert eyes.texts[1].endswith("Answer as this says: Answer with a number.")


def test_steps_one_by_one_read_what_was_found():
  planner, eyes = Turns(PLAN), Turns("x", "y", "2")
  found = answer(vic, options={"mode": "multi"}, planner=planner, eyes=eyes)
  assert found.answer.notes["evidence"] == "step1:x\nstep2:y\n"
  assert len(eyes.asked) == 3  # k + 1 calls with the plan's
  assert "step1:x" in eyes.texts[1] and "step1:x" not in eyes.texts[0]
  assert eyes.texts[2].endswith("\n\nAnswer with a number.")


def test_the_control_plans_with_the_picture():
  planner, eyes = Turns(PLAN), Turns("x", "2")
  answer(vic, options={"mode": "visual"}, planner=planner, eyes=eyes)
  assert shown(planner.asked[0].messages) == [PICTURE]


@pytest.mark.parametrize(
  ("replies", "options", "calls"),
  [
    ([PLAN], {}, (1, 2)),
    (["", " \n", PLAN], {}, (3, 2)),
    (["", "", ""], {}, (3, 2)),
    (["I cannot answer that"], {}, (1, 2)),
    (["I cannot answer that"], {"mode": "multi"}, (1, 8)),
    (["Say yes or no."], {}, (1, 1)),
    (["Say yes or no."], {"strict_upstream": True}, (1, 2)),
    (["Say yes or no."], {"mode": "multi"}, (1, 1)),
    (["", PLAN], {"attempts": 1}, (1, 2)),
  ],
)
def test_calls(replies, options, calls):
  planner, eyes = Turns(*replies), Turns("x")
  found = answer(vic, options=options, planner=planner, eyes=eyes)
  assert (len(planner.asked), len(eyes.asked)) == calls
  assert found.answer.text == "x"


def test_without_any_plan_the_published_code_gives_up():
  planner, eyes = Turns(""), Turns("x")
  options = {"strict_upstream": True}
  found = answer(vic, options=options, planner=planner, eyes=eyes)
  assert found.failure.error == "found no plan in 3 replies"
  assert len(planner.asked) == 3 and not eyes.asked


def test_the_universal_chain_has_eight_steps():
  text = strategies.wording.fill("vic_universal")
  for strict in (False, True):
    assert len(parse_chain(text, strict_upstream=strict)) == 8
  assert numbered(["a", "b"]) == "1. a\n2. b\n" and numbered([]) == ""


def test_braces_in_a_question_stay():
  planner, eyes = Turns(PLAN), Turns("{question}", "2")
  answer(vic, question("what is {evidence}?"), planner=planner, eyes=eyes)
  assert "what is {evidence}?" in eyes.texts[1]
  assert "{question}" in eyes.texts[1]
