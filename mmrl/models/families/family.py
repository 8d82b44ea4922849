"""Model family: how its models are stored and shown videos."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from jaxtyping import Int
import numpy as np

from mmrl.models.config import VisionConfig

# Frames, patch rows and patch columns of a picture or video.
Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class VideoConfig:
  """Settings for taking frames from a video and scaling them.

  Attributes:
    fps: frames per second to take.
    frames: number of frames to take instead, whatever the video's length; 0
      leaves it to `fps`.
    min_frames, max_frames: bounds where `fps` decides.
    min_pixels, max_pixels: the area a frame is scaled into; for families that
      budget the whole video, the area of all frames together.
    side: of the square that every frame is scaled to instead; 0 for none.
    uniform: whether frames are taken as `uniform_frames` says, not as the
      family does.
  """

  min_pixels: int
  max_pixels: int | float
  fps: float = 2.0
  frames: int = 0
  min_frames: int = 4
  max_frames: int = 768
  side: int = 0
  uniform: bool = False


def uniform_frames(
  total: int, fps: float, config: VideoConfig, span: int
) -> Int[np.ndarray, "frames"]:
  """Samples a multiple of `span` frames, from the first to the last.

  Their number is that of `fps`, at least `min_frames`, at most `max_frames` and
  all there are, rounded down; indices are evenly spaced, rounded half to even.

  Args:
    total: frames of the video.
    fps: its frames per second.
    config: how many to take.
    span: frames of a patch.

  Raises:
    ValueError: if the video has fewer frames than a patch.

  Reference: qwen-vl-utils, as SEED-Bench-R1 (arXiv 2503.24376) has it.
  """
  most = min(config.max_frames, total) // span * span
  wanted: float = config.frames
  if total and not wanted:
    wanted = max(total / fps * config.fps, config.min_frames)
  count = int(min(wanted, most) // span * span)
  if not 0 < count <= total:
    raise ValueError(
      f"expected a video of at least {max(count, span)} frames, found {total}"
    )
  return np.linspace(0, total - 1, count).round().astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Span:
  """Contiguous run of visual tokens in a prompt.

  Attributes:
    text: its text, in which one placeholder stands for the run.
    grid: frames, patch rows and patch columns of the run.
    interval: time positions between its frames.
  """

  text: str
  grid: Grid
  interval: float = 1.0


@dataclasses.dataclass(frozen=True)
class Family:
  """Model family; no code outside of this folder refers to one by name.

  Attributes:
    model_type: in config.json.
    architecture, processor, image_processor, video_processor: the classes
      that Transformers and vLLM look for.
    text: (the decoder's part of config.json) -> fields of `TextConfig` that
      have other names there, or that the family fixes.
    text_json: fields that such a config.json has besides.
    vision: (vision_config) -> the same for `VisionConfig`.
    vision_json: (VisionConfig) -> vision_config.
    tensors: our module paths -> Hugging Face's names as published; "{}" is
      the number of a layer.
    video: budget where the model's directory has none.
    sample_frames: (frames of the video, its frames per second, config, frames
      of a patch) -> indices of the frames to take.
    fit_video: (frames taken, height, width, cell size, frames of a patch,
      config) -> (height, width) that they are scaled to.
    video_spans: (grid, time of each frame in seconds, frames per second of
      those taken, tower, placeholder, start mark, end mark) -> spans.
  """

  model_type: str
  architecture: str
  processor: str
  image_processor: str
  video_processor: str
  text: Callable[[Mapping[str, Any]], dict[str, Any]]
  text_json: Mapping[str, Any]
  vision: Callable[[Mapping[str, Any]], dict[str, Any]]
  vision_json: Callable[[VisionConfig], dict[str, Any]]
  tensors: Mapping[str, str]
  video: VideoConfig
  sample_frames: Callable[
    [int, float, VideoConfig, int], Int[np.ndarray, "frames"]
  ]
  fit_video: Callable[[int, int, int, int, int, VideoConfig], tuple[int, int]]
  video_spans: Callable[..., list[Span]]


def nested(name: str) -> str:
  """Nests a tensor's name: tower and decoder inside of `model`.

  So Transformers 5 names them for all families.
  """
  if name.startswith("visual."):
    return "model." + name
  if name.startswith("model.") and not name.startswith(
    ("model.language_model.", "model.visual.")
  ):
    return name.replace("model.", "model.language_model.", 1)
  return name
