"""Tests of the reward of boxes."""

import numpy as np
import pytest

from mmrl import data, hub
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.rewards import box_iou, boxes


def make_example(picture=None):
  content = []
  if picture is not None:
    content = [{"type": "image", "image": picture}]
  messages = [{"role": "user", "content": content}]
  return Example("file:1", "where?", messages, "")


def iou(given, right, picture=None, **options):
  texts = [[f"<answer>{given}</answer>"]]
  found = box_iou(texts, [right], [make_example(picture)], **options)
  assert found.dtype == np.float32 and found.shape == (1, 1)
  return found[0, 0]


@pytest.mark.parametrize(
  ("text", "box"),
  [
    ("[10, 20, 110, 220]", (10, 20, 110, 220)),
    ("10 20 110.5 220", (10, 20, 110.5, 220)),
    ("(10,20),(110,220)", (10, 20, 110, 220)),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "cat 2"}', (1, 2, 3, 4)),
    ("{'bbox_2d': [1, 2, 3, 4]}", (1, 2, 3, 4)),
    ("<|box_start|>(1,2),(3,4)<|box_end|>", (1, 2, 3, 4)),
    ("[-1, 2, 3, 4]", (-1, 2, 3, 4)),
    ("[1, 2, 3]", None),
    ("[1, 2, 3, 4], [1, 2, 3, 5]", None),
    ("[3, 2, 1, 4]", None),
    ("[1, 4, 3, 4]", None),
    ("red", None),
  ],
)
def test_parse(text, box):
  assert boxes.parse(text) == box


@pytest.mark.parametrize(
  ("given", "value"),
  [
    ("[0, 0, 10, 10]", 1),
    ("[0, 0, 10, 5]", 0.5),
    ("[5, 5, 15, 15]", 25 / 175),
    ("[10, 0, 20, 10]", 0),
    ("[20, 20, 30, 30]", 0),
    ("[2, 2, 4, 4]", 0.04),
    ("no", 0),
  ],
)
def test_overlap_by_hand(given, value):
  np.testing.assert_allclose(iou(given, "[0, 0, 10, 10]"), value, rtol=1e-6)


def test_threshold():
  right = "[0, 0, 10, 10]"
  assert iou("[0, 0, 10, 5]", right, threshold=0.5) == 1
  assert iou("[0, 0, 10, 5]", right, threshold=0.51) == 0
  box_iou.check(threshold=1.0)
  for threshold in (-0.1, 1.1):
    with pytest.raises(UserError, match=rf"in \[0, 1\], found {threshold}"):
      box_iou.check(threshold=threshold)


def test_thousandths_of_a_picture():
  picture = np.zeros((100, 200, 3), np.uint8)
  right = "[20, 50, 100, 100]"
  given = "[100, 500, 500, 1000]"
  assert iou(given, right, picture, units="thousandths") == 1
  assert iou(given, right, picture) == 0
  with pytest.raises(
    UserError, match="^file:1: expected a picture, whose size"
  ):
    iou(given, right, units="thousandths")


def test_a_right_answer_that_is_no_box_is_refused():
  with pytest.raises(UserError, match="^file:1: expected a box .* found 'red'"):
    iou("[1, 2, 3, 4]", "red")
  assert iou("[1, 2, 3, 4]", "") == 0


def test_pixels_of_the_picture_as_it_is_shown():
  picture = np.zeros((100, 200, 3), np.uint8)
  right = "[20, 50, 100, 100]"
  example = make_example(picture)
  processor = hub.load("tiny").processor
  encoded, cuts = data.encode(example, processor, 10)
  # Multiples of 16 pixels within the tiny model's budget.
  assert encoded.shown == ((176, 80),)
  assert cuts.cuts[0].grid == (1, 80 // 8, 176 // 8)
  texts = [["<answer>[17.6, 40, 88, 80]</answer>", f"<answer>{right}</answer>"]]
  found = box_iou(texts, [right], [encoded], units="resized")
  np.testing.assert_allclose(found, [[1, 0.427136]], rtol=1e-5)
  with pytest.raises(
    UserError, match="^file:1: expected a picture, whose size"
  ):
    box_iou(texts, [right], [example], units="resized")
