"""Pictures to patches, grids, rotary positions and attention windows.

A picture is a video of one frame; `mmrl.prompts.videos` reads longer ones.
"""

from collections.abc import Callable
import dataclasses
import io
import math
import re
import struct
from typing import Any, TypeVar
import warnings

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl.errors import UserError, tell
from mmrl.models.config import VisionConfig
from mmrl.models.families import Span, sizes
from mmrl.models.families.family import Grid
from mmrl.prompts import files, regions

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class PictureConfig:
  """preprocessor_config.json: how pixels become patch values.

  Attributes:
    min_pixels, max_pixels: the area a picture is scaled into.
    mean, std: of each channel, for values in [0, 1].
    side: of the square that a picture is scaled to, whatever its own sides and
      area; 0 for none.
  """

  min_pixels: int = 56 * 56
  max_pixels: int = 28 * 28 * 1280
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
  side: int = 0


# Pixels that a picture may have: reading it takes 8 bytes for each, and 16
# where it is transparent.
MOST_PIXELS = 64_000_000

# What Pillow's decoders raise on broken files of one format or another.
_UNREADABLE = (
  *(OSError, ValueError, TypeError, AttributeError, SyntaxError, EOFError),
  *(LookupError, ArithmeticError, NotImplementedError, struct.error),
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# `read` refuses what this warns of.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Formats of which a line has said that only the first picture is used.
_said: set[str] = set()


class _Unfit(Exception):
  """A picture that can't be used: (expected, found, what to do)."""


def read(source: Any, name: str) -> Image.Image:
  """Opens a picture: a path, bytes, a PIL image or an array.

  Files are turned upright as their EXIF data says. What is transparent is
  composited on white, be it a file, an array or a PIL image; Transformers'
  own loader drops the alpha channel of files, which often leaves black.
  Values of 16 bits are divided by 256 (Pillow cuts them off at 255); values
  of 32 bits and floats have no range of their own and are refused. Of a file
  with several pictures, such as an animation, the first is used, and a line
  on stderr says so once per format.

  Args:
    source: the picture; a path may be gs://, an array is uint8, uint16 or
      bool.
    name: what to call the sample in an error.

  Raises:
    UserError: if there is no such file, it is no regular file, it can't be
      decoded, or it has more than `MOST_PIXELS`.
  """
  return _opened(_rgb, source, name)


def sides(source: Any, name: str) -> tuple[int, int]:
  """Reads the sides of a picture, in any order, of a file's beginning.

  See `read`, also for what is refused, as far as the beginning tells.
  """
  return _opened(_sides, source, name)


def _opened(use: Callable[[Any, str], T], source: Any, name: str) -> T:
  """Calls `use` on a path, or what was read of a store, and the name."""
  shown = files.shown(source)
  try:
    return use(files.fetched(source), name)
  except _Unfit as error:
    expected, found, remedy = error.args
    raise UserError(
      f"{name}: expected a picture {expected}, found {shown}{found}; {remedy}"
    ) from error
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  except UnidentifiedImageError as error:
    raise UserError(
      f"{name}: expected a readable picture, found {shown} (in no format that"
      " Pillow reads); repair or remove the sample"
    ) from error
  except _UNREADABLE as error:
    raise UserError(
      f"{name}: expected a readable picture, found {shown}"
      f" ({files.reason(error)}); repair or remove the sample"
    ) from error


def _sides(content: Any, _: str) -> tuple[int, int]:
  if isinstance(content, np.ndarray):
    content = _of_array(content)
  if isinstance(content, Image.Image):
    return content.size
  with _file(content) as opened:
    _check_size(opened)
    return opened.size


def _rgb(content: Any, name: str) -> Image.Image:
  """Decodes a picture, upright and without transparency."""
  if isinstance(content, np.ndarray):
    return _flat(_of_array(content))
  if isinstance(content, Image.Image):
    return _flat(content)
  with _file(content) as opened:
    _check_size(opened)
    # The first picture of a .psd is all of its layers together.
    if getattr(opened, "is_animated", False) and opened.format != "PSD":
      _say_first(opened.format or "", name)
    ImageOps.exif_transpose(opened, in_place=True)
    return _flat(opened)


def _file(content: Any) -> Image.Image:
  """Opens a file, of which little is read yet."""
  file = io.BytesIO(content) if isinstance(content, bytes) else content
  try:
    return Image.open(file)
  except _BOMBS as error:
    pixels = re.search(r"\d+", str(error))
    raise _too_large(int(pixels[0]) if pixels else 0) from error


def _flat(picture: Image.Image) -> Image.Image:
  """Converts any picture to RGB, on white where it is transparent."""
  _check_size(picture)
  if picture.mode.startswith("I;16"):
    values = np.array(picture)
    clear = picture.info.get("transparency")
    if clear is not None:
      values[values == clear] = 0xFFFF
    picture = _of_array(values)
  if picture.mode in ("I", "F"):
    raise _Unfit(
      "of 8 or 16 bits a channel",
      f" of 32 (mode {picture.mode})",
      "scale it to 8 bits",
    )
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return picture.convert("RGB")


def _of_array(values: np.ndarray) -> Image.Image:
  if values.dtype.kind == "u" and values.dtype.itemsize == 2:
    values = (values >> 8).astype(np.uint8)
  if values.dtype not in (np.uint8, np.bool_):
    raise _Unfit(
      "of uint8, uint16 or bool values", "", "scale it to 0 .. 255, as uint8"
    )
  return Image.fromarray(values)


def _check_size(picture: Image.Image) -> None:
  """Refuses a picture without pixels, or too many, before it is decoded."""
  width, height = picture.size
  if not width * height:
    raise _Unfit(
      "with pixels", f" of {width} x {height}", "repair or remove the sample"
    )
  if width * height > MOST_PIXELS:
    raise _too_large(width * height, f" ({width:,} x {height:,})")


def _too_large(pixels: int, sides: str = "") -> _Unfit:
  return _Unfit(
    f"of at most {MOST_PIXELS / 1e6:g} million pixels",
    f" with {pixels:,}{sides}",
    "scale it down or cut it into several",
  )


def _say_first(kind: str, name: str) -> None:
  """Says, once per format, that only the first picture of a file is used."""
  if kind not in _said:
    _said.add(kind)
    tell(
      f"{name}: a file of several pictures ({kind}), of which the first is"
      " used; said once per format"
    )


@dataclasses.dataclass(frozen=True)
class Cut:
  """One picture or video, cut into patches.

  Attributes:
    kind: "image" or "video".
    pixels: patch values, in merge order.
    grid: frames of patches, patch rows, patch columns.
    spans: runs of its visual tokens in the prompt.
    shrunk: whether the pixel budget made it smaller.
    region: share of each merged cell that the marked region covers.
    evidence: where its middle is; see `regions.cells`.
  """

  kind: str
  pixels: Float[np.ndarray, "M C"]
  grid: Grid
  spans: tuple[Span, ...]
  shrunk: bool
  region: Float[np.ndarray, "N"]
  evidence: Float[np.ndarray, "N"]

  def cells(self, vision: VisionConfig) -> Grid:
    """Returns frames, rows and columns of its visual tokens."""
    frames, rows, columns = self.grid
    merge = vision.spatial_merge_size
    return frames, rows // merge, columns // merge


def patchify(
  values: Float[np.ndarray, "frames height width 3"], vision: VisionConfig
) -> tuple[Float[np.ndarray, "M C"], Grid]:
  """Cuts frames of equal size into patches.

  Args:
    values: normalised; sides are multiples of patch size times merge size.
      The last frame is repeated up to a multiple of the temporal patch size.
    vision: patch and merge sizes.

  Returns:
    (patches in merge order, (t, h, w) grid). Values of a patch are ordered
    channel, time, row, column.
  """
  size, merge = vision.patch_size, vision.spatial_merge_size
  span = vision.temporal_patch_size
  missing = -len(values) % span
  values = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
  count, height, width, channels = values.shape
  grid = (count // span, height // size, width // size)
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


def pixels_of(
  cut: Cut, config: PictureConfig, vision: VisionConfig
) -> UInt8[np.ndarray, "frames height width 3"]:
  """Converts a picture's patches to the colours that the model sees.

  Undoes `patchify`.
  """
  frames, rows, columns = cut.grid
  size, merge = vision.patch_size, vision.spatial_merge_size
  span, channels = vision.temporal_patch_size, vision.in_channels
  blocks = (rows // merge, columns // merge, merge, merge)
  values = cut.pixels.reshape(frames, *blocks, channels, span, size, size)
  values = values.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
  values = values.reshape(frames * span, rows * size, columns * size, channels)
  values = values * np.array(config.std, np.float32)
  values = values + np.array(config.mean, np.float32)
  return (values * 255).round().clip(0, 255).astype(np.uint8)


def scale(picture: Image.Image, height: int, width: int) -> Image.Image:
  """Scales a picture to another size, bicubic as in Qwen-VL's processors."""
  if picture.size == (width, height):
    return picture
  return picture.resize((width, height), Image.Resampling.BICUBIC)


def cut(
  picture: Image.Image,
  config: PictureConfig,
  vision: VisionConfig,
  placeholder: str,
  region: Any = None,
) -> Cut:
  """Scales a still picture into the budget and cuts it into patches.

  Args:
    picture: RGB.
    config: pixel budget and normalisation.
    vision: patch and merge sizes.
    placeholder: text of the token that stands for its visual tokens.
    region: see `regions`; None for none.

  Raises:
    ValueError: if one side is more than 200 times the other, or the region
      lies outside.
  """
  cell = vision.cell_size
  sides = picture.height, picture.width
  (height, width), shrunk = sizes.fitted(sides, config, cell)
  frame = np.asarray(scale(picture, height, width), np.float32)
  values = frame / np.float32(255)
  values -= np.array(config.mean, np.float32)
  values /= np.array(config.std, np.float32)
  pixels, grid = patchify(values[None], vision)
  shape = height // cell, width // cell
  share = evidence = np.zeros(math.prod(shape))
  if region is not None:
    share, evidence = regions.cells(region, picture.size, shape, cell)
  return Cut(
    kind="image",
    pixels=pixels,
    grid=grid,
    spans=(Span(placeholder, grid),),
    shrunk=shrunk,
    region=share.astype(np.float32),
    evidence=evidence.astype(np.float32),
  )


def merge_order(grid: Grid, merge: int) -> Int[np.ndarray, "M 2"]:
  """Returns row and column of each patch, with merge blocks adjacent."""
  frames, rows, columns = grid
  index = np.indices((rows, columns)).reshape(
    2, rows // merge, merge, columns // merge, merge
  )
  index = index.transpose(1, 3, 2, 4, 0).reshape(-1, 2)
  return np.tile(index, (frames, 1)).astype(np.int32)


def window_lists(
  grid: Grid, vision: VisionConfig
) -> list[Int[np.ndarray, "patches"]]:
  """Lists the patches of each attention window of a picture, in merge order."""
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
  grid: Grid, merge: int, start: int, interval: float = 1.0
) -> Int[np.ndarray, "N 3"]:
  """Computes M-RoPE positions of a run of visual tokens.

  Args:
    grid: frames, patch rows, patch columns.
    merge: patches along a side of a token.
    start: the position after the text before.
    interval: time positions between frames; they are rounded down.
  """
  t, rows, columns = grid
  index = np.indices((t, rows // merge, columns // merge)).reshape(3, -1).T
  # In float32, as Transformers computes it: 3 * 0.66... must round alike.
  time = index[:, 0].astype(np.float32) * np.float32(interval)
  index[:, 0] = time.astype(np.int64)
  return (index + start).astype(np.int32)
