"""Benchmarks of few possible answers: yes or no, choices, Winoground, blind."""

import json
import re

import numpy as np
from PIL import Image
import pytest

from mmrl import benchmarks as slot
from mmrl import build, data, rewards
from mmrl.benchmarks.choosing.yes_no import verdict
from mmrl.benchmarks.contract import Answer, Benchmark
from mmrl.benchmarks.intervals import estimate
from mmrl.errors import UserError
from mmrl.rewards import choices

WHERE = "config.evaluation.benchmarks.mine"


def make(**spec):
  return build.construct(slot, spec, WHERE, field=WHERE)


def graded(benchmark, *texts):
  answers = [Answer(text, 1, True) for text in texts]
  values = benchmark.grade(answers, [benchmark[i] for i in range(len(texts))])
  return {k: float(x) for k, x in benchmark.summarise(values).items()}


def write(path, rows):
  path.write_text("\n".join(map(json.dumps, rows)))
  return str(path)


@pytest.mark.parametrize(
  ("text", "first", "contains"),
  [
    ("Yes, there is a bear.", "yes", "yes"),
    ("YES", "yes", "yes"),
    ("No.", "no", "no"),
    ("There is a bear", None, "no"),
    ("", None, "no"),
    ("No, but its eyes are open", "no", "yes"),
    ("No, not yesterday", "no", "yes"),
    ("<think>no? yes</think><answer>no</answer>", "no", "no"),
    ("<think>yes</think> no", "no", "no"),
  ],
)
def test_verdict_golden(text, first, contains):
  """Causal-HalBench's replies, and what its parser takes for a yes."""
  assert verdict(text) == first
  assert verdict(text, "contains") == contains


@pytest.fixture
def pope(tmp_path):
  rows = [
    {"question": f"is there a {i}?", "answer": a, "kind": kind}
    for i, (a, kind) in enumerate(
      [
        *[("yes", "random"), ("no", "random"), ("Yes", "adversarial")],
        *[("no.", "adversarial"), ("no", "adversarial")],
      ]
    )
  ]
  return {"name": "Files", "path": write(tmp_path / "pope.jsonl", rows)}


def test_yes_no_golden(pope):
  """Said yes: 0, 1 and 2, of which 0 and 2 are; 4 isn't answered."""
  benchmark = make(name="yes_no", data=pope)
  assert isinstance(benchmark, Benchmark)
  found = graded(benchmark, "yes", "Yes!", "yes", "no", "it may be")
  whole = {
    "accuracy": 3 / 5,
    "precision": 2 / 3,
    "recall": 1.0,
    "f1": 0.8,
    "yes_rate": 3 / 5,
  }
  assert {k: x for k, x in found.items() if "/" not in k} == pytest.approx(
    whole
  )
  assert found["accuracy/random"] == 0.5
  assert found["f1/adversarial"] == 1.0
  assert found["yes_rate/adversarial"] == pytest.approx(1 / 3)
  baseline = estimate(
    benchmark.summarise, benchmark.baseline(None, [*benchmark])
  )
  assert baseline["accuracy"].value == 3 / 5 and baseline["f1"].value == 0


def test_no_yes_at_all_is_no_number_of_its_own(pope):
  found = graded(make(name="yes_no", data=pope), *["no"] * 5)
  assert (found["precision"], found["recall"], found["f1"]) == (0, 0, 0)
  assert found["accuracy"] == 3 / 5


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"parser": "last"}, r"mine.parser: expected one of 'first', 'c"),
    ({"questions": -1}, r"mine.questions: expected a number .* found -1"),
    ({"form": "x"}, "yes_no has no option form; valid options: data, parser"),
  ],
)
def test_yes_no_refuses(pope, changes, message):
  with pytest.raises(UserError, match=message):
    make(name="yes_no", data=pope, **changes)


def test_other_answers_than_yes_and_no_are_refused(tmp_path):
  rows = [{"question": "?", "answer": "no"}, {"question": "?", "answer": "red"}]
  path = write(tmp_path / "a.jsonl", rows)
  with pytest.raises(UserError, match="yes or no .* found 'red' in question 2"):
    make(name="yes_no", data={"name": "Files", "path": path})


def mme(folder, *rows):
  """Rows are picture, right answer and subset."""
  for picture in {row[0] for row in rows}:
    Image.new("RGB", (8, 8), (50 * picture, 0, 0)).save(
      folder / f"{picture}.png"
    )
  path = write(
    folder / "mme.jsonl",
    [
      {"question": "?", "answer": a, "images": [f"{i}.png"], "kind": kind}
      for i, a, kind in rows
    ],
  )
  return {"name": "Files", "path": path}


PAIR = (0, "yes", "color"), (0, "no", "color")


def test_mme_golden(tmp_path):
  """VIC's note: right 1 1 1 0 0 0 about three pictures, 1 1 about a fourth."""
  rows = [(i // 2, ("yes", "no")[i % 2], "color") for i in range(6)]
  rows += [(3, "yes", "count"), (3, "no", "count")]
  benchmark = make(name="mme", data=mme(tmp_path, *rows))
  assert isinstance(benchmark, Benchmark)
  found = graded(benchmark, "yes", "no", "yes", "yes", "no", "", "Yes.", "No!")
  assert found == pytest.approx(
    {
      "score": 283.333333,
      "score/color": 83.333333,
      "accuracy/color": 0.5,
      "accuracy_plus/color": 1 / 3,
      "score/count": 200.0,
      "accuracy/count": 1.0,
      "accuracy_plus/count": 1.0,
    }
  )
  values = benchmark.baseline(None, [*benchmark])
  assert estimate(benchmark.summarise, values)["score"].value == 100.0
  fewer = make(name="mme", data=mme(tmp_path, *rows), pictures=2)
  pictures = [example.picture["image"] for example in fewer]
  assert pictures[::2] == pictures[1::2] and len({*pictures}) == 2


@pytest.mark.parametrize(
  ("rows", "changes", "message"),
  [
    (PAIR[:1], {}, "mine.data: expected two questions about each .* found 1"),
    (PAIR, {"pictures": -1}, "mine.pictures: expected a number .* found -1"),
    (PAIR, {"questions": 2}, "mme has no option questions; valid options: dat"),
    ([(0, "red", "color")] * 2, {}, "yes or no .* found 'red' in question 1"),
  ],
)
def test_mme_refuses(tmp_path, rows, changes, message):
  with pytest.raises(UserError, match=message):
    make(name="mme", data=mme(tmp_path, *rows), **changes)


@pytest.mark.parametrize("other", [(1, "no", "color"), (0, "no", "count")])
def test_mme_wants_both_questions_of_a_picture(tmp_path, other):
  benchmark = make(name="mme", data=mme(tmp_path, PAIR[0], other))
  with pytest.raises(UserError, match=r"mme.jsonl:1 and .*mme.jsonl:2 to be"):
    graded(benchmark, "yes", "no")


ITEM = {
  "id": 1,
  "image_0": "ex_0_img_0",
  "image_1": "ex_0_img_1.png",
  "caption_0": "a dog on a cat",
  "caption_1": "a cat on a dog",
  "tag": "Noun",
  "secondary_tag": "",
  "num_main_preds": 1,
  "collapsed_tag": "Object",
}


def items(folder, *rows):
  (folder / "images").mkdir(exist_ok=True)
  for i in range(2):
    picture = Image.new("RGB", (8, 8), (200 * i, 0, 0))
    picture.save(folder / "images" / f"ex_0_img_{i}.png")
  return write(folder / "examples.jsonl", rows)


def test_winoground_golden(tmp_path):
  other = ITEM | {"collapsed_tag": "Relation"}
  benchmark = make(name="winoground", path=items(tmp_path, ITEM, other))
  assert isinstance(benchmark, Benchmark) and len(benchmark) == 8
  first, third = benchmark[0], benchmark[2]
  assert first.question == (
    "Which caption fits the picture?\nA. a dog on a cat\nB. a cat on a dog"
  )
  shown = [part["type"] for part in third.messages[0]["content"]]
  assert shown == ["image", "image", "text"]
  assert "a dog on a cat" in third.question
  assert [benchmark[i].answer for i in range(4)] == ["A", "B", "A", "B"]
  said = ["A", "(B)", "<answer>A</answer>", "Answer: B", "A", "B", "A", "A"]
  found = graded(benchmark, *said)
  wanted = {"group": 0.5, "text": 1.0, "image": 0.5, "accuracy": 7 / 8}
  assert {k: found[k] for k in wanted} == wanted
  assert found["group/Object"] == 1 and found["group/Relation"] == 0
  assert not benchmark.baseline(None, [*benchmark])["group"].any()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"caption_1": None}, r"jsonl:1: expected 'caption_1' as text .* None"),
    ({"image_1": "none"}, r"jsonl:1: expected a picture at .*none.png"),
    (
      {"caption": "x"},
      r"other keys .* found 'caption' \(is it 'caption_",
    ),
  ],
)
def test_winoground_of_another_form_is_refused(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    make(name="winoground", path=items(tmp_path, ITEM | changes))


CHOICES = {"A": "red", "B": "dark blue", "C": "blue"}


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    *[("B", "B"), ("(C) blue", "C"), ("The answer is B because of it", "B")],
    *[("A dog is red", "A"), ("A is right", "A"), ("I see B and C", None)],
    *[("It is dark blue", None), ("red!", "A"), ("", None), ("D", None)],
    ("it may be red " + "x" * 40, None),
  ],
)
def test_infer_golden(text, wanted):
  """In "dark blue" is "blue" as well: two choices, so none."""
  assert choices.infer(text, CHOICES) == wanted


def test_a_tsv_of_vlmevalkit_is_a_benchmark(tmp_path):
  """Choices of its form, free replies, the picture of another row."""
  head = "index\tquestion\tA\tB\tanswer\tcategory\timage_path\n"
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  rows = [
    *(
      "1\twhat?\tred\tblue\tB\tcolour\ta.png",
      "2\twhich?\t3\t4\tA\tcount\ta.png",
    )
  ]
  path = tmp_path / "mcq.tsv"
  path.write_text(head + "\n".join(rows) + "\n")
  benchmark = make(
    name="questions",
    data={"name": "Files", "path": str(path), "prompt": "{question}\nLetter:"},
    scores={"accuracy": {"name": "inferred_choice"}},
  )
  assert choices.choices_of(benchmark[0].question) == {"A": "red", "B": "blue"}
  found = graded(benchmark, "It is blue.", "Option B")
  assert found == {"accuracy": 0.5, "accuracy/colour": 1, "accuracy/count": 0}


def test_a_question_without_choices_is_refused():
  one = data.Example("file:2", "what?", [], "B")
  with pytest.raises(UserError, match="file:2: expected a letter of its choic"):
    rewards.inferred_choice([["B"]], ["B"], [one])


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (
      ["7\ta?\tx", "8\tb?\tx", "7\tc?\tx"],
      "index once, found '7' 2 times;",
    ),
    (["\ta?\tx"], "expected 'index', a number or text .* found None"),
    (["1\ta?\tx\ty"], "expected 3 fields between tabs, found 4"),
  ],
)
def test_a_tsv_of_another_form_is_refused(tmp_path, rows, message):
  path = tmp_path / "a.tsv"
  path.write_text("\n".join(["index\tquestion\tanswer", *rows]) + "\n")
  with pytest.raises(UserError, match=message) as error:
    data.Files(str(path), format="vlmevalkit")
  assert "\n" not in str(error.value)


def test_blind_questions_have_no_pictures(tmp_path):
  spec = {"name": "winoground", "path": items(tmp_path, ITEM)}
  seen, blind = make(**spec), make(name="without_pictures", of=spec)
  assert isinstance(blind, Benchmark) and len(blind) == len(seen)
  (message,) = blind[2].messages
  assert message["content"] == seen[2].messages[0]["content"][2:]
  assert graded(blind, *"ABAB") == graded(seen, *"ABAB")
  assert blind.paths == seen.paths


def test_a_mistake_in_what_is_asked_blind_names_its_field():
  place = re.escape(f"{WHERE}.of: ")
  with pytest.raises(UserError, match=f"^{place}.*no 'other'"):
    make(name="without_pictures", of={"name": "other"})


def test_any_text_has_a_verdict():
  """A thousand random replies through every parser."""
  generator = np.random.default_rng(0)
  words = [
    "yes",
    "No",
    "A",
    "B.",
    "(C)",
    "<answer>",
    "</answer>",
    "\n",
    "é",
    "{",
  ]
  for _ in range(1000):
    text = " ".join(generator.choice(words, generator.integers(0, 8)))
    assert verdict(text) in ("yes", "no", None)
    assert verdict(text, "contains") in ("yes", "no")
    assert choices.infer(text, CHOICES) in (*CHOICES, None)
