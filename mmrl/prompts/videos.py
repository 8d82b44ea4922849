"""Videos to frames, and frames to patches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import io
import math
import os
from typing import Any

import av
from av.stream import Disposition
from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image

from mmrl import storage
from mmrl.errors import UserError, tell
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES, VideoConfig, sizes
from mmrl.prompts import files, pictures
from mmrl.prompts.pictures import Cut, PictureConfig

# (frames of a video, its frames per second) -> which to take.
Sample = Callable[[int, float], Int[np.ndarray, "frames"]]
# (frames taken, their height and width) -> height and width to scale them to.
Fit = Callable[[int, int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Clip:
  """Frames taken from a video.

  Attributes:
    frames: RGB, scaled already or not.
    seconds: time of each in the video.
    fps: frames taken per second of video.
    size: height and width of the video itself.
  """

  frames: UInt8[np.ndarray, "frames height width 3"]
  seconds: Float[np.ndarray, "frames"]
  fps: float
  size: tuple[int, int]


def fit(video: VideoConfig, config: ModelConfig) -> Fit:
  """Returns what fits frames into a pixel budget.

  Args:
    video: the budget.
    config: the model.
  """
  tower, family = config.vision, FAMILIES[config.family]
  cell, span = tower.cell_size, tower.temporal_patch_size
  if video.side:
    square = sizes.square(video.side, cell)
    return lambda count, height, width: square
  return lambda count, height, width: family.fit_video(
    max(count, span), height, width, cell, span, video
  )


def read(
  source: Any, name: str, sample: Sample, fps: float, fit: Fit | None = None
) -> Clip:
  """Reads frames of a video: a file, its bytes, or the frames themselves.

  Frames of a file are turned and mirrored as its display matrix says. Where
  they come at an uneven rate, those are taken that are shown at the times of
  the frames that an even rate would have. Of a file that breaks off, what
  there is is the video, and a line on stderr says so.

  Args:
    source: path (local, or gs://) or bytes of a file that FFmpeg reads; or
      frames taken already, as a uint8 array [frames, height, width, 3] or a
      list of pictures (arrays, PIL images, paths or bytes).
    name: what to call the sample in an error.
    sample: which frames of a file to take.
    fps: of frames that were taken already; 0 if that isn't known.
    fit: scales each frame of a file as it is decoded, so that memory is in
      proportion to the pixel budget; None keeps them as they are.

  Raises:
    UserError: if there is no such file, it is no regular file, nothing in it
      can be decoded, or its frames have no times.
  """
  if isinstance(source, str | os.PathLike | bytes):
    return _decode(source, name, sample, fit)
  dimensions = source.ndim if isinstance(source, np.ndarray) else 4
  if dimensions != 4 or not isinstance(source, Iterable):
    raise UserError(
      f"{name}: expected a video's path, bytes, pictures or an array [frames,"
      f" height, width, 3], found {files.shown(source)}; pass one of these"
    )
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
  seconds = np.arange(len(frames)) / fps
  return Clip(np.stack(frames), seconds, fps, found[0])


@dataclasses.dataclass(frozen=True)
class _Track:
  """Properties of a file's frames, known before they are taken.

  Attributes:
    total: how many there are.
    rate: frames per second, on average; 0 if they have no times.
    times: of each, in seconds, if the rate is uneven; else empty.
    seconds: from the first to the end of the last.
  """

  total: int
  rate: float
  times: Float[np.ndarray, "frames"]
  seconds: float = 0.0


def _track(total: int, rate: float, times: Sequence[float]) -> _Track:
  """Makes a track, uneven if a frame is off its time by one frame or more."""
  ordered = np.sort(np.array(times, np.float64))
  span = ordered[-1] - ordered[0] if len(ordered) else 0.0
  if len(ordered) != total or total < 3 or span <= 0:
    return _Track(total, rate, np.zeros(0))
  ordered -= ordered[0]
  measured = (total - 1) / span
  seconds = total / measured
  if np.abs(ordered * measured - np.arange(total)).max() < 1:
    return _Track(total, rate, np.zeros(0), seconds)
  return _Track(total, measured, ordered, seconds)


def _decode(
  source: storage.Name | bytes, name: str, sample: Sample, fit: Fit | None
) -> Clip:
  shown = files.shown(source)
  try:
    source = files.fetched(source)
    track, duration = _headline(source)
    promised = track.total
    clip = _take(source, track, sample, fit) if track.total else None
    if clip is None:
      # No count, or one that is too high: the file breaks off.
      track = _measure(source)
      usable = track.total and track.rate
      clip = _take(source, track, sample, fit) if usable else None
      short = 0 < track.seconds < 0.9 * duration
      if clip and (short or track.total < 0.9 * promised):
        tell(
          f"{name}: {shown} breaks off or was trimmed: it is shorter than it"
          f" says, and the {track.total} frames that it has are used"
        )
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
    raise UserError(
      f"{name}: expected a readable video, found {shown}"
      f" ({files.reason(error)}); repair or remove the sample"
    ) from error
  if not track.total:
    raise UserError(
      f"{name}: expected a video, found {shown} with no frame that can"
      " be decoded; repair or remove the sample"
    )
  if clip is None:
    raise UserError(
      f"{name}: expected a video with timestamps, found {shown} without"
      " any; put it into a container (such as .mp4) that has them, or pass"
      ' its frames and "fps"'
    )
  return clip


@contextlib.contextmanager
def _open(source: storage.Name | bytes) -> Iterator[tuple[Any, Any]]:
  """Yields a container and its video; the cover of a song is none."""
  stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
  with av.open(stream) as container:
    found = [
      video
      for video in container.streams.video
      if not video.disposition & Disposition.attached_pic
    ]
    if not found:
      raise ValueError("no video stream")
    # Frames are decoded on all cores, which changes none of their values.
    found[0].thread_type = "AUTO"
    yield container, found[0]


def _headline(source) -> tuple[_Track, float]:
  """Reads frame count and rate as the container says, and packets' times.

  Returns:
    (the track, of 0 frames where the container has no count; its duration in
    seconds where only that is said, else 0)
  """
  with _open(source) as (container, stream):
    rate, duration = float(stream.average_rate or 0), 0.0
    if not stream.frames and len(container.streams) == 1:
      duration = (container.duration or 0) / av.time_base
    times: list[float] = []
    if stream.frames:
      with contextlib.suppress(av.error.FFmpegError):
        times += [
          float(packet.pts * stream.time_base)
          for packet in container.demux(stream)
          if packet.pts is not None
        ]
    return _track(stream.frames, rate, times), duration


def _measure(source) -> _Track:
  """Counts frames and measures frames per second by decoding all frames.

  The rate is 0 if they have no times.
  """
  total, times = 0, []
  with _open(source) as (container, stream):
    try:
      for frame in container.decode(stream):
        total += 1
        times += [] if frame.time is None else [frame.time]
    except av.error.FFmpegError:
      pass  # A file that breaks off is a video up to there.
    rate = float(stream.average_rate or 0)
  if len(times) < 2 or times[-1] <= times[0]:
    return _Track(total, rate if times else 0.0, np.zeros(0))
  rate = rate or (len(times) - 1) / (times[-1] - times[0])
  return _track(total, rate, times)


def _take(
  source, track: _Track, sample: Sample, fit: Fit | None
) -> Clip | None:
  """Decodes the wanted frames; None if some are missing or lack times."""
  total, rate = track.total, track.rate
  if not rate:
    return None
  indices = picked = sample(total, rate)
  if len(track.times):
    # What is shown then: the last frame that began before.
    moments = indices / rate + 1e-6
    picked = np.searchsorted(track.times, moments, side="right") - 1
  wanted = set(picked.tolist())
  kept, size = {}, (0, 0)
  with _open(source) as (container, stream):
    try:
      for number, frame in enumerate(container.decode(stream)):
        if number in wanted and frame.pts is not None:
          pixels = _upright(frame)
          size = pixels.shape[:2]
          kept[number] = _scaled(pixels, fit, len(indices))
        if number >= picked[-1]:
          break
    except av.error.FFmpegError:
      return None
  if len(kept) < len(wanted):
    return None
  frames = np.stack([kept[i] for i in picked.tolist()])
  return Clip(frames, indices / rate, len(indices) / total * rate, size)


def _scaled(
  pixels: UInt8[np.ndarray, "height width 3"], fit: Fit | None, count: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
  """Scales one of `count` frames; leaves one that `cut` is to refuse."""
  with contextlib.suppress(ValueError):
    if fit is not None:
      size = fit(count, *pixels.shape[:2])
      return np.asarray(pictures.scale(Image.fromarray(pixels), *size))
  return pixels


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
  """Turns and mirrors a frame as its display matrix says.

  Raises:
    ValueError: if that isn't by quarter turns.
  """
  pixels = frame.to_ndarray(format="rgb24")
  stored: Any = frame.side_data.get("DISPLAYMATRIX")
  if stored is None:
    return pixels
  # x' = a x + c y and y' = b x + d y, in pixels to the right and down.
  a, b, _, c, d = np.frombuffer(stored, np.int32)[:5].tolist()
  if a == d == 0 and b and c:
    pixels, a, d = pixels.swapaxes(0, 1), c, b
  elif b or c or not a or not d:
    raise ValueError("it is to be shown turned by other than quarter turns")
  return pixels[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]


def cut(
  clip: Clip,
  video: VideoConfig,
  picture: PictureConfig,
  config: ModelConfig,
  marks: tuple[str, str, str],
) -> Cut:
  """Scales a clip into its budget and cuts it into patches.

  Fewer frames than a patch has are filled up with the last one.

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
  if len(clip.frames) < tower.temporal_patch_size:
    last = len(clip.frames) - 1
    filled = np.minimum(np.arange(tower.temporal_patch_size), last)
    clip = dataclasses.replace(
      clip, frames=clip.frames[filled], seconds=clip.seconds[filled]
    )
  shape = len(clip.frames), *clip.size
  height, width = fit(video, config)(*shape)
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
    shrunk=(height, width) != fit(unbounded, config)(*shape),
    region=np.zeros(cells, np.float32),
    evidence=np.zeros(cells, np.float32),
  )
