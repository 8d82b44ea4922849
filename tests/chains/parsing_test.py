"""What is read of a chain, and what isn't."""

import random

import pytest

from mmrl.chains import parsing, writing

T1 = (
  "<think>\nEntities: the drawer\nEvent: <TIME 00:00:11.0 video 1> open\n"
  "Event: <TIME 00:00:20.5 video 1> open\nEvent: 0:43 open\nCount: 3\n"
  "</think>\n<answer>B</answer>"
)


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("<TIME 00:03:1.8 video 1>", [181.8]),
    ("<TIME 01:14:16.766 video 1>", [4456.766]),
    ("at 2:05.5 and 12:00", [125.5, 720.0]),
    ("12:30:45", []),
    ("1:75", []),
    ("<TIME 3:1 video 1> or 0:07", [7.0]),
    ("<TIME 00:00:01.5 video 1> to 0:02", [1.5, 2.0]),
    ("", []),
  ],
)
def test_times(text, wanted):
  assert parsing.times(text) == pytest.approx(wanted)


def test_times_that_cannot_be_read_are_found():
  assert parsing.unreadable_time("at <TIME 00:03:1.8 video 1>") is None
  assert parsing.unreadable_time("<TIME 3:1 video 1>") == "<TIME 3:1 video 1>"
  assert parsing.unreadable_time("at <TIME 0") == "<TIME 0"


def test_times_are_written_as_they_are_read():
  for tenths in (0, 7, 599, 600, 36000, 41234):
    assert parsing.times(writing.stamp(tenths / 10)) == [tenths / 10]


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("P01_cupboard.009", "cupboard"),
    ("another counter top left of fridge", "counter top left of fridge"),
    ("The  Drawer", "drawer"),
    ("extractor_fan", "extractor fan"),
    ("P04_counter.003", "counter"),
    ("the", "the"),
    ("", ""),
  ],
)
def test_names(name, wanted):
  assert parsing.plain(name) == wanted


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("3 o'clock", 3),
    (" 12 o'clock ", 12),
    ("14 o'clock", None),
    ("0 o'clock", None),
    ("3", None),
  ],
)
def test_hours(text, wanted):
  assert parsing.hour(text) == wanted


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("<answer>B</answer>", "B"),
    ("<answer> C. 4\n</answer>", "C"),
    ("<answer>D) x</answer>", "D"),
    ("<answer>E:</answer>", "E"),
    ("<answer>F</answer>", None),
    ("<answer>b</answer>", None),
    ("<answer>Bottle</answer>", None),
    ("<answer>(B)</answer>", None),
    ("<answer>A</answer><answer>B</answer>", "A"),
    ("<answer>A", None),
    ("A", None),
  ],
)
def test_options(text, wanted):
  assert parsing.option(text) == wanted


def test_a_chain_golden():
  found = parsing.parse_chain(T1)
  assert found == parsing.Chain(
    entities=frozenset({"drawer"}),
    times=(11.0, 20.5, 43.0),
    events=3,
    count=3,
    option="B",
    formed=True,
  )


def test_lines_of_every_key():
  found = parsing.parse_chain(
    "<think>so\nentities: Sink, , P01_hob.001\nMOVE: 0:05 from the sink to"
    " another counter left of hob\nMove: nowhere\nFixture: the sink\nfixture:"
    " P01_hob.002\nClock: 4 o'clock\nClock: noon\nRest: 0:10 to 0:20\nCount: 2"
    "\nCount: 3\nEvent: later\n</think><answer>A</answer>"
  )
  assert found.entities == {"sink", "hob"}
  assert found.moves == (("sink", "counter left of hob"),)
  assert found.times == (5.0,) and found.events == 1
  # The last line of a key counts, and is none if it can't be read.
  assert (found.fixture, found.clock, found.count) == ("hob", None, 3)
  assert found.rest == (10.0, 20.0)


@pytest.mark.parametrize(
  "text",
  [
    "Entities: a\nCount: 3",
    "<think>Entities: a",
    "Count: 1</think>",
    "I think it was three times.",
    "",
  ],
)
def test_only_the_closed_thought_is_read(text):
  assert parsing.parse_chain(text) == parsing.Chain()


@pytest.mark.parametrize(
  ("text", "formed"),
  [
    (T1, True),
    (f" {T1}\n", True),
    (f"{T1} so", False),
    (T1.replace("B</answer>", "F</answer>"), False),
    (T1.replace("<think>", "<think><think>"), False),
    (T1 + "<answer>B</answer>", False),
    ("<answer>B</answer>", False),
    ("<answer>B</answer><think>x</think>", False),
  ],
)
def test_structure(text, formed):
  assert parsing.parse_chain(text).formed == formed


def test_any_text_is_read():
  """A thousand random texts of what lines are made of."""
  pieces = [
    *("<think>", "</think>", "<answer>", "</answer>", "Event:", "Move:", "\n"),
    *("Count:", "Clock:", "Rest:", "Fixture:", "Entities:", "from", "to", " "),
    *("<TIME 00:00:1.0 video 1>", "<TIME", "video 1>", "0:43", "12", ":", "é"),
    *(
      "o'clock",
      "A",
      "B.",
      "\0",
      "9" * 5000,
      "٣",
      "\u2028",
      "the",
      "P01_",
      ",",
    ),
  ]
  draw = random.Random(0)
  for _ in range(1000):
    text = "".join(draw.choices(pieces, k=draw.randrange(20)))
    found = parsing.parse_chain(text)
    assert len(found.times) <= text.count("Event:") + text.count("Move:")
    assert found.option in {*"ABCDE", None}
    assert isinstance(parsing.plain(text), str)
    parsing.hour(text), parsing.move(text), parsing.unreadable_time(text)


def test_chains_are_read_as_they_are_written():
  facts = {
    "names": ("P01_sink.001", "P01_counter.002", "P01_counter.003"),
    "windows": ((4.0, 6.0), (9.0, 9.4)),
    "moves": (("sink", "counter left of hob"), ("counter left of hob", "sink")),
    "count": 2,
  }
  text = writing.render_chain("object_movement_counting", facts, "C")
  found = parsing.parse_chain(text)
  assert found.entities == {"sink", "counter"}
  assert found.times == (5.0, 9.2) and found.count == 2
  assert found.moves == facts["moves"]
  assert found.option == "C" and found.formed
  assert writing.lacking("object_location", facts) == ["words", "fixture"]
