"""Scenes: what is drawn is what is said, and nothing else changes."""

import dataclasses

import numpy as np
import pytest

from mmrl import data
from mmrl.errors import UserError
from mmrl.worlds import items
from mmrl.worlds.draws import Draws
from mmrl.worlds.scenes import asking, pairs, questions, scene, sentences
from mmrl.worlds.scenes.things import DIRECTIONS, SHAPES, SIZES, Thing, alpha
from tests.worlds import eye

KINDS = tuple(questions.KINDS)


def make(count: int, **options) -> list[asking.Item]:
  chosen = asking.Options(**{"kinds": KINDS} | options)
  return [asking.item(chosen, i) for i in range(count)]


@pytest.mark.parametrize("overlap", [False, True])
def test_nothing_changes_outside_of_what_is_changed(overlap):
  """In a thousand cases, each of them removed, replaced or moved."""
  draws = Draws(5)
  for one in make(100, overlap=overlap, kinds=("count",)):
    before = one.scenes[0]
    drawn = scene.render(before)
    for _ in range(5):
      index = draws.below(len(before.things))
      thing = before.things[index]
      half = thing.size // 2
      place = tuple(draws.between(half, 112 - half) for _ in range(2))
      kind = draws.pick(SHAPES), draws.pick(scene.COLOURS)
      moved = scene.move(before, index, place)
      after = draws.pick(
        [scene.remove(before, index), scene.replace(before, index, kind), moved]
      )
      same = np.ones((112, 112), bool)
      for x0, y0, x1, y1 in (thing.box, moved.things[index].box):
        same[y0:y1, x0:x1] = False
      changed = scene.render(after)
      np.testing.assert_array_equal(drawn[same], changed[same])
      assert (drawn != changed).any() or after == before
      rest = [t for t in before.things if t != thing]
      assert [t for t in after.things if t in rest] == rest


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_tight_and_a_mask_is_what_is_drawn(shape):
  for size in SIZES:
    for direction in DIRECTIONS if shape == "arrow" else ("",):
      share = alpha(shape, direction, size)
      for side in (share[0], share[-1], share[:, 0], share[:, -1]):
        assert side.max() > 30
      thing = Thing(shape, "black", size, (50, 60), direction)
      whole = scene.Scene((thing,))
      bare = scene.render(scene.remove(whole, 0))
      differs = (scene.render(whole) != bare).any(-1)
      np.testing.assert_array_equal(differs, scene.mask(whole, 0) > 0)


def test_things_keep_apart_and_inside():
  for size in (112, 224):
    for one in make(45, size=size):
      for picture in one.scenes:
        taken = np.zeros((size, size), int)
        for thing in picture.things:
          x0, y0, x1, y1 = thing.box
          assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
          taken[y0:y1, x0:x1] += 1
        assert taken.max() == 1 and 2 <= len(picture.things) <= 6


def test_things_that_overlap_are_seen():
  overlapping = 0
  for one in make(60, overlap=True):
    for picture in one.scenes:
      top = np.full((112, 112), -1)
      for i, thing in enumerate(picture.things):
        x0, y0, x1, y1 = thing.box
        overlapping += (top[y0:y1, x0:x1] >= 0).any()
        top[y0:y1, x0:x1] = i
      assert {*range(len(picture.things))} <= {*top.flat}
  assert overlapping > 20


def test_a_larger_rendering_is_of_the_same_scene():
  one = make(1)[0].scenes[0]
  large = scene.render(one, 224)
  small = large.reshape(112, 2, 112, 2, 3).mean((1, 3))
  # Outlines fall on other samples: single pixels of an edge may differ more.
  assert np.abs(small - scene.render(one)).mean() < 1
  with pytest.raises(
    UserError, match="multiple of the scene's, 112, found 100"
  ):
    scene.render(one, 100)


@pytest.mark.parametrize(
  "split",
  [
    *("train", "novel"),
    *(pytest.param(s, marks=pytest.mark.full) for s in ("validation", "test")),
  ],
)
def test_answers_are_what_pixels_say(split):
  for index, one in enumerate(make(9 * 6, split=split, seed=1)):
    pictures = [scene.render(s) for s in one.scenes]
    found = eye.solve(one.question.text, pictures)
    assert found == one.answer, (index, one)


def test_items_are_functions_of_seed_split_and_index():
  whole = make(60)
  alone = asking.Options(kinds=KINDS)
  assert [asking.item(alone, i) for i in reversed(range(60))] == whole[::-1]
  assert make(20) == whole[:20]
  assert len({repr(one) for one in whole}) == 60
  for other in ({"seed": 1}, {"split": "test"}):
    assert not {*make(60, **other)} & {*whole}


def test_splits_share_no_scene():
  """By a sum that tells them apart, or by pairs that only one has."""
  for split in scene.SPLITS:
    for overlap in (False, True):
      for one in make(27, split=split, overlap=overlap):
        for picture in one.scenes:
          held = {(t.shape, t.colour) for t in picture.things}
          held &= {*scene.HELD_OUT}
          assert bool(held) == (split == "novel")
          total = sum(sum(t.place) for t in picture.things)
          if split != "novel":
            assert total % 3 == scene.SPLITS.index(split)


def test_every_scene_has_something_to_overlook():
  for one in make(90):
    if one.question.kind == "describe":
      continue
    spots = questions.relevant(one.question, one.scenes)
    for picture, shown in enumerate(one.scenes):
      assert sum(p == picture for p, _ in spots) < len(shown.things)


def test_what_is_irrelevant_can_go():
  """The answer stays when a thing goes that isn't named, and boxes say so."""
  for one in make(90, seed=3):
    spots = {*questions.relevant(one.question, one.scenes)}
    for picture, shown in enumerate(one.scenes):
      for i in range(len(shown.things)):
        left = list(one.scenes)
        left[picture] = scene.remove(shown, i)
        if (picture, i) not in spots:
          assert questions.answer(one.question, left) == one.answer


@pytest.mark.full
def test_blind_baselines_of_what_is_held_out_are_below_60_percent():
  """A shape that is new with one colour only would tell it."""
  found = items.baselines([o.asked for o in make(9 * 400, split="novel")])
  assert max(one.blind for one in found.values()) < 0.6


@pytest.mark.parametrize(
  "count", [15, pytest.param(1000, marks=pytest.mark.full)]
)
def test_blind_baselines_are_near_chance(count):
  found = items.baselines([one.asked for one in make(9 * count)])
  assert set(found) == set(KINDS)
  for kind, one in found.items():
    # A shape has five of the eight colours in training, the others in `novel`.
    chance = max(one.chance, 1 / 5) if kind == "attribute" else one.chance
    # Three standard errors of the share of so many questions.
    assert one.blind < chance + 3 * 0.5 / count**0.5, kind


def test_baselines_by_hand():
  def asked(stem, meaning, choices=()):
    return items.Asked("k", stem, meaning, choices, 0.25)

  rows = [asked("a", "x"), asked("a", "x"), asked("b", "y"), asked("b", "x")]
  # From the even ones: a -> x is right, b -> y is wrong. From the odd ones: a
  # -> x is right, b -> x is wrong.
  assert items.baselines(rows) == {"k": items.Baseline(4, 0.25, 0.5)}
  rows = [asked("a", "x"), asked("a", "y", ("y", "z"))]
  assert items.baselines(rows)["k"].blind == 0.5
  assert "| k | 2 | 25.0% | 50.0% |" in items.table(items.baselines(rows))


def test_planted_cooccurrence_is_there_and_only_there():
  counted = [
    scene.cooccurrence(
      s
      for one in make(150, kinds=("exists",), cooccurrence=matrix)
      for s in one.scenes
    )
    for matrix in (None, scene.paired(0.8))
  ]
  for counts, least, most in zip(counted, (0, 2.5), (1.5, 99), strict=True):
    for shape, partner in scene.PARTNERS.items():
      row = counts[SHAPES.index(shape)]
      with_partner = row[SHAPES.index(partner)]
      mean = (row.sum() - with_partner) / 6
      assert least < with_partner / mean < most
  np.testing.assert_array_equal(counted[1], counted[1].T)
  assert not np.diag(counted[1]).any()


def test_facts_are_true_and_mark_what_matters():
  for one in make(18):
    found = sentences.facts(one.scenes, one.question)
    text = " ".join(fact.text for fact in found)
    for shown in one.scenes:
      for thing in eye.look(scene.render(shown)):
        assert f"{thing['colour']} {thing['shape']}" in text
    spots = questions.relevant(one.question, one.scenes)
    assert any(fact.relevant for fact in found) == bool(spots)
  thing = Thing("star", "red", 28, (20, 100))
  other = Thing("ring", "orange", 28, (60, 60))
  asked = questions.Question("attribute", ("colour", "star"))
  found = sentences.facts([scene.Scene((thing, other))], asked)
  assert found == (
    sentences.Fact("There is an orange ring in the middle.", False),
    sentences.Fact("There is a red star at the bottom left.", True),
  )


@pytest.mark.parametrize("style", sentences.STYLES)
def test_thoughts_come_to_the_answer_unless_a_thing_is_misread(style):
  differs = misread = 0
  for i, one in enumerate(make(45)):
    right = sentences.think(one.question, one.scenes, style)
    assert right.answer == one.answer and not right.misread
    assert one.answer in right.text if style != "direct" else not right.text
    wrong = sentences.think(
      one.question, one.scenes, style, error=0.5, draws=Draws(1, i)
    )
    misread += wrong.misread
    differs += wrong.answer != one.answer
    assert wrong.misread or wrong == right
  assert 12 < misread < 33 and differs > 6


def test_the_eye_answers_what_it_is_asked():
  asked = 0
  for one in make(135):
    found = sentences.oracle(one.scenes[0], one.question.text)
    if one.question.kind in ("attribute", "exists", "count", "relation"):
      asked += 1
      assert found == one.answer
      wrong = sentences.oracle(one.scenes[0], one.question.text, error=1.0)
      assert wrong != one.answer
    else:
      assert found == sentences.UNSEEN
  assert asked == 60
  shown = make(1)[0].scenes[0]
  assert (
    sentences.oracle(shown, "WHAT colour is  the house") == sentences.UNSEEN
  )


def test_the_eye_errs_as_often_as_it_is_told():
  asked = make(200, kinds=("count",))
  wrong = sum(
    sentences.oracle(o.scenes[0], o.question.text, error=0.3) != o.answer
    for o in asked
  )
  # 60 are expected; the standard deviation is 6.5.
  assert 40 < wrong < 80


def test_preferences_differ_in_one_thing():
  counts = scene.cooccurrence(
    one.scenes[0]
    for one in make(60, kinds=("relation",), cooccurrence=scene.paired(0.8))
  )
  partner = 0
  for i, one in enumerate(make(50, kinds=("describe",))):
    shown = one.scenes[0]
    there = {t.shape for t in shown.things}
    pair = pairs.prefer(shown, Draws(i))
    assert pair.chosen == one.answer != pair.rejected
    assert " ".join(pair.absent[::-1]) in pair.rejected
    assert pair.absent[0] not in there
    removed = {*shown.things} - {*pair.without.things}
    assert len(removed) == 1 and len(pair.candidates) == len(shown.things)
    assert pair.kept[pair.removed] == min(pair.kept)
    (gone,) = removed
    assert f"{gone.colour} {gone.shape}" in pair.chosen
    likely = pairs.prefer(shown, Draws(i), counts).absent[0]
    partner += scene.PARTNERS[likely] in there
  assert partner > 35


def test_interventions_put_in_what_is_seldom():
  counts = scene.cooccurrence(
    s
    for one in make(60, kinds=("relation",), cooccurrence=scene.paired(1.0))
    for s in one.scenes
  )
  for i, one in enumerate(make(60, kinds=("relation",), size=224)):
    shown = dataclasses.replace(one.scenes[0], things=one.scenes[0].things[:5])
    found = pairs.intervene(shown, Draws(i), counts)
    before, after = (
      {t.shape for t in s.things} for s in (shown, found.changed)
    )
    assert found.context in before & after
    assert found.inserted in after - before
    assert not {*found.absent} & (before | after)
    assert scene.PARTNERS[found.context] != found.inserted


def test_the_source_gives_what_it_promises():
  source = data.Scenes(
    split="train", count=20, thoughts=["short", "list"], distance=12
  )
  assert len(source) == 20
  names = [*source.names()]
  assert len({*names}) == 20
  examples = [source[i] for i in range(20)]
  assert [e.name for e in examples] == names
  assert [(e.question, e.answer) for e in examples] == [*source.pairs()]
  assert [(e.name, e.answers) for e in examples] == [*source.given()]
  for one in examples:
    *shown, text = one.messages[0]["content"]
    assert text["text"].endswith(one.question)
    assert len(text["text"].split()) >= len(one.question.split()) + 12
    assert one.answers[0].endswith(f"</think><answer>{one.answer}</answer>")
    for part, boxes in zip(shown, one.extra["boxes"], strict=True):
      assert part["image"].shape == (112, 112, 3)
      assert part.get("region") == (boxes[0] if len(boxes) == 1 else None)
  assert source[-1].name == names[-1]
  with pytest.raises(IndexError):
    source[20]
  short = data.Scenes(split="train", count=5, thoughts=["short", "list"])
  assert short[3].extra == examples[3].extra
  direct = data.Scenes(split="train", count=5, thoughts=["direct"])[3]
  assert direct.answers == (f"<answer>{direct.answer}</answer>",)


def test_what_to_compare_is_in_the_example():
  one = data.Scenes(split="test", count=3, kinds=["describe"])[2]
  assert one.extra["preference"].chosen == one.answer
  assert one.extra["scenes"][0] not in one.extra["preference"].candidates


@pytest.mark.parametrize(
  ("option", "value", "message"),
  [
    ("split", "val", "split: expected one of train, validation, test, novel"),
    ("count", 0, "count: expected a whole number from 1"),
    ("kinds", ["colour"], "kinds: expected one of attribute, exists, .* 'col"),
    ("kinds", "count", "kinds: expected a list of attribute, .* 'count'"),
    ("kinds", [], "kinds: expected some of attribute, exists, "),
    ("kinds", ["count", "count"], "kinds: expected each once"),
    ("seed", -1, "seed: expected a whole number from 0"),
    ("seed", True, "seed: expected a whole number from 0"),
    (
      "size",
      100,
      "size: expected a multiple of 112 from 112 to 896, found 100",
    ),
    ("cooccurrence", [[1.0] * 8] * 7, "cooccurrence: expected 8 rows of 8"),
    ("cooccurrence", [[0.0] * 8] * 8, "each with one above 0"),
    ("cooccurrence", [[float("nan")] * 8] * 8, "cooccurrence: expected 8 rows"),
    ("pictures", 4, "pictures: expected a whole number from 2 to 3, found 4"),
    ("reads", 1, "reads: expected a whole number from 2 to 4, found 1"),
    ("distance", -1, "distance: expected a whole number from 0"),
    (
      "thoughts",
      ["long"],
      "thoughts: expected one of direct, short, steps, list",
    ),
    ("thoughts", "short", "thoughts: expected a list of direct, short"),
    ("errors", 2.0, "errors: expected a number from 0.0 to 1.0, found 2.0"),
    ("prompt", "Say:", "prompt: expected a text with {question}"),
  ],
)
def test_an_option_without_such_a_value(option, value, message):
  options = {"split": "train", "count": 5, option: value}
  with pytest.raises(UserError, match=message) as found:
    data.Scenes(**options)
  assert "\n" not in str(found.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: scene.remove(s, 6), "thing: expected a whole number from 0 to"),
    (lambda s: scene.mask(s, -1), "thing: expected a whole number from 0 to"),
    (lambda s: scene.move(s, 0, (5, 50)), "place: expected a thing of"),
    (lambda s: scene.replace(s, 0, ("cube", "red")), "shape: expected one of"),
    (lambda s: scene.replace(s, 0, ("star", "pink")), "colour: expected one"),
    (lambda s: scene.paired(1.5), "strength: expected a number from 0.0 to 1"),
    (
      lambda s: sentences.oracle(s, "x", error=-1.0),
      "error: expected a number",
    ),
  ],
)
def test_a_change_that_cannot_be(change, message):
  with pytest.raises(UserError, match=message):
    change(make(1)[0].scenes[0])
