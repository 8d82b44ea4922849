"""Pictures to patches, grids, rotary positions and attention windows."""

import dataclasses
import io
import json
import math
import pathlib
from typing import Any

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image

from mmrl.errors import UserError
from mmrl.models.config import VisionConfig
from mmrl.types import Box


@dataclasses.dataclass(frozen=True)
class PictureConfig:
  """preprocessor_config.json: how pixels become patch values.

  Attributes:
    min_pixels, max_pixels: the area a picture is scaled into.
    mean, std: of each channel, for values in [0, 1].
  """

  min_pixels: int = 56 * 56
  max_pixels: int = 28 * 28 * 1280
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


def from_hf(path: pathlib.Path) -> PictureConfig:
  """Reads preprocessor_config.json of a model directory."""
  path = pathlib.Path(path) / "preprocessor_config.json"
  try:
    raw = json.loads(path.read_text())
  except (FileNotFoundError, json.JSONDecodeError) as error:
    raise UserError(f"expected a readable {path}: {error}") from error
  size = raw.get("size", {})
  default = PictureConfig()
  return PictureConfig(
    raw.get("min_pixels") or size.get("shortest_edge") or default.min_pixels,
    raw.get("max_pixels") or size.get("longest_edge") or default.max_pixels,
    tuple(raw.get("image_mean", default.mean)),
    tuple(raw.get("image_std", default.std)),
  )


def to_hf(config: PictureConfig, vision: VisionConfig) -> dict:
  """The preprocessor_config.json of `config`."""
  return {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "size": {
      "shortest_edge": config.min_pixels,
      "longest_edge": config.max_pixels,
    },
    "min_pixels": config.min_pixels,
    "max_pixels": config.max_pixels,
    "patch_size": vision.patch_size,
    "temporal_patch_size": vision.temporal_patch_size,
    "merge_size": vision.spatial_merge_size,
    "image_mean": list(config.mean),
    "image_std": list(config.std),
  }


# Pillow raises the third of these on None, say, the fourth on broken PNGs.
_UNREADABLE = (OSError, ValueError, AttributeError, SyntaxError, TypeError)


def read(source: Any, name: str) -> Image.Image:
  """Opens a picture: a path, bytes, a PIL image or a uint8 array.

  Args:
    source: the picture.
    name: what to call the sample in an error.

  Raises:
    UserError: if there is no such file or it can't be decoded.
  """
  try:
    if isinstance(source, Image.Image):
      picture = source
    elif isinstance(source, np.ndarray):
      picture = Image.fromarray(source)
    elif isinstance(source, bytes):
      picture = Image.open(io.BytesIO(source))
    else:
      picture = Image.open(source)
    return picture.convert("RGB")
  except (*_UNREADABLE, Image.DecompressionBombError) as error:
    what = "bytes" if isinstance(source, bytes) else source
    raise UserError(
      f"{name}: expected a readable picture, found {what!s:.200}"
      f" ({error}); repair or remove the sample"
    ) from error


def fit(
  height: int,
  width: int,
  factor: int,
  min_pixels: int,
  max_pixels: int | float,
) -> tuple[int, int]:
  """The size a picture is scaled to, as Qwen2-VL's processor chooses it.

  Both sides become multiples of `factor`, the area lands in [min_pixels,
  max_pixels], and the aspect ratio is kept as well as that allows.
  """
  if max(height, width) > 200 * min(height, width):
    raise ValueError(
      f"expected sides within a ratio of 200, found {width} x {height} pixels"
    )
  rows = round(height / factor) * factor
  columns = round(width / factor) * factor
  if rows * columns > max_pixels:
    shrink = math.sqrt(height * width / max_pixels)
    rows = max(factor, math.floor(height / shrink / factor) * factor)
    columns = max(factor, math.floor(width / shrink / factor) * factor)
  elif rows * columns < min_pixels:
    grow = math.sqrt(min_pixels / (height * width))
    rows = math.ceil(height * grow / factor) * factor
    columns = math.ceil(width * grow / factor) * factor
  return rows, columns


@dataclasses.dataclass(frozen=True)
class Cut:
  """One picture, cut.

  Attributes:
    pixels: patch values, in merge order.
    rows_columns: row and column of each patch.
    grid: frames, patch rows, patch columns.
    shrunk: whether the pixel budget made it smaller.
    region: share of each merged cell that the region covers.
  """

  pixels: Float[np.ndarray, "M C"]
  rows_columns: Int[np.ndarray, "M 2"]
  grid: tuple[int, int, int]
  shrunk: bool
  region: Float[np.ndarray, "N"]


def patchify(
  frames: UInt8[np.ndarray, "frames height width 3"],
  config: PictureConfig,
  vision: VisionConfig,
) -> tuple[Float[np.ndarray, "M C"], tuple[int, int, int]]:
  """Normalises frames of equal size and cuts them into patches.

  Args:
    frames: as many as a multiple of the temporal patch size; sides are
      multiples of patch size times merge size.
    config: normalisation.
    vision: patch and merge sizes.

  Returns:
    (patches in merge order, (t, h, w) grid). Values of a patch are ordered
    channel, time, row, column.
  """
  size, merge = vision.patch_size, vision.spatial_merge_size
  span = vision.temporal_patch_size
  count, height, width, channels = frames.shape
  grid = (count // span, height // size, width // size)
  values = frames.astype(np.float32) / np.float32(255)
  values = (values - np.float32(config.mean)) / np.float32(config.std)
  t, rows, columns = grid
  values = values.reshape(
    (
      t,
      span,
      rows // merge,
      merge,
      size,
      columns // merge,
      merge,
      size,
      channels,
    )
  )
  values = values.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
  return values.reshape(t * rows * columns, -1), grid


def cut(
  picture: Image.Image,
  config: PictureConfig,
  vision: VisionConfig,
  region: Box | None = None,
) -> Cut:
  """Scales a still picture into the budget and cuts it into patches.

  Args:
    picture: RGB.
    config: pixel budget and normalisation.
    vision: patch and merge sizes.
    region: x0, y0, x1, y1 in pixels of the picture, or None.
  """
  factor = vision.patch_size * vision.spatial_merge_size
  size = (picture.height, picture.width, factor, config.min_pixels)
  height, width = fit(*size, config.max_pixels)
  scaled = picture
  if picture.size != (width, height):
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
  frame = np.asarray(scaled, np.uint8)
  frames = np.stack([frame] * vision.temporal_patch_size)
  pixels, grid = patchify(frames, config, vision)
  cells = np.zeros(grid[1] * grid[2] // vision.spatial_merge_size**2)
  if region is not None:
    scale = np.array([width / picture.width, height / picture.height] * 2)
    cells = coverage(np.array(region) * scale, factor, (height, width))
  return Cut(
    pixels=pixels,
    rows_columns=merge_order(grid, vision.spatial_merge_size),
    grid=grid,
    shrunk=(height, width) != fit(*size, math.inf),
    region=cells.astype(np.float32),
  )


def coverage(
  box: Float[np.ndarray, "4"], cell: int, size: tuple[int, int]
) -> Float[np.ndarray, "N"]:
  """Share of each square cell of a picture that a box covers, row by row."""

  def overlap(low, high, length):
    start = np.arange(0, length, cell)
    inside = np.minimum(high, start + cell) - np.maximum(low, start)
    return np.clip(inside, 0, None) / cell

  x0, y0, x1, y1 = box
  return np.outer(overlap(y0, y1, size[0]), overlap(x0, x1, size[1])).ravel()


def merge_order(
  grid: tuple[int, int, int], merge: int
) -> Int[np.ndarray, "M 2"]:
  """Row and column of each patch, with merge blocks adjacent."""
  t, rows, columns = grid
  index = np.indices((rows, columns)).reshape(
    2, rows // merge, merge, columns // merge, merge
  )
  index = index.transpose(1, 3, 2, 4, 0).reshape(-1, 2)
  return np.tile(index, (t, 1)).astype(np.int32)


def window_lists(
  grid: tuple[int, int, int], vision: VisionConfig
) -> list[Int[np.ndarray, "patches"]]:
  """The patches (in merge order) of each attention window of a picture."""
  t, rows, columns = grid
  merge, side = vision.spatial_merge_size, vision.window_cells
  rows, columns = rows // merge, columns // merge
  cells = np.arange(t * rows * columns).reshape(t, rows, columns)
  unit = np.arange(merge**2)
  return [
    (frame[r : r + side, c : c + side].reshape(-1, 1) * merge**2 + unit).ravel()
    for frame in cells
    for r in range(0, rows, side)
    for c in range(0, columns, side)
  ]


def visual_positions(
  grid: tuple[int, int, int], merge: int, start: int, interval: float = 1
) -> Int[np.ndarray, "N 3"]:
  """M-RoPE positions of the visual tokens of one picture or video.

  Args:
    grid: frames, patch rows, patch columns.
    merge: patches along a side of a token.
    start: the position after the text before.
    interval: time steps between frames (1 for pictures).
  """
  t, rows, columns = grid
  index = np.indices((t, rows // merge, columns // merge)).reshape(3, -1).T
  index = index * np.array([interval, 1, 1])
  return index.astype(np.int32) + start
