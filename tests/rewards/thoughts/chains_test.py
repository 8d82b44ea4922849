"""EgoReasoner's rewards: the note's values, bounds, and what is refused."""

import math
import random
import re

from chains.parsing_test import T1
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import build, data, rewards
from mmrl.advantages import group_normalised
from mmrl.chains import comparing, parsing, writing
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rewards import needs
from mmrl.worlds.kitchens import asking, questions

COUNTING = "fixture_interaction_counting"
DRAWER = {
  "names": ("P01_drawer.002",),
  "windows": ((10, 12), (20, 22), (40, 41)),
  "count": 3,
  "choices": tuple("03421"),
}
FOUR = T1.replace("Count: 3", "Count: 4")
WORSE = T1.replace("the drawer", "the drawer, hob").replace(
  "\nCount", "\nEvent: 0:05 open\nCount"
)
T2 = "<think>\nEntities: drawer\nCount: 0\n</think><answer>A</answer>"


def example(kind, facts, answer="A"):
  return Example("vqa.json[0]", "?", [], answer, kind=kind, extra=facts)


def parts(text, one):
  """The four parts of a text's reward."""
  found = {
    "accuracy": rewards.first_option([[text]], [one.answer], [one]),
    "grounding": rewards.chain_part([[text]], [one], part="grounding"),
    "logic": rewards.chain_part([[text]], [one], part="logic"),
    "structure": rewards.chain_structure([[text]]),
    "steps": rewards.chain_steps([[text]], [one]),
  }
  return {name: float(x[0, 0]) for name, x in found.items()}


def total(text, one, gated=False):
  found = parts(text, one)
  gate = found["accuracy"] if gated else 1.0
  return found["accuracy"] + gate * found["steps"] + 0.1 * found["structure"]


@pytest.mark.parametrize(
  ("text", "accuracy", "grounding", "logic", "structure", "whole"),
  [
    (T1, 1, 0.894647, 1, 1, 2.047323),
    (FOUR.replace("B</", "C. 4</"), 0, 0.894647, 0.5, 1, 0.797323),
    (FOUR, 1, 0.894647, 0, 1, 1.547323),
    (WORSE, 1, (0.666667 + 0.591970) / 2, 0, 1, 1.414659),
    (T2, 0, 0.5, 1, 1, 0.85),
    ("I think it was three times.", 0, 0, 0, 0, 0),
    ("", 0, 0, 0, 0, 0),
  ],
)
def test_counting_golden(text, accuracy, grounding, logic, structure, whole):
  one = example(COUNTING, DRAWER, "B")
  found = parts(text, one)
  assert found["accuracy"] == accuracy and found["structure"] == structure
  assert found["grounding"] == pytest.approx(grounding, abs=2e-6)
  assert found["logic"] == logic
  assert total(text, one) == pytest.approx(whole, abs=2e-6)


def test_the_gate_golden():
  one = example(COUNTING, DRAWER, "B")
  assert total(T2, one, gated=True) == pytest.approx(0.1)
  assert total(T1, one, gated=True) == pytest.approx(2.047323, abs=2e-6)


def test_no_interaction_golden():
  one = example(COUNTING, DRAWER | {"windows": (), "count": 0}, "A")
  assert parts(T2, one)["grounding"] == 1
  assert total(T2, one) == pytest.approx(2.1)


def test_advantages_golden():
  values = jnp.array([[2.047323, 0.85, 0.0, 1.6]])
  wanted = [[1.028182, -0.305595, -1.252467, 0.529880]]
  np.testing.assert_allclose(group_normalised(values), wanted, atol=1e-6)


def test_windows_golden():
  for time, wanted in ((11, 1), (13, 0.606531), (14, 0.367879)):
    found = comparing.in_window(time, (10, 12), 2.0)
    assert found == pytest.approx(wanted, abs=1e-6)
  gold = ((10, 12), (20, 22))
  assert comparing.timed((11,), gold, 2.0) == pytest.approx(0.505554, abs=1e-6)
  assert comparing.timed((11, 20, 50, 60), gold, 2.0) == 0.5
  assert comparing.timed((), gold, 2.0) == 0
  assert (
    comparing.timed((), (), 2.0) == 1 and comparing.timed((5,), (), 2.0) == 0
  )


def test_intervals_golden():
  assert comparing.interval_iou((0, 10), (5, 15)) == pytest.approx(1 / 3)
  assert comparing.interval_iou((5, 5), (5, 5)) == 0
  assert comparing.interval_iou((0, 10), (20, 30)) == 0


def said(lines, letter):
  return f"<think>\n{lines}\n</think><answer>{letter}</answer>"


@pytest.mark.parametrize(
  ("stated", "choice", "wanted"),
  [
    ("3 o'clock", "3 o'clock", 1),
    ("4 o'clock", "4 o'clock", 0.833333),
    ("12 o'clock", "12 o'clock", 0.5),
    ("9 o'clock", "9 o'clock", 0),
    ("3 o'clock", "9 o'clock", 0),
    ("14 o'clock", "14 o'clock", 0),
  ],
)
def test_clock_golden(stated, choice, wanted):
  facts = {"clock": 3, "choices": (choice,)}
  one = example("fixture_location", facts)
  found = parts(said(f"Clock: {stated}", "A"), one)
  assert found["logic"] == pytest.approx(wanted, abs=1e-6)
  assert comparing.clock_distance(1, 11) == 2


@pytest.mark.parametrize(
  ("moves", "wanted"),
  [
    ("the sink|another counter, counter|hob, hob|the sink", 1),
    ("sink|counter, hob|sink", 0.333333),
    ("sink|counter", 0.666667),
    ("", 0),
  ],
)
def test_itinerary_golden(moves, wanted):
  gold = (("sink", "another counter"), ("counter", "hob"), ("hob", "sink"))
  one = example("object_movement_itinerary", {"moves": gold, "choices": ()})
  lines = [
    "Move: 0:01 from {} to {}".format(*move.split("|"))
    for move in moves.split(", ")
    if move
  ]
  found = parts(said("\n".join(lines), "A"), one)["logic"]
  assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
  ("fixture", "letter", "wanted"),
  [
    ("counter", "E", 1),
    ("the counter", "C", 0.5),
    ("sink", "E", 0.5),
    ("", "E", 0),
  ],
)
def test_place_golden(fixture, letter, wanted):
  choices = ("hob", "bin", "windowsill", "shelf", "counter left from sink")
  facts = {"fixture": "P04_counter.003", "choices": choices}
  one = example("object_location", facts)
  assert parts(said(f"Fixture: {fixture}", letter), one)["logic"] == wanted


@pytest.mark.parametrize(
  ("rest", "letter", "wanted"),
  [
    ("1:40 to 5:00", "A", 1),
    ("1:40 to 3:20", "A", 0.25),
    ("1:40 to 5:00", "B", 0.5),
    ("5:00 to 1:40", "B", 0),
    ("1:40", "A", 0),
  ],
)
def test_rest_golden(rest, letter, wanted):
  choices = tuple(f"<TIME 00:0{m} video 1>" for m in ("1:40.0", "5:00.0"))
  facts = {"threshold": 150, "rest": (100, 300), "choices": choices}
  one = example("stationary_object_localization", facts)
  assert parts(said(f"Rest: {rest}", letter), one)["logic"] == wanted


def test_weights_move_to_what_is_known():
  counted = example(COUNTING, {"count": 3, "choices": DRAWER["choices"]}, "B")
  found = parts(T1, counted)
  assert math.isnan(found["grounding"]) and found["steps"] == 1
  moved = example(
    "object_movement_itinerary", {"names": ("drawer",), "choices": ()}
  )
  found = parts(T1, moved)
  assert math.isnan(found["logic"]) and found["steps"] == 1
  neither = example("object_movement_itinerary", {"choices": ()})
  assert parts(T1, neither)["steps"] == 0
  # Of names and times one may be known alone.
  timed = example(COUNTING, DRAWER, "B")
  del timed.extra["names"]
  assert parts(T1, timed)["grounding"] == pytest.approx(0.789293, abs=1e-6)


@pytest.mark.parametrize("kind", questions.HD_EPIC)
def test_written_chains_get_all_of_the_reward(kind):
  """And chains of other questions get less on average."""
  options = asking.Options("train", (kind,))
  items = [questions.item(options, i) for i in range(6)]
  for item, other in zip(items, items[1:] + items[:1], strict=True):
    facts = {**item.gold, "choices": item.choices}
    one = example(kind, facts, item.letter)
    text = writing.render_chain(kind, item.gold, item.letter)
    assert total(text, one) == pytest.approx(2.1)
    # Each part is in [0, 1], whatever is said.
    wrong = parts(writing.render_chain(kind, other.gold, "A"), one)
    assert all(0 <= x <= 1 for x in wrong.values())
  assert len(writing.TEMPLATES[kind]) >= 4


@pytest.mark.full
def test_any_text_has_a_reward():
  draw = random.Random(1)
  pieces = [*"ABE:\n 0", "<think>", "</think>", "<answer>", "</answer>"]
  pieces += [
    "Count: 3\n",
    "Event: 0:11\n",
    "Move: 0:05 from a to b\n",
    "Clock:",
  ]
  for _ in range(1000):
    text = "".join(draw.choices(pieces, k=draw.randrange(16)))
    found = parts(text, example(COUNTING, DRAWER, "B"))
    assert all(0 <= x <= 1 for x in found.values())


@pytest.mark.parametrize(
  ("one", "message"),
  [
    (
      example("planning", DRAWER),
      "of a kind of fixture_inter.* found kind 'pl",
    ),
    (example(COUNTING, {}), "with choices, of a kind of .* found none"),
  ],
)
def test_questions_without_what_is_read_are_named(one, message):
  with pytest.raises(UserError, match=r"^vqa.json\[0\]: expected .*" + message):
    rewards.chain_steps([["x"]], [one])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"name": "chain_steps", "tau": 0.0}, "tau: expected seconds above 0"),
    ({"name": "chain_steps", "logic": 1.5}, r"logic: expected a weight in \[0"),
    ({"name": "chain_part", "part": "time"}, "one of 'grounding', 'logic'"),
    ({"name": "chain_part", "part": "logic", "tau": -1.0}, "tau: expected"),
  ],
)
def test_options_outside_of_their_range_are_refused(options, message):
  with pytest.raises(UserError, match=f"x.*{message}"):
    build.bind(rewards, options, "x", provided=["text", "example"])


class Listed:
  """A source that lists what it knows of two questions."""

  def extras(self):
    yield "a:1", ["choices", "names"]
    yield "a:2", ["names"]


def test_questions_without_choices_are_refused_before_a_run():
  spec = {"name": "chain_steps"}
  bound = build.bind(
    rewards, spec, "config.rewards.s", provided=["text", "example"]
  )
  message = "config.rewards.s: expected 'choices' of every .* none of a:2; add"
  with pytest.raises(UserError, match=message):
    needs.require_all([bound], Listed())


@pytest.mark.parametrize(
  "spec", [{"name": "chain_steps"}, {"name": "chain_part", "part": "logic"}]
)
def test_kinds_without_a_chain_are_refused_before_a_run(spec):
  """`planning` is asked in kitchens, by default, and has no template."""
  bound = build.bind(
    rewards, spec, "config.rewards.s", provided=["text", "example"]
  )
  source = data.Kitchens(split="train", count=7)
  assert "planning" in source.kinds()
  kinds = [kind for kind in source.kinds() if kind != "planning"]
  message = (
    f"config.rewards.s: expected questions of kinds {', '.join(kinds)}, which"
    f" {spec['name']} reads, found 'planning'; set `kinds` of the data"
  )
  with pytest.raises(UserError, match=re.escape(message)):
    needs.require_all([bound], source)
  with pytest.raises(UserError, match="found 'attribute'"):
    needs.require_all(
      [bound], data.Scenes(split="train", count=2, kinds=["attribute"])
    )
  needs.require_all([bound], data.Kitchens(split="train", count=7, kinds=kinds))


def test_a_parse_is_the_same_for_all_rewards():
  assert parsing.parse_chain(T1) == parsing.parse_chain(T1 + "\n")
