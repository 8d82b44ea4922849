"""Picture and video settings of a directory: read, written, refused."""

import dataclasses
import json

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
  """A number of frames must not outlive its replacement by a rate."""
  video = FAMILIES[config.family].video
  fixed = dataclasses.replace(video, frames=6)
  preprocessor_json.write(PICTURE, fixed, config, tmp_path)
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


def test_a_number_of_frames_rules_out_a_rate(tmp_path, config):
  """Transformers refuses both; it has a rate unless that is null."""
  video = dataclasses.replace(small_models.VIDEO, frames=6)
  _, videos = written(PICTURE, video, config, tmp_path)
  assert videos["num_frames"] == 6
  assert videos["fps"] is None


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


@pytest.mark.parametrize(
  "raw, wanted",
  [
    ({"min_pixels": 100, "max_pixels": 200}, (100, 200)),
    ({"size": {"shortest_edge": 100, "longest_edge": 200}}, (100, 200)),
    # As Transformers does: the older names win.
    (
      {
        "size": {"shortest_edge": 1, "longest_edge": 2},
        "min_pixels": 100,
        "max_pixels": 200,
      },
      (100, 200),
    ),
    (
      {
        "size": {"shortest_edge": 100, "longest_edge": 200},
        "min_pixels": None,
        "max_pixels": None,
      },
      (100, 200),
    ),
    (
      {"size": {"shortest_edge": 1, "longest_edge": 200}, "min_pixels": 100},
      (100, 200),
    ),
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


def test_no_settings_of_videos(tmp_path):
  """Then the pictures' hold for them, as in the older files."""
  raw = TOWER | {
    "min_pixels": 100,
    "max_pixels": 200,
    "image_mean": [0.0, 0.0, 1.0],
  }
  picture, video = read(tmp_path, {PICTURES: raw})
  assert picture.mean == (0.0, 0.0, 1.0)
  for settings in (picture, video):
    assert (settings.min_pixels, settings.max_pixels) == (100, 200)
  assert video.fps == 2.0


PARTS = {
  "image_processor": TOWER
  | {
    "size": {"shortest_edge": 100, "longest_edge": 200},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
  },
  "video_processor": TOWER
  | {
    "size": {"shortest_edge": 300, "longest_edge": 400},
    "fps": 4,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
  },
  "processor_class": "Qwen2_5_VLProcessor",
}


def test_one_file_for_both(tmp_path):
  """Transformers 5 may write this one instead of the others."""
  picture, video = read(tmp_path, {BOTH: PARTS})
  half = (0.5, 0.5, 0.5)
  assert picture == PictureConfig(100, 200, half, half)
  assert (video.min_pixels, video.max_pixels) == (300, 400)
  assert video.fps == 4.0


def test_one_file_for_pictures(tmp_path):
  """What holds for a picture holds for a frame."""
  parts = {"image_processor": PARTS["image_processor"]}
  picture, video = read(tmp_path, {BOTH: parts})
  for settings in (picture, video):
    assert (settings.min_pixels, settings.max_pixels) == (100, 200)


def test_one_file_that_has_neither(tmp_path):
  """Before Transformers 5 it held other things."""
  old = {"processor_class": "Qwen2_5_VLProcessor"}
  raw = {"min_pixels": 100, "max_pixels": 200}
  picture, video = read(
    tmp_path, {BOTH: old, PICTURES: raw, VIDEOS: {"fps": 3}}
  )
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


@pytest.mark.parametrize("name", TOWER)
@pytest.mark.parametrize("file", [PICTURES, VIDEOS])
def test_settings_of_another_model(tmp_path, file, name):
  files = {PICTURES: TOWER, VIDEOS: TOWER}
  files[file] = TOWER | {name: 14}
  message = f"expected {name} {TOWER[name]} as in config.json, found 14"
  refused(tmp_path, files, message)


@pytest.mark.parametrize("part", ["image_processor", "video_processor"])
def test_one_file_of_another_model(tmp_path, part):
  parts = PARTS | {part: PARTS[part] | {"patch_size": 14}}
  refused(tmp_path, {BOTH: parts}, "expected patch_size 4", "found 14")


@pytest.mark.parametrize("name", ["image_mean", "image_std"])
def test_videos_of_other_colours(tmp_path, name):
  files = {PICTURES: {name: [1.0] * 3}, VIDEOS: {name: [1.0, 1.0, 2.0]}}
  message = (
    f"the same {name} for pictures and videos, found (1.0, 1.0, 1.0) and"
  )
  refused(tmp_path, files, message, "(1.0, 1.0, 2.0)")


def test_missing_files(tmp_path):
  refused(tmp_path, {}, f"picture settings at {tmp_path / PICTURES}, found no")
  # Videos alone don't make a model of pictures.
  refused(tmp_path, {VIDEOS: TOWER}, f"{tmp_path / PICTURES}, found no file")


@pytest.mark.parametrize("name", [PICTURES, VIDEOS, BOTH])
@pytest.mark.parametrize(
  "content, message",
  [("{", "is not readable JSON"), ("[]", "expected a JSON object, found []")],
)
def test_broken_files(tmp_path, name, content, message):
  (tmp_path / PICTURES).write_text(json.dumps(TOWER))
  (tmp_path / name).write_text(content)
  refused(tmp_path, {}, str(tmp_path / name), message)


@pytest.mark.parametrize(
  "raw, message",
  [
    ({"image_mean": 0.5}, "mean is 0.5"),
    ({"image_mean": [0.5, "x"]}, "mean is 'x'"),
    ({"size": 5}, "size is 5, not an object"),
    ({"min_pixels": "5"}, "min_pixels is '5'"),
    ({"fps": "x"}, "fps is 'x'"),
    ({"num_frames": 1.5}, "frames is 1.5"),
  ],
)
def test_mistyped_settings(tmp_path, raw, message):
  refused(tmp_path, {"preprocessor_config.json": raw}, message)


def test_mistyped_parts_of_one_file(tmp_path):
  raw = {"image_processor": [1]}
  refused(tmp_path, {"processor_config.json": raw}, "image_processor is [1]")


def test_whole_numbers_for_colours(tmp_path):
  raw = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
  picture, _ = read(tmp_path, {"preprocessor_config.json": raw})
  assert (picture.mean, picture.std) == ((0.0,) * 3, (1.0,) * 3)


def test_saving_over_one_file_for_both(tmp_path):
  """It would hide the new settings."""
  config = small_models.small_config()
  old = {"image_processor": {"min_pixels": 1, "max_pixels": 2}}
  (tmp_path / "processor_config.json").write_text(json.dumps(old))
  picture = PictureConfig(100, 200)
  preprocessor_json.write(picture, small_models.VIDEO, config, tmp_path)
  assert preprocessor_json.read(tmp_path, config)[0] == picture
