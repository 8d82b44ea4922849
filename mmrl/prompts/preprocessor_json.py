"""Picture and video settings of a model directory, read and written."""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

from etils import epath

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES, VideoConfig
from mmrl.prompts.pictures import PictureConfig

_PICTURES = "preprocessor_config.json"
_VIDEOS = "video_preprocessor_config.json"
# Transformers 5 may put both into one file.
_BOTH = "processor_config.json"
# What is done to pictures; a model that needs something else isn't known.
_FIXED: Mapping[str, float] = {
  "do_resize": True,
  "do_rescale": True,
  "do_normalize": True,
  "resample": 3,  # bicubic
  "rescale_factor": 1 / 255,
}
# Far above what models have been shown.
_MOST_PIXELS = 2**30
_MOST_VIDEO_PIXELS = 2**37
_MOST_COLOUR = 1000.0
_MOST_RATE = 1000.0
_MOST_FRAMES = 2**20


def read(
  path: storage.Name, config: ModelConfig
) -> tuple[PictureConfig, VideoConfig]:
  """Reads a model's picture and video settings.

  Raises:
    UserError: if there are no such files, or they are for another model.
  """
  path = storage.path(path)
  try:
    picture, video = _build(*_files(path), config, path)
    _check_numbers(picture, video)
    return picture, video
  except (ArithmeticError, TypeError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path}: expected settings of pictures and videos; mistyped: {error};"
      f" mend {_PICTURES} or {_VIDEOS}"
    ) from error


def _check_numbers(picture: PictureConfig, video: VideoConfig) -> None:
  """Refuses sizes that would take all memory, or none.

  Raises:
    ValueError: naming the field.
  """
  for kind, budget, most in (
    ("pictures", picture, _MOST_PIXELS),
    ("videos", video, _MOST_VIDEO_PIXELS),
  ):
    low, high = budget.min_pixels, budget.max_pixels
    if not 0 < low <= high <= most:
      raise ValueError(
        f"min_pixels and max_pixels of {kind} are {low!r:.40} and"
        f" {high!r:.40}, not in this order and between 1 and {most}"
      )
  if len(picture.mean) != len(picture.std) or not all(
    abs(mean) <= _MOST_COLOUR and 0 < std <= _MOST_COLOUR
    for mean, std in zip(picture.mean, picture.std, strict=False)
  ):
    raise ValueError(
      f"image_mean and image_std are {picture.mean!s:.80} and"
      f" {picture.std!s:.80}, not as many numbers, and the latter above 0"
    )
  if not 0 < video.fps <= _MOST_RATE:
    raise ValueError(
      f"fps is {video.fps}, not above 0 and at most {_MOST_RATE}"
    )
  if not 0 <= video.frames <= _MOST_FRAMES:
    raise ValueError(
      f"num_frames is {video.frames!r:.40}, not between 0 and {_MOST_FRAMES}"
    )
  if not 0 < video.min_frames <= video.max_frames <= _MOST_FRAMES:
    raise ValueError(
      f"min_frames and max_frames are {video.min_frames!r:.40} and"
      f" {video.max_frames!r:.40}, not in this order and between 1 and"
      f" {_MOST_FRAMES}"
    )


def _files(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads settings of pictures and of videos, without nulls."""
  both = json_files.read(path / _BOTH, "") if (path / _BOTH).exists() else {}
  picture = json_files.part(both, "image_processor")
  if not picture:
    raw = json_files.read(path / _PICTURES, "picture settings")
    picture = json_files.without_nulls(raw)
  if (path / _VIDEOS).exists():
    raw = json_files.read(path / _VIDEOS, "video settings")
    return picture, json_files.without_nulls(raw)
  # As Transformers does: what holds for a picture holds for a frame.
  return picture, json_files.part(both, "video_processor") or picture


def _build(
  raw: Mapping[str, Any],
  raw_video: Mapping[str, Any],
  config: ModelConfig,
  path: epath.Path,
) -> tuple[PictureConfig, VideoConfig]:
  for settings in (raw, raw_video):
    _check(settings, config, path)
  default = dataclasses.asdict(PictureConfig())
  found = json_files.without_nulls(
    {"mean": raw.get("image_mean"), "std": raw.get("image_std")}
  )
  picture = json_files.build(PictureConfig, default | _pixels(raw) | found)
  for name, value in (("image_mean", picture.mean), ("image_std", picture.std)):
    other = raw_video.get(name, value)
    other = tuple(other) if isinstance(other, list) else other
    if other != tuple(value):
      raise UserError(
        f"{path}: expected the same {name} for pictures and videos, found"
        f" {value!r:.80} and {other!r:.80}"
      )
  default = dataclasses.asdict(FAMILIES[config.family].video)
  found = {k: v for k, v in raw_video.items() if k in default}
  if "num_frames" in raw_video:
    found["frames"] = raw_video["num_frames"]
  return picture, json_files.build(
    VideoConfig, default | found | _pixels(raw_video)
  )


def _pixels(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the pixel budget, which is written in either of two ways."""
  size = json_files.part(raw, "size")
  return json_files.without_nulls(
    {
      "min_pixels": raw.get("min_pixels", size.get("shortest_edge")),
      "max_pixels": raw.get("max_pixels", size.get("longest_edge")),
    }
  )


def _check(
  raw: Mapping[str, Any], config: ModelConfig, path: epath.Path
) -> None:
  tower = config.vision
  ours = {
    "patch_size": tower.patch_size,
    "temporal_patch_size": tower.temporal_patch_size,
    "merge_size": tower.spatial_merge_size,
  }
  for name, size in ours.items():
    if raw.get(name, size) != size:
      raise UserError(
        f"{path}: expected {name} {size} as in config.json, found"
        f" {raw[name]!r:.80} in the preprocessor's; the files belong"
        " to different models"
      )
  for name, value in _FIXED.items():
    found = raw.get(name, value)
    if isinstance(value, bool):
      equal = found is value
    else:
      equal = isinstance(found, int | float) and math.isclose(
        found, value, rel_tol=1e-3
      )
    if not equal:
      raise UserError(
        f"{path}: expected {name} {value!s:.8} of the preprocessor's, found"
        f" {found!r:.80}; pictures are always prepared so: use the published"
        " model's settings"
      )


def write(
  picture: PictureConfig,
  video: VideoConfig,
  config: ModelConfig,
  path: storage.Name,
) -> None:
  """Writes the settings where Transformers and vLLM look for them."""
  path = storage.path(path)
  family, tower = FAMILIES[config.family], config.vision
  shared = {
    "processor_class": family.processor,
    "patch_size": tower.patch_size,
    "temporal_patch_size": tower.temporal_patch_size,
    "merge_size": tower.spatial_merge_size,
    "image_mean": list(picture.mean),
    "image_std": list(picture.std),
  }
  frames: dict[str, Any] = {
    "min_frames": video.min_frames,
    "max_frames": video.max_frames,
  }
  if video.frames:
    # Null, or Transformers would take its own default besides.
    frames |= {"num_frames": video.frames, "fps": None}
  else:
    frames["fps"] = video.fps
  files = {
    _PICTURES: shared
    | _size(picture)
    | {"image_processor_type": family.image_processor},
    _VIDEOS: shared
    | _size(video)
    | frames
    | {"video_processor_type": family.video_processor},
  }
  for name, settings in files.items():
    storage.write_text(path / name, json.dumps(settings, indent=2) + "\n")
  # It would take precedence over these.
  (path / _BOTH).unlink(missing_ok=True)


def _size(config: PictureConfig | VideoConfig) -> dict[str, Any]:
  low, high = config.min_pixels, config.max_pixels
  return {
    "size": {"shortest_edge": low, "longest_edge": high},
    "min_pixels": low,
    "max_pixels": high,
  }
