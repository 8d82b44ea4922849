"""Attention over pictures, and pictures of a question."""

import jaxtyping
import numpy as np
from PIL import Image
import pytest
from small_models import clip, picture

from mmrl.report import drawing

NAN = float("nan")


@pytest.mark.parametrize("tone", [0, 128, 255])
def test_overlay_changes_most_where_heat_is(tone):
  picture = np.full((64, 64, 3), tone, np.uint8)
  heat = np.zeros((8, 8))
  heat[2, 5] = 7.0
  image, large = (
    np.asarray(drawing.overlay(picture, heat * scale, size=256), np.int64)
    for scale in (1e-6, 1e6)
  )
  # The heat's scale says nothing.
  assert np.abs(image - large).max() <= 1
  change = np.abs(image - tone).sum(-1)
  cells = change.reshape(8, 32, 8, 32).mean((1, 3))
  assert np.unravel_index(cells.argmax(), cells.shape) == (2, 5)
  assert not cells[5:].any()


@pytest.mark.parametrize("shape", [(64, 64), (40, 64), (1000, 700), (1, 300)])
def test_overlay_without_heat_is_the_picture(shape):
  picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  nothing = drawing.overlay(picture, np.zeros((3, 5)))
  negative = drawing.overlay(picture, np.full((3, 5), -1.0))
  broken = drawing.overlay(picture, np.full((3, 5), NAN))
  assert max(nothing.size) == 256
  assert nothing.tobytes() == negative.tobytes() == broken.tobytes()
  if shape == (64, 64):
    crisp = picture.repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(np.asarray(nothing), crisp)


@pytest.mark.parametrize(
  "region", [(16, 16, 48, 32), (0, 0, 64, 64), (-9, 50, 90, 99), (80, 1, 99, 2)]
)
def test_overlay_outlines_the_region(region):
  picture = np.full((64, 64, 3), 90, np.uint8)
  image = drawing.overlay(picture, np.zeros((2, 2)), region=[region])
  pixels = np.asarray(image)
  assert (pixels == 255).any()
  if region[0] == 16:
    rows, columns = np.where(pixels[..., 0] == 255)
    assert (rows.min(), rows.max()) == (64, 128)
    assert (columns.min(), columns.max()) == (64, 192)


@pytest.mark.parametrize(
  ("picture", "heat"),
  [
    (np.zeros((8, 8, 4), np.uint8), np.ones((2, 2))),
    (np.zeros((8, 8, 3), np.float32), np.ones((2, 2))),
    (np.zeros((8, 8, 3), np.uint8), np.ones(4)),
    (np.zeros((8, 8, 3), np.uint8), np.ones((0, 2))),
  ],
)
def test_overlay_refuses_other_shapes(picture, heat):
  # In tests the annotations refuse first, with a type error.
  with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
    drawing.overlay(picture, heat)


@pytest.mark.parametrize("tone", [60, 128, 200])
def test_grey_stays_grey_where_there_is_no_more_than_usual(tone):
  """Of a real map: somewhere much, and everywhere else some."""
  grey = np.full((64, 64, 3), tone, np.uint8)
  heat = np.random.default_rng(0).uniform(0.01, 0.02, (8, 8))
  heat[2, 5] = 0.4
  drawn = np.asarray(drawing.overlay(grey, heat, size=256)).astype(int)
  # Bicubic weights reach two cells.
  away = np.ones((256, 256), bool)
  away[: 5 * 32, 3 * 32 : 8 * 32] = False
  assert (drawn[away] == tone).all()
  colour = drawn.max(-1) - drawn.min(-1)
  assert colour[2 * 32 + 16, 5 * 32 + 16] > 90


def test_uniform_attention_is_not_drawn():
  """Nor is what is nearly so drawn in full."""
  grey = np.full((64, 64, 3), 128, np.uint8)
  heat = np.full((8, 8), 0.1)
  flat = np.asarray(drawing.overlay(grey, heat)).astype(int)
  assert (flat == 128).all()
  heat[2, 5] = 0.12
  faint = np.asarray(drawing.overlay(grey, heat)).astype(int)
  heat[2, 5] = 0.5
  strong = np.asarray(drawing.overlay(grey, heat)).astype(int)
  changes = [np.abs(one - 128).max() for one in (faint, strong)]
  assert 0 < changes[0] < changes[1] / 3


def test_pictures_on_one_scale_are_compared():
  grey = np.full((64, 64, 3), 128, np.uint8)
  heat = np.zeros((2, 4, 4))
  heat[0, 1, 1], heat[1, 1, 1] = 1.0, 0.3
  scale = drawing.span(heat)
  one, two = (
    np.abs(np.asarray(drawing.overlay(grey, x, scale=scale)) - 128.0).max()
    for x in heat
  )
  assert 0 < two < one / 2


def test_a_question_without_pictures():
  assert drawing.question([], "q") is None


def test_a_single_picture_is_as_it_is():
  pixels = picture(40, 64)
  found = drawing.question([{"type": "image", "image": pixels}], "q")
  np.testing.assert_array_equal(np.asarray(found), pixels)


def test_a_video_is_a_strip_of_a_few_frames():
  """First and last among them, beside a picture of another size."""
  video = clip(9, 32, 48, fps=2.0)
  found = np.asarray(drawing.question([video], "q"))
  height, width = 256, 384
  assert found.shape == (height, 4 * width + 3 * drawing._GAP, 3)
  for place, frame in ((0, 0), (1, 3), (3, 8)):
    start = place * (width + drawing._GAP)
    wanted = Image.fromarray(video["video"][frame])
    wanted = wanted.resize((width, height), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found[:, start : start + width], wanted)
  parts = [{"type": "image", "image": picture(64, 64)}, video]
  more = drawing.question(parts, "q")
  assert more.size == (256 + drawing._GAP + found.shape[1], 256)
