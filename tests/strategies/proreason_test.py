"""ProReason against its note's values: parsers, the loop, what it writes."""

import pytest

from mmrl.strategies import Answer, proreason, shown
from mmrl.strategies.proreason import (
  REASONING,
  VISION,
  after,
  dispatch_stats,
  is_solved,
  parse_dispatch,
  to_sft,
)
from strategies.scripts import Turns, answer, garbage, question


def dispatched(expert, asked):
  return (
    f"{{\n'Thought':'t',\n'EXPERT name':'{expert}',\n'Question':'{asked}'\n}}"
  )


HAT = "What is the man's hat?"


@pytest.mark.parametrize(
  ("text", "wanted", "strict"),
  [
    (
      "{\n'Thought':'need colour',\n'EXPERT name':'Vision Expert',\n"
      "'Question':'What colour is the car?'\n}",
      *[(VISION, "What colour is the car?")] * 2,
    ),
    (
      "Sure:\n{\n'Thought': 'add',\n'EXPERT name': 'Reasoning Expert',\n"
      "'Question': 'What is 2+3?'\n}",
      *[(REASONING, "What is 2+3?")] * 2,
    ),
    (dispatched(VISION, HAT), *[(VISION, HAT)] * 2),
    (
      '{"Thought": "x", "EXPERT name": "Vision Expert", "Question": "How'
      ' many?"}',
      (VISION, "How many?"),
      None,
    ),
    (
      "{\n  'Thought':'x',\n  'EXPERT name':'Vision Expert',\n  'Question':'How"
      " many?'\n}",
      (VISION, "How many?"),
      None,
    ),
    (dispatched("Math Expert", "x"), None, None),
    ("{\n'EXPERT name':'Vision Expert'\n}", None, None),
    (dispatched(VISION, ""), None, (VISION, "")),
    ("I would ask the Vision Expert how many cups there are.", None, None),
    ("", None, None),
  ],
)
def test_dispatch_golden(text, wanted, strict):
  assert parse_dispatch(text) == wanted
  assert parse_dispatch(text, strict_upstream=True) == strict


@pytest.mark.parametrize(
  ("marker", "text", "wanted", "strict"),
  [
    ("Final Answer:", "Reasoning: 2+3.\nFinal Answer: 5\n", "5", "5\n"),
    (
      "Final Answer:",
      "The result is 5.",
      "The result is 5.",
      "s 5.",
    ),
    (
      "Final Answer:",
      "Final Answer: 4 ... Final Answer: 5",
      *["4 ... Final Answer: 5"] * 2,
    ),
    ("Final Answer:", "", "", ""),
    ("Answer:", "Thought: a\nAnswer: yes", "yes", "yes"),
    ("Answer:", "yes it is", "yes it is", "is"),
  ],
)
def test_markers_golden(marker, text, wanted, strict):
  assert after(text, marker) == wanted
  assert after(text, marker, strict_upstream=True) == strict


def test_verdicts_golden():
  assert is_solved("Thought: ok\nAnswer: CAN_SOLVE")
  others = "Answer:CAN_SOLVE", "CAN_SOLVE", "Answer: ['CAN_SOLVE']"
  assert not any(map(is_solved, (*others, "Answer: UNSOLVABLE", "")))


def test_any_reply_can_be_read():
  for text in garbage():
    for strict in (False, True):
      found = parse_dispatch(f"{{{text}}}", strict_upstream=strict)
      assert found is None or found[0] in (VISION, REASONING)
      after(text, "Answer:", strict_upstream=strict)
    is_solved(text)


def looks(ask):
  return "3 cups" if "cups?" in str(ask.messages) else "4 plates"


def judges(ask):
  known = str(ask.messages).partition("What is known")[2]
  solved = "7" in known
  return "Thought: enough\nAnswer: CAN_SOLVE" if solved else "UNSOLVABLE"


def models():
  return {
    "dispatcher": Turns(
      dispatched(VISION, "cups?"),
      "no idea",
      dispatched(VISION, "plates?"),
      dispatched(REASONING, "sum?"),
    ),
    "vision": Turns(looks),
    "reasoner": Turns("Reasoning: 3+4\nFinal Answer: 7"),
    "referee": Turns(judges),
    "summariser": Turns("Thought: t\nAnswer: 7"),
  }


def test_loop_golden():
  roles = models()
  found = answer(proreason, options={"open_ended": False}, **roles)
  notes = found.answer.notes
  assert found.answer.text == "7"
  assert notes["attempts"] == 4 and not notes["fallback"]
  experts = [turn["expert"] for turn in notes["turns"]]
  assert experts == [VISION, VISION, REASONING]
  assert notes["memory"] == (
    "3 cups\n4 plates\n7\nThought: enough\nAnswer: CAN_SOLVE"
  )
  calls = {name: len(role.asked) for name, role in roles.items()}
  assert calls == {
    "dispatcher": 4,
    "vision": 2,
    "reasoner": 1,
    "referee": 3,
    "summariser": 1,
  }
  first, _, third, _ = roles["dispatcher"].texts
  assert "known so far" not in first
  assert "3 cups" in third and third.count("asked last: Vision Expert") == 1
  for name in ("dispatcher", "reasoner", "referee", "summariser"):
    assert not any(shown(ask.messages) for ask in roles[name].asked)
  stats = dispatch_stats([found.answer])
  assert stats["vision"] == pytest.approx(2 / 3)
  assert (stats["fallback"], stats["mean_attempts"]) == (0, 4)


def test_attempts_that_cannot_be_read_end_in_a_plain_answer():
  roles = models() | {"dispatcher": Turns("no idea")}
  found = answer(proreason, **roles)
  assert len(roles["dispatcher"].asked) == 8 and len(roles["vision"].asked) == 1
  assert not roles["referee"].asked
  assert found.answer.notes["memory"] == "" and found.answer.notes["fallback"]
  assert roles["vision"].texts == ["how many?"]
  found = answer(proreason, options={"attempts": 2}, **models())
  assert found.answer.notes["memory"] == "3 cups\n"
  assert found.answer.notes["fallback"]


def test_an_expert_that_fails_uses_up_an_attempt():
  def fails(ask):
    raise OSError("busy")

  roles = models() | {
    "dispatcher": Turns(dispatched(VISION, "cups?")),
    "vision": Turns(fails, fails, "at once"),
  }
  found = answer(proreason, options={"attempts": 2}, **roles)
  assert found.answer.text == "at once"
  assert found.answer.notes["turns"] == [] and not roles["referee"].asked


def test_no_picture_is_one_call():
  roles = {"reasoner": Turns("four")}
  found = answer(proreason, question("2+2?", ()), **roles)
  assert found.answer.text == "four" and roles["reasoner"].texts == ["2+2?"]


def test_texts_to_learn_from():
  found = answer(proreason, options={"open_ended": False}, **models()).answer
  (text,) = to_sft(found, question()).answers
  assert text == (
    "<think>Vision Expert: cups?\n3 cups\nVision Expert: plates?\n4 plates\n"
    "Reasoning Expert: sum?\n7</think><answer>7</answer>"
  )
  assert to_sft(found, question(answer="8")) is None
  assert (
    to_sft(Answer("7", found.notes | {"fallback": True}), question()) is None
  )
