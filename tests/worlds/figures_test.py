"""Figures: every fault is seen, stays in its box, and is what labels say."""

import dataclasses
import json

import numpy as np
import pytest

from mmrl import data
from mmrl.errors import UserError
from mmrl.worlds import items
from mmrl.worlds.draws import Draws
from mmrl.worlds.figures import asking, faults
from mmrl.worlds.figures.figure import (
  ACTIONS,
  BESIDE,
  OTHER_ACTIONS,
  Fault,
  Figure,
  strokes,
)

# Drawn data, which nothing else of the library changes.
pytestmark = pytest.mark.full


def person(index: int, *wrong: Fault) -> Figure:
  """Some figure."""
  actions = (*ACTIONS, *OTHER_ACTIONS)
  return Figure(
    actions[index % 6],
    37 * index % 300,
    0.37 * index % 4,
    *(index % n for n in (5, 3, 3, 6)),
    BESIDE[index % 3],
    wrong,
  )


@pytest.mark.parametrize("label", faults.FAULTS)
def test_a_fault_is_seen_at_112_pixels_and_only_in_its_box(label):
  limbs = faults.LIMBS_OF.get(label, ("",))
  for index in range(12):
    fault = Fault(label, limbs[index % len(limbs)], (0.0, 0.5, 1.0)[index % 3])
    shown = person(index, fault)
    with_, without = (faults.render(f) for f in (shown, faults.heal(shown, 0)))
    changed = np.abs(with_.astype(int) - without).max(-1)
    # A hundredth of the picture, by more than a sixth of the scale.
    assert (changed > 40).sum() >= 50, (index, fault)
    x0, y0, x1, y1 = faults.fault_box(shown, 0)
    changed[y0:y1, x0:x1] = 0
    assert not changed.any()


def test_there_are_about_fifteen_strokes_and_all_are_seen():
  shown = person(0)
  assert 15 <= len([s for s in strokes(shown) if "thing" not in s.name]) <= 20
  whole = strokes(shown)
  for index in range(len(whole)):
    left = whole[:index] + whole[index + 1 :]
    pictures = [faults.figures.draw(s, 0) for s in (whole, left)]
    assert (pictures[0] != pictures[1]).any(), whole[index].name


def test_healing_one_of_several_leaves_the_others():
  for index in range(24):
    shown = asking.item(0, "train", index).figure
    for i in range(len(shown.faults)):
      healed = faults.heal(shown, i)
      assert {*shown.faults} - {*healed.faults} == {shown.faults[i]}
      pictures = [faults.render(f).astype(int) for f in (shown, healed)]
      x0, y0, x1, y1 = faults.fault_box(shown, i)
      changed = np.abs(pictures[0] - pictures[1]).max(-1)
      assert (changed > 40).sum() >= 30, (index, shown.faults[i])
      changed[y0:y1, x0:x1] = 0
      assert not changed.any()


def test_faults_come_and_go_and_the_pose_moves():
  one = next(c for i in range(9) if (c := asking.clip(i)).faults)
  shown = [one.at(t) for t in np.arange(0, 4, 0.25).tolist()]
  there = [one.start <= f.time < one.end for f in shown]
  assert [bool(f.faults) for f in shown] == there and {*there} == {True, False}
  frames = one.frames()
  assert frames.shape == (16, 112, 112, 3)
  assert len({f.tobytes() for f in frames}) > 4
  np.testing.assert_array_equal(frames[4], faults.render(one.at(1.0)))


def test_pairs_prefer_fewer_faults_and_tie_on_equal_ones():
  seen = set()
  for index in range(60):
    pair = asking.pair(0, "train", index)
    one, other = pair.frames
    assert one.time == other.time and one.action == other.action
    counts = len(one.faults), len(other.faults)
    right = "tie" if counts[0] == counts[1] else "AB"[counts[1] < counts[0]]
    assert pair.preference == right
    seen.add(right)
    for count, score in zip(counts, pair.scores, strict=True):
      assert 4 - min(count, 3) <= score <= 5 - min(count, 3)
      assert round(score, 2) == score
  assert seen == {"A", "B", "tie"}


@pytest.mark.parametrize(
  ("count", "low"), [(0, 4), (1, 3), (2, 2), (3, 1), (5, 1)]
)
def test_pseudo_scores_are_uniform_in_their_band(count, low):
  draws = Draws(count)
  found = [asking.pseudo_score(count, draws) for _ in range(600)]
  assert low <= min(found) < low + 0.05 and low + 0.95 < max(found) <= low + 1
  assert abs(np.mean(found) - low - 0.5) < 0.05


def test_answers_and_chains_name_every_fault():
  for index in range(40):
    one = asking.item(1, "train", index)
    answer = json.loads(one.answer)
    labels = [
      label
      for label in faults.FAULTS
      if label in {f.label for f in one.figure.faults}
    ]
    assert answer["labels"] == (labels or ["no distortion"])
    assert answer["score"] == one.pair.scores[index % 2]
    told = asking.chain(one.figure)
    for fault in one.figure.faults:
      assert fault.limb in told
    assert ("whole" in told) == (not labels)
    assert told.count(".") == 1 + max(1, len(labels))


def test_items_are_functions_of_seed_split_and_index():
  whole = [asking.item(2, "train", i) for i in range(20)]
  assert [asking.item(2, "train", i) for i in reversed(range(20))] == whole[
    ::-1
  ]
  assert len({repr(one.figure) for one in whole}) == 20
  for other in ((3, "train"), (2, "test")):
    assert asking.item(*other, 4) != whole[4]


def test_splits_share_no_frame():
  for number, split in enumerate(asking.SPLITS):
    for index in range(30):
      for one in asking.pair(0, split, index).frames:
        assert (one.action in OTHER_ACTIONS) == (split == "novel")
        assert split == "novel" or one.phase % 3 == number


def test_the_blind_baseline_is_low():
  asked = [asking.item(0, "train", i).asked for i in range(300)]
  assert items.baselines(asked)["frame"].blind < 0.35


def test_the_source_gives_what_it_promises():
  source = data.Figures(split="test", count=8, thoughts=True)
  examples = [source[i] for i in range(8)]
  assert [e.name for e in examples] == [*source.names()]
  assert [(e.question, e.answer) for e in examples] == [*source.pairs()]
  assert [(e.name, e.answers) for e in examples] == [*source.given()]
  for i, one in enumerate(examples):
    assert (one.extra["pair"], one.extra["side"]) == (i // 2, "AB"[i % 2])
    assert one.picture["image"].shape == (112, 112, 3)
    boxes = one.extra["boxes"]
    assert one.picture.get("region") == (boxes[0] if len(boxes) == 1 else None)
    assert json.loads(one.answer)["score"] == one.extra["score"]
    assert one.answers[0].endswith(f"<answer>{one.answer}</answer>")
  assert examples[0].extra["preference"] == examples[1].extra["preference"]


@pytest.mark.parametrize(
  ("option", "value", "message"),
  [
    ("split", "L1", "split: expected one of train, validation, test, novel"),
    ("count", 5, "count: expected an even number, .* found 5; ask for 6"),
    ("count", 0, "count: expected a whole number from 1"),
    ("seed", -1, "seed: expected a whole number from 0"),
    ("size", 64, "size: expected a multiple of 112"),
    ("prompt", "?", "prompt: expected a text with {question}"),
  ],
)
def test_an_option_without_such_a_value(option, value, message):
  options = {"split": "train", "count": 4, option: value}
  with pytest.raises(UserError, match=message) as found:
    data.Figures(**options)
  assert "\n" not in str(found.value)


def test_two_faults_may_be_drawn_in_any_order():
  """What is missing goes last, so that others find their limb."""
  for index in range(60):
    wrong = asking.item(0, "train", 2 * index).pair.clips[0].faults
    limbs = [f.limb for f in wrong if f.limb]
    assert len({*limbs}) == len(limbs)
    assert len({f.label for f in wrong}) == len(wrong)
    faults.strokes(dataclasses.replace(person(index), faults=wrong))
