"""Pictures to patches, against Transformers' processor and by hand."""

import io

import numpy as np
from PIL import Image
import pytest
import small_models
from transformers import Qwen2VLImageProcessorPil

from mmrl.errors import UserError
from mmrl.models.families import sizes
from mmrl.prompts import pictures

VISION = small_models.small_config().vision

# Height x width: exact multiples, odd, too small, too large, thin.
SIZES = [
  *[(24, 40), (16, 16), (23, 41), (37, 19), (5, 7), (3, 150), (90, 131)],
  *[(64, 64), (65, 64), (12, 20)],
]


def reference(size: int = 4) -> Qwen2VLImageProcessorPil:
  return Qwen2VLImageProcessorPil(
    patch_size=size,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=small_models.PICTURE.min_pixels,
    max_pixels=small_models.PICTURE.max_pixels,
  )


@pytest.mark.parametrize("height, width", SIZES)
def test_patches_are_those_of_transformers(height, width):
  """Exact, resized or not: both resize with Pillow."""
  picture = Image.fromarray(small_models.picture(height, width))
  ours = pictures.cut(picture, small_models.PICTURE, VISION, "<image>")
  theirs = reference()(images=[picture], return_tensors="np")
  assert ours.grid == tuple(theirs["image_grid_thw"][0])
  # What is over the budget is shrunk.
  assert ours.shrunk == ((height, width) == (90, 131))
  assert len(ours.pixels) * 16 <= small_models.PICTURE.max_pixels
  np.testing.assert_array_equal(ours.pixels, theirs["pixel_values"])
  if (height % 8, width % 8) == (0, 0) and height * width <= 4096:
    # Nothing is resized, so the first value is known.
    red = np.asarray(picture)[0, 0, 0] / 255
    mean, std = small_models.PICTURE.mean[0], small_models.PICTURE.std[0]
    np.testing.assert_allclose(ours.pixels[0, 0], (red - mean) / std, rtol=1e-5)


@pytest.mark.parametrize("factor", [8, 28])
def test_sizes_are_those_of_transformers(factor):
  from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize,
  )

  rng = np.random.RandomState(0)
  for height, width in rng.randint(factor, 900, (200, 2)).tolist():
    size = height, width, factor, 3136, 50176
    assert sizes.fit(*size) == smart_resize(*size)


def test_merge_order_by_hand():
  """A 2 x 4 grid: the left block of four, then the right one."""
  order = pictures.merge_order((1, 2, 4), 2).tolist()
  left = [[0, 0], [0, 1], [1, 0], [1, 1]]
  assert order == [*left, [0, 2], [0, 3], [1, 2], [1, 3]]
  assert pictures.merge_order((2, 2, 2), 2).tolist() == left * 2


def test_windows_by_hand():
  """2 x 3 cells, windows of 2 x 2 cells: four cells, then the two right."""
  windows = pictures.window_lists((1, 4, 6), VISION)
  cells = [[0, 1, 3, 4], [2, 5]]
  wanted = [[4 * c + i for c in w for i in range(4)] for w in cells]
  assert [window.tolist() for window in windows] == wanted


def test_positions_of_frames():
  """Two frames of 1 x 2 tokens, three time steps apart, after position 7."""
  positions = pictures.visual_positions((2, 2, 4), 2, 7, interval=3.0)
  assert positions.tolist() == [[7, 7, 7], [7, 7, 8], [10, 7, 7], [10, 7, 8]]


def test_coverage_by_hand():
  """Cells of 8: columns [0,8) and [8,16), rows [0,8) and [8,16)."""
  covered = pictures.coverage(np.array([4.0, 0.0, 10.0, 6.0]), 8, (16, 16))
  # 4/8 * 6/8, then 2/8 * 6/8; the lower cells aren't reached.
  np.testing.assert_allclose(covered, [0.375, 0.1875, 0, 0])


def test_region_follows_the_picture_when_it_is_scaled():
  """128 x 128 shrinks to 64 x 64: the left half stays the left half."""
  picture = Image.fromarray(small_models.picture(128, 128))
  one = pictures.cut(
    picture, small_models.PICTURE, VISION, "<image>", (0, 0, 64, 128)
  )
  half = np.tile([1, 1, 1, 1, 0, 0, 0, 0], 8)
  np.testing.assert_array_equal(one.region, half)


def encoded(kind: str) -> bytes:
  file = io.BytesIO()
  Image.fromarray(small_models.picture(40, 40)).save(file, kind)
  return file.getvalue()


def cut_short(whole: bytes) -> bytes:
  return whole[: len(whole) // 2]


def test_sources_of_a_picture(tmp_path):
  pixels = small_models.picture(40, 40)
  path = tmp_path / "a.png"
  path.write_bytes(encoded("PNG"))
  picture = Image.fromarray(pixels)
  for source in (pixels, picture, path, str(path), path.read_bytes()):
    np.testing.assert_array_equal(pictures.read(source, "x"), pixels)


@pytest.mark.parametrize(
  "source",
  [
    b"",
    b"not a picture",
    b"\x89PNG\r\n\x1a\n" + bytes(40),
    *(cut_short(encoded(kind)) for kind in ("PNG", "JPEG", "GIF", "WEBP")),
    "no/such/file.png",
    ".",
    None,
    3,
    np.zeros((4, 4, 7), np.uint8),
    np.zeros((4, 4, 3), np.float32),
  ],
  ids=range(13),
)
def test_broken_pictures_name_the_sample(source):
  with pytest.raises(UserError, match="sample 7: expected a readable picture"):
    pictures.read(source, "sample 7")


def test_huge_pictures_name_the_sample(monkeypatch):
  """Pillow refuses what looks like a decompression bomb."""
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  test_broken_pictures_name_the_sample(encoded("PNG"))


def test_photographs_stand_upright(tmp_path):
  """As the camera says; a picture that was opened before is left alone."""
  exif = Image.Exif()
  exif[0x0112] = 6  # turned to the right
  pixels = small_models.picture(4, 6)
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path, exif=exif)
  upright = np.rot90(pixels, -1)
  for source in (path, path.read_bytes()):
    np.testing.assert_array_equal(pictures.read(source, "x"), upright)
  with Image.open(path) as opened:
    np.testing.assert_array_equal(pictures.read(opened, "x"), pixels)


def test_transparent_pictures_are_laid_on_white():
  pixels = np.zeros((2, 2, 4), np.uint8)
  pixels[0, 0] = 10, 20, 30, 255
  pixels[1, 1] = 0, 0, 0, 128
  wanted = np.full((2, 2, 3), 255)
  wanted[0, 0] = 10, 20, 30
  wanted[1, 1] = 127
  for source in (pixels, Image.fromarray(pixels)):
    np.testing.assert_array_equal(pictures.read(source, "x"), wanted)
