"""Picture and video settings of a model directory, read and written."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

from mmrl.errors import UserError
from mmrl.models.config import ModelConfig
from mmrl.models.config_json import read_json
from mmrl.models.families import FAMILIES, VideoConfig
from mmrl.models.pictures import PictureConfig

_PICTURES = "preprocessor_config.json"
_VIDEOS = "video_preprocessor_config.json"
# Transformers 5 may put both into one file.
_BOTH = "processor_config.json"


def read(
  path: pathlib.Path, config: ModelConfig
) -> tuple[PictureConfig, VideoConfig]:
  """Reads how a model wants its pictures and videos.

  Raises:
    UserError: if there are no such files, or they are for another model.
  """
  both = read_json(path / _BOTH, "") if (path / _BOTH).exists() else {}
  raw = both.get("image_processor")
  if raw is None:
    raw = read_json(path / _PICTURES, "picture settings")
  if (path / _VIDEOS).exists():
    video = read_json(path / _VIDEOS, "video settings")
  else:
    # As Transformers does: what holds for a picture holds for a frame.
    video = both.get("video_processor", raw)
  for settings in (raw, video):
    _check(settings, config, path)
  default = PictureConfig()
  picture = PictureConfig(
    *_pixels(raw, default),
    tuple(raw.get("image_mean", default.mean)),
    tuple(raw.get("image_std", default.std)),
  )
  for name, value in (("image_mean", picture.mean), ("image_std", picture.std)):
    if tuple(video.get(name, value)) != value:
      raise UserError(
        f"{path}: expected the same {name} for pictures and videos, found"
        f" {value} and {tuple(video[name])}"
      )
  default = FAMILIES[config.family].video
  return picture, VideoConfig(
    *_pixels(video, default),
    fps=float(video.get("fps") or default.fps),
    frames=video.get("num_frames") or default.frames,
    min_frames=video.get("min_frames") or default.min_frames,
    max_frames=video.get("max_frames") or default.max_frames,
  )


def _pixels(raw: Mapping[str, Any], default) -> tuple[int, int]:
  size = raw.get("size") or {}
  return (
    raw.get("min_pixels") or size.get("shortest_edge") or default.min_pixels,
    raw.get("max_pixels") or size.get("longest_edge") or default.max_pixels,
  )


def _check(
  raw: Mapping[str, Any], config: ModelConfig, path: pathlib.Path
) -> None:
  tower = config.vision
  ours = {
    "patch_size": tower.patch_size,
    "temporal_patch_size": tower.temporal_patch_size,
    "merge_size": tower.spatial_merge_size,
  }
  for name, value in ours.items():
    if raw.get(name, value) != value:
      raise UserError(
        f"{path}: expected {name} {value} as in config.json, found {raw[name]}"
        " in the preprocessor's; the files belong to different models"
      )


def write(
  picture: PictureConfig,
  video: VideoConfig,
  config: ModelConfig,
  path: pathlib.Path,
) -> None:
  """Writes the settings where Transformers and vLLM look for them."""
  family, tower = FAMILIES[config.family], config.vision
  shared = {
    "processor_class": family.processor,
    "patch_size": tower.patch_size,
    "temporal_patch_size": tower.temporal_patch_size,
    "merge_size": tower.spatial_merge_size,
    "image_mean": list(picture.mean),
    "image_std": list(picture.std),
  }
  frames = {"min_frames": video.min_frames, "max_frames": video.max_frames}
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
    (path / name).write_text(json.dumps(settings, indent=2) + "\n")


def _size(config: PictureConfig | VideoConfig) -> dict[str, Any]:
  low, high = config.min_pixels, config.max_pixels
  return {
    "size": {"shortest_edge": low, "longest_edge": high},
    "min_pixels": low,
    "max_pixels": high,
  }
