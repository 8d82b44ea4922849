"""Picture and video settings of a directory: read, written, refused."""

import dataclasses
import json
import math

import pytest
import small_models

from mmrl.errors import UserError
from mmrl.models.families import FAMILIES
from mmrl.prompts import preprocessor_json
from mmrl.prompts.pictures import PictureConfig

PICTURES = "preprocessor_config.json"
VIDEOS = "video_preprocessor_config.json"
BOTH = "processor_config.json"
PICTURE = PictureConfig(100, 5000, (0.5, 0.25, 0.125), (1.0, 2.0, 3.0))
# What belongs to the small models.
TOWER = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}


@pytest.fixture(params=FAMILIES)
def config(request):
  return small_models.small_config(family=request.param)


def read(path, files, config=None):
  """Of a directory with these files."""
  for name, raw in files.items():
    (path / name).write_text(json.dumps(raw))
  return preprocessor_json.read(path, config or small_models.small_config())


def written(picture, video, config, path):
  preprocessor_json.write(picture, video, config, path)
  return [json.loads((path / name).read_text()) for name in (PICTURES, VIDEOS)]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"fps": 1.5},
    {"frames": 6},
    {"min_frames": 2, "max_frames": 16},
    {"min_pixels": 7, "max_pixels": 70_000_000_000},
  ],
)
def test_round_trip(tmp_path, config, changes):
  video = dataclasses.replace(FAMILIES[config.family].video, **changes)
  preprocessor_json.write(PICTURE, video, config, tmp_path)
  assert preprocessor_json.read(tmp_path, config) == (PICTURE, video)


def test_writing_over_other_settings(tmp_path, config):
  """A number of frames must not outlive its replacement by a rate, nor one file
  for both, which would hide the new settings."""
  video = FAMILIES[config.family].video
  fixed = dataclasses.replace(video, frames=6)
  preprocessor_json.write(PICTURE, fixed, config, tmp_path)
  old = {"image_processor": {"min_pixels": 1, "max_pixels": 2}}
  (tmp_path / BOTH).write_text(json.dumps(old))
  preprocessor_json.write(PictureConfig(), video, config, tmp_path)
  assert preprocessor_json.read(tmp_path, config) == (PictureConfig(), video)


def test_what_others_look_for(tmp_path, config):
  """Class names, the tower's numbers, both forms of the area."""
  video = dataclasses.replace(small_models.VIDEO, fps=1.5)
  pictures, videos = written(PICTURE, video, config, tmp_path)
  kinds = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
  }
  processor, video_processor = kinds[config.family]
  assert pictures["image_processor_type"] == "Qwen2VLImageProcessor"
  assert videos["video_processor_type"] == video_processor
  for raw, low, high in ((pictures, 100, 5000), (videos, 64, 1024)):
    assert raw["processor_class"] == processor
    assert {name: raw[name] for name in TOWER} == TOWER
    assert raw["size"] == {"shortest_edge": low, "longest_edge": high}
    assert (raw["min_pixels"], raw["max_pixels"]) == (low, high)
    assert raw["image_mean"] == [0.5, 0.25, 0.125]
    assert raw["image_std"] == [1.0, 2.0, 3.0]
  assert videos["fps"] == 1.5
  assert "num_frames" not in videos
  # Transformers refuses both; it has a rate unless that is null.
  video = dataclasses.replace(video, frames=6)
  _, videos = written(PICTURE, video, config, tmp_path)
  assert videos["num_frames"] == 6 and videos["fps"] is None


def test_nothing_said(tmp_path, config):
  """Pictures as Qwen2-VL's, videos as the family's."""
  picture, video = read(tmp_path, {PICTURES: {}}, config)
  assert (picture.min_pixels, picture.max_pixels) == (56 * 56, 28 * 28 * 1280)
  assert picture.mean == (0.48145466, 0.4578275, 0.40821073)
  assert picture.std == (0.26862954, 0.26130258, 0.27577711)
  side = 32 if config.family == "qwen3_vl" else 28
  assert (video.min_pixels, video.max_pixels) == (128 * side**2, 768 * side**2)
  assert (video.fps, video.frames) == (2.0, 0)
  assert (video.min_frames, video.max_frames) == (4, 768)


def size(low, high):
  return {"size": {"shortest_edge": low, "longest_edge": high}}


AREA = {"min_pixels": 100, "max_pixels": 200}


@pytest.mark.parametrize(
  "raw, wanted",
  [
    (AREA, (100, 200)),
    (size(100, 200), (100, 200)),
    # As Transformers does: the older names win.
    (size(1, 2) | AREA, (100, 200)),
    (size(100, 200) | dict.fromkeys(AREA), (100, 200)),
    (size(1, 200) | {"min_pixels": 100}, (100, 200)),
    ({"size": None, "min_pixels": 100}, (100, 28 * 28 * 1280)),
  ],
)
def test_forms_of_the_area(tmp_path, raw, wanted):
  picture, _ = read(tmp_path, {PICTURES: raw, VIDEOS: {}})
  assert (picture.min_pixels, picture.max_pixels) == wanted
  video = read(tmp_path, {PICTURES: {}, VIDEOS: raw})[1]
  default = FAMILIES["qwen2_5_vl"].video
  if "max_pixels" not in raw and "longest_edge" not in (raw["size"] or {}):
    wanted = wanted[0], default.max_pixels
  assert (video.min_pixels, video.max_pixels) == wanted


COLOURS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PARTS = {
  "image_processor": TOWER | size(100, 200) | COLOURS,
  "video_processor": TOWER | size(300, 400) | COLOURS | {"fps": 4},
  "processor_class": "Qwen2_5_VLProcessor",
}


@pytest.mark.parametrize(
  "files",
  [
    {PICTURES: TOWER | AREA | COLOURS},
    {BOTH: {"image_processor": PARTS["image_processor"]}},
  ],
)
def test_no_settings_of_videos(tmp_path, files):
  """Then the pictures' hold for them, as in the older files."""
  picture, video = read(tmp_path, files)
  assert picture.mean == (0.5, 0.5, 0.5)
  for settings in (picture, video):
    assert (settings.min_pixels, settings.max_pixels) == (100, 200)
  assert video.fps == 2.0


def test_one_file_for_both(tmp_path):
  """Transformers 5 may write this one instead of the others."""
  picture, video = read(tmp_path, {BOTH: PARTS})
  half = (0.5, 0.5, 0.5)
  assert picture == PictureConfig(100, 200, half, half)
  assert (video.min_pixels, video.max_pixels) == (300, 400)
  assert video.fps == 4.0


def test_one_file_that_has_neither(tmp_path):
  """Before Transformers 5 it held other things."""
  old = {"processor_class": "Qwen2_5_VLProcessor"}
  files = {BOTH: old, PICTURES: AREA, VIDEOS: {"fps": 3}}
  picture, video = read(tmp_path, files)
  assert (picture.min_pixels, picture.max_pixels) == (100, 200)
  assert video.fps == 3.0


# Refused.


def refused(path, files, *messages):
  with pytest.raises(UserError) as error:
    read(path, files)
  text = str(error.value)
  assert str(path) in text
  assert "\n" not in text
  for message in messages:
    assert message in text


def settings(raw):
  return {PICTURES: raw}


@pytest.mark.parametrize(
  "files, messages",
  [
    # Of another model.
    *[
      (
        {PICTURES: TOWER, VIDEOS: TOWER} | {file: TOWER | {name: 14}},
        [f"expected {name} {TOWER[name]} as in config.json, found 14"],
      )
      for name in TOWER
      for file in (PICTURES, VIDEOS)
    ],
    *[
      (
        {BOTH: PARTS | {part: PARTS[part] | {"patch_size": 14}}},
        ["expected patch_size 4", "found 14"],
      )
      for part in ("image_processor", "video_processor")
    ],
    # Videos of other colours.
    *[
      (
        {PICTURES: {name: [1.0] * 3}, VIDEOS: {name: [1.0, 1.0, 2.0]}},
        [
          f"the same {name} for pictures and videos, found (1.0, 1.0, 1.0) and"
          " (1.0, 1.0, 2.0)"
        ],
      )
      for name in ("image_mean", "image_std")
    ],
    # Videos alone don't make a model of pictures.
    *[
      (files, ["picture settings at ", f"/{PICTURES}, found no file"])
      for files in ({}, {VIDEOS: TOWER})
    ],
    # Mistyped.
    (settings({"image_mean": 0.5}), ["mean is 0.5"]),
    (settings({"image_mean": [0.5, "x"]}), ["mean is 'x'"]),
    (settings({"size": 5}), ["size is 5, not an object"]),
    (settings({"min_pixels": "5"}), ["min_pixels is '5'"]),
    (settings({"fps": "x"}), ["fps is 'x'"]),
    (settings({"num_frames": 1.5}), ["frames is 1.5"]),
    ({BOTH: {"image_processor": [1]}}, ["image_processor is [1]"]),
    # Absurd.
    (settings({"max_pixels": 10**12}), ["1000000000000, not in this order"]),
    (settings({"min_pixels": 9000, "max_pixels": 900}), ["9000 and 900, not"]),
    (settings({"min_pixels": 0}), ["min_pixels and max_pixels of pictures"]),
    (settings({"min_pixels": -5}), ["are -5 and"]),
    (settings({"max_pixels": True}), ["max_pixels is True"]),
    (settings({"size": []}), ["size is [], not an object"]),
    (settings({"image_std": [1, 0, 1]}), ["the latter above 0"]),
    (settings({"image_std": [1, 1, math.nan]}), ["std is nan"]),
    (settings({"image_mean": [0, 0]}), ["not as many numbers"]),
    (settings({"fps": 0}), ["fps is 0.0, not above 0"]),
    (settings({"fps": -1}), ["fps is -1.0, not above 0"]),
    (settings({"fps": math.inf}), ["fps is inf"]),
    (settings({"fps": 10**400}), ["fps is 1000"]),
    (settings({"rescale_factor": 10**400}), ["too large"]),
    (settings({"num_frames": 10**9}), ["num_frames is 1000000000, not"]),
    (settings({"min_frames": 9, "max_frames": 3}), ["9 and 3, not in this"]),
    # Not what is done to pictures.
    *[
      (settings({name: value}), [f"expected {name} ", f"found {value!r};"])
      for name, value in [
        ("do_resize", False),
        ("do_rescale", False),
        ("do_normalize", 0),
        ("resample", 2),
        ("resample", "bicubic"),
        ("rescale_factor", 1.0),
        ("rescale_factor", math.nan),
      ]
    ],
    (settings({"max_frames": 10**12}), ["min_frames and max_frames are"]),
  ],
)
def test_refused(tmp_path, files, messages):
  refused(tmp_path, files, *messages)


@pytest.mark.parametrize("name", [PICTURES, VIDEOS, BOTH])
@pytest.mark.parametrize(
  "content, message",
  [("{", "is not readable JSON"), ("[]", "expected a JSON object, found []")],
)
def test_broken_files(tmp_path, name, content, message):
  (tmp_path / PICTURES).write_text(json.dumps(TOWER))
  (tmp_path / name).write_text(content)
  refused(tmp_path, {}, str(tmp_path / name), message)


def test_whole_numbers_for_colours(tmp_path):
  raw = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
  picture, _ = read(tmp_path, {"preprocessor_config.json": raw})
  assert (picture.mean, picture.std) == ((0.0,) * 3, (1.0,) * 3)
