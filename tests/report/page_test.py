"""Tests of the HTML report."""

import dataclasses
import html.parser
import pathlib
import re

import numpy as np
import pytest

from mmrl.benchmarks.intervals import Estimate
from mmrl.errors import UserError
from mmrl.report import curves
from mmrl.report import page as page_lib

NAN = float("nan")


def make_example(**changes) -> page_lib.Example:
  answer = page_lib.Answer(
    text="<think>blue circle</think><answer>yes</answer>",
    scores={"accuracy": 1.0, "part": 0.25},
    heat=np.ones((1, 4, 4)),
    region_share=0.25,
  )
  example = page_lib.Example(
    pictures=[np.full((64, 64, 3), 200, np.uint8)],
    question="is there a circle?",
    gold="yes",
    region=[(8, 8, 24, 24)],
    before=dataclasses.replace(answer, scores={"accuracy": 0.0}),
    after=answer,
  )
  return dataclasses.replace(example, **changes)


def number(value: float, error: float = 0.0) -> Estimate:
  return Estimate(value, value - error, value + error)


def table(*rows: page_lib.Row) -> page_lib.Table:
  return page_lib.Table("test", 1000, rows)


def group(name="", note="", **points) -> curves.Group:
  return curves.Group(name, note, points)


def write(path: pathlib.Path, **changes) -> str:
  content = {
    "title": "A run",
    "subtitle": "It learned.",
    "figures": [("Accuracy", "50% → 90%")],
    "tables": [table(page_lib.Row("accuracy", number(0.5), number(0.9), None))],
    "groups": [group(reward=[(step, step / 50) for step in range(50)])],
    "examples": {"test": [make_example()]},
    "config": "seed = 0",
  }
  page_lib.write(path, **(content | changes))
  return path.read_text("utf-8")


def test_page_shows_what_it_was_given(tmp_path):
  """Answers in full, and whole in itself."""
  page = write(tmp_path / "new" / "report.html")
  for text in ("A run", "It learned.", "50% → 90%", "+40.0", "seed = 0"):
    assert text in page
  for mark in ("✗ accuracy", "✓ accuracy", "part 0.25", "1,000 items"):
    assert mark in page
  assert page.count("<img") == 3
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
  shown = re.findall(r'<div class="text">(.*?)</div>', page, re.DOTALL)
  plain = [html.unescape(re.sub(r"</?i>", "", text)) for text in shown]
  assert plain == ["<think>blue circle</think><answer>yes</answer>"] * 2
  links = re.findall(r'\b(?:src|href)="([^"]*)"', page)
  assert links and all(link.startswith("data:image/") for link in links)
  for word in ("http", "url(", "@import"):
    assert word not in page


def test_samples_from_training(tmp_path):
  """With a picture or without, and without a right answer or rewards."""
  one = page_lib.Completion(
    step=20,
    picture=np.full((64, 64, 3), 200, np.uint8),
    question="is there <a circle>?",
    gold="yes",
    text="<think>&</think>",
    scores={"accuracy": 1.0, "part": 0.25},
    total=0.925,
  )
  bare = dataclasses.replace(one, picture=None, gold="", scores={}, text="")
  page = write(tmp_path / "one.html", samples=[one, bare], examples={})
  assert page.count("<img") == 1 and page.count('class="sample bare"') == 1
  assert page.count("is there &lt;a circle&gt;?") == 2
  for mark in ("✓ accuracy", "part 0.25", "&lt;think&gt;</i>&amp;<i>"):
    assert page.count(mark) == 1, mark
  assert page.count("Right answer") == page.count("Reward <b>0.925</b>") == 1
  assert page.count("(no text)") == 1
  assert "Samples" not in write(tmp_path / "none.html")


def test_a_sample_of_several_pictures_is_wide(tmp_path):
  one = page_lib.Completion(
    step=20,
    picture=np.full((64, 200, 3), 200, np.uint8),
    question="what happens?",
    gold="",
    text="a",
    scores={},
    total=0.0,
  )
  page = write(tmp_path / "one.html", samples=[one], examples={})
  assert page.count("<img") == 1 and page.count('class="sample bare"') == 1


@pytest.mark.parametrize("count", [0, 4])
def test_questions_without_a_picture_and_about_a_video(tmp_path, count):
  """Their texts are there; attention is on the frames of a video."""
  example = make_example(
    pictures=[np.full((64, 64, 3), 50 * i, np.uint8) for i in range(count)],
    region=(),
  )
  before, after = (
    dataclasses.replace(one, heat=np.eye(4)[None].repeat(count, 0))
    for one in (example.before, example.after)
  )
  example = dataclasses.replace(example, before=before, after=after)
  page = write(tmp_path / "report.html", examples={"test": [example]})
  assert page.count("<img") == (3 if count else 0)
  assert page.count("is there a circle?") == 1
  assert page.count("blue circle") == 2 and page.count("Right answer") == 1
  assert ("Visual attention" in page) == (count > 0)
  (kind,) = re.findall(r'<div class="three ?(\w*)">', page)
  assert kind == ("rows" if count else "bare")


def test_every_text_is_escaped(tmp_path):
  evil = '"><script>alert(1)</script>'
  example = make_example(question=evil, gold=evil)
  answer = dataclasses.replace(
    example.after, text=evil + "\ud800", scores={evil: 1.0}
  )
  page = write(
    tmp_path / "report.html",
    title=evil,
    subtitle=evil,
    figures=[(evil, evil)],
    tables=[page_lib.Table(evil, 1, [page_lib.Row(evil, None, None, None)])],
    groups=[
      curves.Group(evil, evil, {evil: [(0, 0.0), (1, 1.0)], f"{evil} 2": []})
    ],
    examples={
      evil: [dataclasses.replace(example, before=answer, after=answer)]
    },
    config=evil,
  )
  assert "<script>alert" not in page
  assert "alert(1)" in page


@pytest.mark.parametrize(
  "points",
  [
    [],
    [(3, 0.5)],
    [(0, NAN)],
    [(0, NAN), (1, 0.5), (2, float("inf")), (3, -1e300)],
    [(step, 1.0) for step in range(100)],
    [(step, 0.0) for step in range(3)],
    [(step, 1e-320 * step) for step in range(30)],
    [(5, 1.0), (5, 2.0)],
    [(step, NAN if step % 7 else step) for step in range(1000)],
    [(step * 10**6, 1e9 * step) for step in range(40)],
  ],
)
def test_any_curve_is_drawn(tmp_path, points):
  page = write(tmp_path / "report.html", groups=[group(loss=points)])
  drawing = page[page.index('class="curves"') : page.index('class="cards"')]
  assert not re.search(r"\b(nan|inf)\b", drawing)
  finite = [v for _, v in points if np.isfinite(v) and abs(v) < 1e30]
  assert ("no values" in drawing) == (not finite)
  lost = len(points) - len(finite)
  assert (f"{lost} not finite" in drawing) == (lost > 0)
  for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+) ", drawing):
    assert 50 <= float(x) <= 310 and 8 <= float(y) <= 152


def test_straight_line_stays_straight_when_smoothed(tmp_path):
  points = [(step, 2.0 * step) for step in range(101)]
  page = write(tmp_path / "report.html", groups=[group(loss=points)])
  raw, mean = re.findall(r'<polyline[^>]*points="([^"]*)"', page)
  assert raw == mean
  assert "<span>200</span>" in page


@pytest.mark.full
def test_a_long_curve_is_drawn_to_its_end_with_as_many_points_as_fit(tmp_path):
  points = [(step, float(step)) for step in range(10**5)]
  page = write(tmp_path / "report.html", groups=[group(loss=points)])
  (hover,) = re.findall(r'data-points="([^"]*)"', page)
  steps = [int(point.split()[0]) for point in hover.split(";")[:-1]]
  assert len(steps) == 400 and steps[0] == 0 and steps[-1] == 10**5 - 1
  assert len(page) < 10**5


def cells(page: str) -> list[str]:
  """Texts of the table's cells, but for the drawn scale."""
  found = re.findall(r"<td(?: class=\"[a-z]*\")?>(.*?)</td>", page, re.DOTALL)
  plain = (re.sub(r"<[^>]*>", " ", text) for text in found)
  return [" ".join(text.split()) for text in plain]


def test_shares_are_in_per_cent_with_their_interval(tmp_path):
  row = page_lib.Row("a", number(0.5, 0.25), number(0.75), number(0.25, 0.125))
  page = write(tmp_path / "report.html", tables=[table(row)])
  assert cells(page) == [
    "50.0% 25.0 to 75.0%",
    "75.0% 75.0 to 75.0%",
    "+25.0 pts",
    "25.0% 12.5 to 37.5%",
  ]
  assert 'class="track"' in page


def test_other_numbers_are_as_they_are(tmp_path):
  """And have no place on a scale from 0 to 100%."""
  row = page_lib.Row("score", number(1500.0, 20.0), number(1000.0, 1.0), None)
  page = write(tmp_path / "report.html", tables=[table(row)])
  found = cells(page)
  assert found == ["1500 1480 to 1520", "1000 999 to 1001", "−500"]
  assert 'class="track"' not in page


def test_counts_are_no_shares(tmp_path):
  """Of what a model was asked: one failure isn't all of them."""
  row = page_lib.Row(
    "asked/judge_failures", number(0.0, 0.0), number(1.0, 0.0), None
  )
  page = write(tmp_path / "report.html", tables=[table(row)])
  assert cells(page) == ["0 0 to 0", "1 1 to 1", "+1"]
  assert 'class="track"' not in page


def test_negative_shares_have_no_scale(tmp_path):
  row = page_lib.Row("effect", number(-0.25), number(0.5), None)
  page = write(tmp_path / "report.html", tables=[table(row)])
  assert cells(page)[0] == "−25.0% −25.0 to −25.0%"
  assert 'class="track"' not in page


def test_parts_stand_below_their_whole(tmp_path):
  """A name that only looks like a part is written out."""
  names = ("accuracy", "accuracy/red", "attention/region")
  rows = [page_lib.Row(name, None, number(0.5), None) for name in names]
  page = write(tmp_path / "report.html", tables=[table(*rows)])
  shown = re.findall(r'<th scope="row">(.*?)</th>', page)
  assert shown == ["accuracy", "red", "attention/<wbr>region"]
  assert page.count('class="part"') == 1


def test_groups_with_a_name_are_collapsed(tmp_path):
  points = [(1, 1.0)]
  groups = [group(main=points), group("time", "Seconds.", a=points, b=points)]
  page = write(tmp_path / "report.html", groups=groups)
  (inside,) = re.findall(
    r'<details class="box group">(.*?)</details', page, re.S
  )
  assert "Seconds." in inside and "2 curves" in inside
  assert inside.count("<figure") == 2
  assert page.count("<figure") == 3


def test_missing_numbers_become_dashes(tmp_path):
  example = make_example(region=())
  answer = dataclasses.replace(example.after, region_share=None)
  page = write(
    tmp_path / "report.html",
    tables=[table(page_lib.Row("blind", None, number(0.5), None))],
    examples={
      "test": [dataclasses.replace(example, before=answer, after=answer)]
    },
  )
  assert cells(page) == ["–", "50.0% 50.0 to 50.0%", "–"]
  assert "of visual attention" not in page


def test_tags_are_balanced(tmp_path):
  class Checker(html.parser.HTMLParser):
    open_tags: list[str] = []

    def handle_starttag(self, tag, attributes):
      if tag not in ("meta", "img", "wbr"):
        self.open_tags.append(tag)

    def handle_endtag(self, tag):
      assert self.open_tags.pop() == tag

  nothing = {"figures": [], "tables": [], "groups": [], "examples": {}}
  for changes in ({}, nothing):
    checker, page = Checker(), write(tmp_path / "report.html", **changes)
    checker.feed(page)
    assert not checker.open_tags
  assert "<h2>" not in page


def test_failure_leaves_the_old_report(tmp_path, monkeypatch):
  path = tmp_path / "report.html"
  path.write_text("old")

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(UserError, match="could not write .*disk full"):
    write(path)
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]
