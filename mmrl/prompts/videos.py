"""Videos to frames, and frames to patches."""

from collections.abc import Callable
import dataclasses
import io
import math
import os
from typing import Any

import av
from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image

from mmrl import storage
from mmrl.errors import UserError
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES, VideoConfig
from mmrl.prompts import pictures
from mmrl.prompts.pictures import Cut, PictureConfig

# (frames of a video, its frames per second) -> which to take.
Sample = Callable[[int, float], Int[np.ndarray, "frames"]]


@dataclasses.dataclass(frozen=True)
class Clip:
  """Frames taken from a video.

  Attributes:
    frames: RGB.
    seconds: time of each in the video.
    fps: frames taken per second of video.
  """

  frames: UInt8[np.ndarray, "frames height width 3"]
  seconds: Float[np.ndarray, "frames"]
  fps: float


def read(source: Any, name: str, sample: Sample, fps: float) -> Clip:
  """Reads frames of a video: a file, its bytes, or the frames themselves.

  Args:
    source: path (local, or gs://) or bytes of a file that FFmpeg reads; or
      frames taken already, as a uint8 array [frames, height, width, 3] or a
      list of pictures (arrays, PIL images, paths or bytes).
    name: what to call the sample in an error.
    sample: which frames of a file to take.
    fps: of frames that were taken already; 0 if that isn't known.

  Raises:
    UserError: if there is no such file, nothing in it can be decoded, or
      its frames have no times.
  """
  if isinstance(source, str | os.PathLike | bytes):
    return _decode(source, name, sample)
  frames = [np.asarray(pictures.read(frame, name)) for frame in source]
  if not frames:
    raise UserError(f"{name}: expected a video with frames, found none")
  found = sorted({frame.shape[:2] for frame in frames})
  if len(found) > 1:
    raise UserError(
      f"{name}: expected frames of one size, found heights and widths"
      f" {found[:4]}; scale them alike"
    )
  if fps <= 0:
    raise UserError(
      f"{name}: expected the time of a video's frames, found frames without"
      ' timestamps; give the part "fps", the frames per second that they are'
    )
  return Clip(np.stack(frames), np.arange(len(frames)) / fps, fps)


def _decode(source: storage.Name | bytes, name: str, sample: Sample) -> Clip:
  shown = "bytes" if isinstance(source, bytes) else str(source)
  try:
    source = storage.fetched(source)
    total, rate = _headline(source)
    clip = _take(source, total, rate, sample) if total else None
    if clip is None:
      # No count, or one that is too high: the file breaks off.
      total, rate = _measure(source)
      clip = _take(source, total, rate, sample) if total and rate else None
  except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
    raise UserError(
      f"{name}: expected a readable video, found {shown:.200} ({error});"
      " repair or remove the sample"
    ) from error
  if not total:
    raise UserError(
      f"{name}: expected a video, found {shown:.200} with no frame that can"
      " be decoded; repair or remove the sample"
    )
  if clip is None:
    raise UserError(
      f"{name}: expected a video with timestamps, found {shown:.200} without"
      " any; put it into a container (such as .mp4) that has them, or pass"
      ' its frames and "fps"'
    )
  return clip


def _open(source: storage.Name | bytes):
  stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
  container = av.open(stream)
  if not container.streams.video:
    container.close()
    raise ValueError("no video stream")
  # Frames are decoded on all cores, which changes none of their values.
  container.streams.video[0].thread_type = "AUTO"
  return container


def _headline(source) -> tuple[int, float]:
  """Reads the container's frame count and frames per second; 0 if missing."""
  with _open(source) as container:
    stream = container.streams.video[0]
    return stream.frames, float(stream.average_rate or 0)


def _measure(source) -> tuple[int, float]:
  """Counts frames and measures frames per second by decoding all frames.

  The rate is 0 if they have no times.
  """
  total, times = 0, []
  with _open(source) as container:
    stream = container.streams.video[0]
    try:
      for frame in container.decode(stream):
        total += 1
        times += [] if frame.time is None else [frame.time]
    except av.error.FFmpegError:
      pass  # A file that breaks off is a video up to there.
    rate = float(stream.average_rate or 0)
  if len(times) < 2 or times[-1] <= times[0]:
    return total, rate if times else 0.0
  return total, rate or (len(times) - 1) / (times[-1] - times[0])


def _take(source, total: int, rate: float, sample: Sample) -> Clip | None:
  """Decodes the wanted frames; None if some are missing or lack times."""
  if not rate:
    return None
  indices = sample(total, rate)
  wanted = set(indices.tolist())
  kept = {}
  with _open(source) as container:
    try:
      for number, frame in enumerate(container.decode(video=0)):
        if number in wanted and frame.pts is not None:
          kept[number] = frame.to_ndarray(format="rgb24")
        if number >= indices[-1]:
          break
    except av.error.FFmpegError:
      return None
  if len(kept) < len(wanted):
    return None
  frames = np.stack([kept[i] for i in indices.tolist()])
  return Clip(frames, indices / rate, len(indices) / total * rate)


def cut(
  clip: Clip,
  video: VideoConfig,
  picture: PictureConfig,
  config: ModelConfig,
  marks: tuple[str, str, str],
) -> Cut:
  """Scales a clip into its budget and cuts it into patches.

  Args:
    clip: the frames.
    video: pixel budget.
    picture: normalisation.
    config: the model.
    marks: texts of placeholder, start and end tokens.

  Raises:
    ValueError: if the frames' shape can't be scaled into the budget.
  """
  tower, family = config.vision, FAMILIES[config.family]
  count, *size = clip.frames.shape[:3]
  shape = (count, *size, tower.cell_size, tower.temporal_patch_size)
  height, width = family.fit_video(*shape, video)
  unbounded = dataclasses.replace(video, max_pixels=math.inf)
  scaled = [
    np.asarray(pictures.scale(Image.fromarray(frame), height, width))
    for frame in clip.frames
  ]
  # Not as for pictures, where Transformers divides by 255 first: this order
  # rounds as its video processors do.
  mean, std = (
    np.float32(255) * np.array(x, np.float32)
    for x in (picture.mean, picture.std)
  )
  values = (np.stack(scaled).astype(np.float32) - mean) / std
  pixels, grid = pictures.patchify(values, tower)
  cells = math.prod(grid) // tower.spatial_merge_size**2
  return Cut(
    kind="video",
    pixels=pixels,
    grid=grid,
    spans=tuple(
      family.video_spans(grid, clip.seconds, clip.fps, tower, *marks)
    ),
    shrunk=(height, width) != family.fit_video(*shape, unbounded),
    region=np.zeros(cells, np.float32),
  )
