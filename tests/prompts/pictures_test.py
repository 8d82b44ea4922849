"""Pictures to patches, against Transformers' processor and by hand."""

import io

import numpy as np
from PIL import Image, ImageFile
import pytest
import small_models
from transformers import Qwen2VLImageProcessorPil

from mmrl.errors import UserError
from mmrl.models.families import sizes
from mmrl.prompts import pictures, regions
from prompts.unusual import unusual

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
  covered = regions.coverage(np.array([4.0, 0.0, 10.0, 6.0]), 8, (16, 16))
  # 4/8 * 6/8, then 2/8 * 6/8; the lower cells aren't reached.
  np.testing.assert_allclose(covered, [0.375, 0.1875, 0, 0])


def test_region_follows_the_picture_when_it_is_scaled():
  """128 x 128 shrinks to 64 x 64: the left half stays the left half."""
  picture = Image.fromarray(small_models.picture(128, 128))
  one = pictures.cut(
    picture, small_models.PICTURE, VISION, "<image>", (0, 0, 64, 128)
  )
  half = np.tile([1, 1, 1, 1, 0, 0, 0, 0], 8)
  # The cells on the right are touched.
  np.testing.assert_allclose(one.region, half, atol=2e-6)


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
  ],
  ids=range(12),
)
def test_broken_pictures_name_the_sample(source):
  with pytest.raises(UserError, match="sample 7: expected a readable picture"):
    pictures.read(source, "sample 7")


def refused(source, message):
  with pytest.raises(UserError, match=f"sample 7: .*{message}") as error:
    pictures.read(source, "sample 7")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "TIFF"])
def test_huge_pictures_are_refused_undecoded(kind, monkeypatch, tmp_path):
  """Of files, PIL images and arrays; by Pillow's limit, too."""
  path = tmp_path / "a.x"
  path.write_bytes(encoded(kind))
  monkeypatch.setattr(pictures, "MOST_PIXELS", 1599)
  array = np.zeros((40, 40), np.uint8)
  refused(array, r"found an array of uint8 \[40, 40\] with 1,600 \(40 x 40\)")
  decode = pytest.fail
  monkeypatch.setattr(Image.Image, "convert", decode)
  monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
  with Image.open(path) as lazy:
    for source in (path, lazy):
      refused(source, r"found .*a\.x with 1,600 \(40 x 40\); scale it down")
  for least in (1000, 100):  # where it warns, and where it refuses
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", least)
    refused(path, r"found .*a\.x with 1,600; scale it down")


def test_the_largest_pictures_are_read(monkeypatch):
  monkeypatch.setattr(pictures, "MOST_PIXELS", 1600)
  assert pictures.read(encoded("PNG"), "x").size == (40, 40)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_pictures_without_pixels(size):
  for source in (Image.new("RGB", size), np.zeros((*size, 3), np.uint8)):
    refused(source, r"expected a picture with pixels, found .* of \d x \d;")


@pytest.mark.parametrize(
  "kind, reason",
  [
    ("empty", "it is empty"),
    ("page", "in no format that Pillow reads"),
    ("half", "truncated"),
    ("none", "No such file"),
    *[(kind, "a folder, not a file") for kind in ("folder", "folder link")],
    *[(kind, "a pipe, socket or dev") for kind in ("fifo", "link", "device")],
  ],
)
def test_files_that_are_no_picture_are_named(kind, reason, tmp_path):
  """What isn't a regular file isn't opened, which would wait for ever."""
  path = unusual(tmp_path, kind, cut_short(encoded("PNG")))
  refused(path, f"found {path} \\(.*{reason}.*; repair or remove the sample")


@pytest.mark.parametrize(
  "source",
  [
    *[np.zeros((4, 4), kind) for kind in (np.float32, np.int32, np.int64)],
    np.zeros((4, 4, 3), np.float64),
    *[Image.new(mode, (4, 4)) for mode in ("I", "F")],
  ],
  ids=range(6),
)
def test_values_without_a_range(source):
  """Nothing says what white is."""
  refused(source, r"expected a picture of .*; scale it to ")


def test_floats_in_a_file(tmp_path):
  Image.new("F", (4, 4)).save(tmp_path / "f.tiff")
  refused(
    tmp_path / "f.tiff", r"8 or 16 bits .* found .*f\.tiff of 32 \(mode F\)"
  )


def test_deep_pictures_are_scaled(tmp_path):
  """16 bits: grey and colours, files and arrays; 255 is nearly black."""
  deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
  wanted = np.array([[0, 0, 1, 128, 255]])[..., None].repeat(3, axis=-1)
  for name in ("a.png", "a.tiff"):
    Image.fromarray(deep).save(tmp_path / name)
    found = pictures.read(tmp_path / name, "x")
    np.testing.assert_array_equal(found, wanted)
  colours = deep[..., None].repeat(3, axis=-1)
  for source in (deep, deep.astype(">u2"), colours, Image.fromarray(deep)):
    np.testing.assert_array_equal(pictures.read(source, "x"), wanted)


def test_pictures_for_print(tmp_path):
  """CMYK, which is none of the colours when all are 0."""
  inks = Image.new("CMYK", (8, 8))
  inks.save(tmp_path / "a.jpg", quality=100)
  for source in (inks, tmp_path / "a.jpg"):
    assert np.asarray(pictures.read(source, "x")).min() > 250


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff", "mpo", "avif"])
def test_the_first_of_several_pictures(kind, tmp_path, monkeypatch, capsys):
  """Said once per format, and not of a file with a single picture."""
  monkeypatch.setattr(pictures, "_said", set())
  first, others = Image.new("RGB", (16, 16), "red"), ["blue", "green"]
  frames = [Image.new("RGB", (16, 16), colour) for colour in others]
  path, single = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
  first.save(path, save_all=True, append_images=frames)
  first.save(single)
  for source in (single, path, path.read_bytes(), path):
    red = np.asarray(pictures.read(source, "sample 7"))[0, 0]
    assert (np.abs(red - [255.0, 0, 0]) < 4).all()
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 1
  assert "sample 7: a file of several pictures" in said[0]


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


@pytest.mark.parametrize(
  "mode, kinds",
  [
    ("RGBA", ["png", "webp", "tiff"]),
    ("LA", ["png"]),
    ("P", ["png", "gif"]),
    *[(mode, ["png"]) for mode in ("RGB", "L", "1", "I;16")],
  ],
)
def test_transparent_pictures_are_laid_on_white(mode, kinds, tmp_path):
  """Black on clear black: by alpha, palette or colour key; file or not."""
  clear = np.zeros((8, 8), bool)
  clear[:4] = True
  options = {}
  if mode in ("RGBA", "LA"):
    alpha = np.where(clear, 0, 255)[..., None]
    black = np.zeros((8, 8, len(mode) - 1), int)
    values = np.concatenate([black, alpha], -1).astype(np.uint8)
    picture = Image.fromarray(values, mode)
    sources = [values, picture]
  elif mode == "I;16":
    options["transparency"] = 9
    picture = Image.fromarray(np.where(clear, 9, 0).astype(np.uint16))
    sources = []
  else:
    white_key = Image.fromarray(np.where(clear, 255, 0).astype(np.uint8))
    picture = white_key.convert("P") if mode == "P" else white_key.convert(mode)
    options["transparency"] = (255, 255, 255) if mode == "RGB" else 255
    if mode == "P":
      picture.putpalette(bytes(768))
    sources = []
  for kind in kinds:
    path = tmp_path / f"a.{kind}"
    exact = {"lossless": True} if kind == "webp" else {}
    picture.save(path, **options, **exact)
    with Image.open(path) as opened:
      opened.load()
    sources += [path, path.read_bytes(), opened]
  wanted = np.where(clear, 255, 0)[..., None].repeat(3, axis=-1)
  for source in sources:
    np.testing.assert_array_equal(pictures.read(source, "x"), wanted)


def test_half_transparent_pictures(tmp_path):
  pixels = np.zeros((2, 2, 4), np.uint8)
  pixels[0, 0] = 10, 20, 30, 255
  pixels[1, 1] = 0, 0, 0, 128
  wanted = np.full((2, 2, 3), 255)
  wanted[0, 0] = 10, 20, 30
  wanted[1, 1] = 127
  picture = Image.fromarray(pixels)
  picture.save(tmp_path / "a.png")
  for source in (pixels, picture, tmp_path / "a.png"):
    np.testing.assert_array_equal(pictures.read(source, "x"), wanted)
