"""Colours far apart for everybody, and boxes that find their tokens."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from mmrl import hub
from mmrl.errors import UserError
from mmrl.hub import config_json
from mmrl.models.families import FAMILIES
from mmrl.prompts import pictures
from mmrl.worlds import palette
from mmrl.worlds.figures import asking as figure_asking
from mmrl.worlds.figures import faults
from mmrl.worlds.kitchens import asking as kitchen_asking
from mmrl.worlds.kitchens import drawing
from mmrl.worlds.kitchens import questions as kitchen_questions
from mmrl.worlds.scenes import asking, scene

# How people see linear RGB who lack the long, middle or short cones: Machado,
# Oliveira and Fernandes, IEEE TVCG 15(6), 2009, severity 1.
SEEN_BY = {
  "all": np.eye(3),
  "protanopes": [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  "deuteranopes": [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
  "tritanopes": [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.303900],
  ],
}
_XYZ = [
  [0.4124, 0.3576, 0.1805],
  [0.2126, 0.7152, 0.0722],
  [0.0193, 0.1192, 0.9505],
]


def lab(colours, matrix):
  """CIELAB of sRGB colours as somebody sees them."""
  x = np.asarray(colours, float) / 255
  linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  linear = np.clip(linear @ np.array(matrix).T, 0, 1)
  xyz = linear @ np.array(_XYZ).T / [0.9505, 1, 1.089]
  f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  light, a, b = 116 * f[:, 1] - 16, f[:, 0] - f[:, 1], f[:, 1] - f[:, 2]
  return np.stack([light, 500 * a, 200 * b], -1)


@pytest.mark.parametrize("people", SEEN_BY)
def test_colours_are_far_apart(people):
  colours = lab([*palette.COLOURS.values()], SEEN_BY[people])
  grounds = lab(palette.GROUNDS, SEEN_BY[people])
  among = np.linalg.norm(colours[:, None] - colours, axis=-1)
  among += 1000 * np.eye(8)
  assert among.min() > 28
  assert np.linalg.norm(colours[:, None] - grounds, axis=-1).min() > 28


# The shipped model's directory, and one of every family that is published.
_HUB = pathlib.Path(hub.__file__).parent
MODELS = [
  "tiny",
  *(
    f"public/{f}_{s}"
    for f, s in (("qwen2_vl", "2b"), ("qwen2_5_vl", "3b"), ("qwen3_vl", "2b"))
  ),
]


def scene_boxes(size, index):
  options = asking.Options(size=size, kinds=("attribute",))
  (shown,) = asking.item(options, index).scenes
  return scene.render(shown), [thing.box for thing in shown.things]


def kitchen_boxes(size, index):
  options = kitchen_asking.Options("train", kitchen_questions.KINDS)
  one = kitchen_questions.item(options, index).kitchen
  at = {"size": size, "view": "above"}
  found = [drawing.thing_box(one, t.name, 3.0, **at) for t in one.things]
  found += [drawing.fixture_box(one, f, 3.0, **at) for f in one.plan.fixtures]
  return drawing.frame(one, 3.0, **at), [box for box in found if box]


def figure_boxes(size, index):
  shown = figure_asking.item(0, "train", index).figure
  found = [faults.fault_box(shown, i, size) for i in range(len(shown.faults))]
  return faults.render(shown, size), found


@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
  "world, count",
  # Several items of some, as one may have no box.
  [(scene_boxes, 25), (kitchen_boxes, 3), (figure_boxes, 8)],
)
def test_boxes_find_their_tokens_and_back(model, size, world, count):
  config = config_json.read(_HUB / model)
  vision = config.vision
  cell = vision.cell_size
  limits = pictures.PictureConfig(min_pixels=cell**2, max_pixels=10**6)
  boxes = 0
  for index in range(count):
    drawn, marked = world(size, index)
    picture = Image.fromarray(drawn)
    boxes += len(marked)
    for box in marked:
      found = pictures.cut(picture, limits, vision, "", box)
      rows, columns = (n // vision.spatial_merge_size for n in found.grid[1:])
      # The side of a token in pixels of the picture: the cell's, where the
      # picture's side is a multiple of it.
      token = size / columns
      assert size % cell or token == cell
      share = found.region.reshape(rows, columns)
      # From tokens back: as much area, and the smallest box of whole tokens.
      area = (box[2] - box[0]) * (box[3] - box[1])
      # A cell that a box only touches has a millionth; there are up to ten.
      assert share.sum() * token**2 == pytest.approx(
        area, rel=1e-5, abs=1e-5 * token**2
      )
      there = share > 1e-5
      ys, xs = (np.nonzero(there.any(axis))[0] for axis in (1, 0))
      back = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
      for edge, (cells, exact) in enumerate(zip(back, box, strict=True)):
        outside = cells * token - exact
        assert abs(outside) < token and (
          outside >= -1e-4 if edge > 1 else outside <= 1e-4
        )
  assert boxes > count / 2


def test_all_families_are_tried():
  names = {
    json.loads((_HUB / m / "config.json").read_text())["model_type"]
    for m in MODELS
  }
  assert names == {*FAMILIES}


@pytest.mark.parametrize(
  ("check", "message"),
  [
    (lambda: palette.check_size(100), "size: expected a multiple of 112"),
    (lambda: palette.check_size(1008), "size: expected a multiple of 112"),
    (lambda: palette.check_number("n", 2.0, 1, 5), "n: expected a whole num"),
    (lambda: palette.check_number("n", True, 1, 5), "n: expected a whole nu"),
    (lambda: palette.check_number("n", "1", 0.0, 1), "n: expected a number f"),
    (lambda: palette.check_number("n", float("nan"), 0.0, 1), "n: expected a"),
    (lambda: palette.check_flag("f", 1), "f: expected True or False, found 1"),
    (lambda: palette.check_one_of("s", "x", ["a", "b"]), "one of a, b, found"),
    (lambda: palette.check_list("s", "a", ["a"]), "s: expected a list of a"),
    (lambda: palette.check_list("s", ["b"], ["a"]), "s: expected one of a"),
    (lambda: palette.check_list("s", ["a"] * 2, ["a"]), "s: expected each"),
  ],
)
def test_a_value_that_is_none(check, message):
  with pytest.raises(UserError, match=message):
    check()
