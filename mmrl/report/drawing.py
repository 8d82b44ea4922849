"""Pictures with attention on them, and pictures beside each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image, ImageDraw

from mmrl.prompts import parts, pictures, videos
from mmrl.prompts.pictures import Cut
from mmrl.prompts.processor import Processor
from mmrl.types import Box

# Inferno without its near-black and near-white ends, which would be invisible
# on a dark and on a light picture.
COLOURS = np.frombuffer(
  bytes.fromhex("280b54 57106e 88226a bc3754 e35933 f98e09 fac127"), np.uint8
).reshape(-1, 3)
_OPACITY = 0.75
# Frames of a video, pictures of a question, and their height beside each other.
FRAMES, _PICTURES, _HEIGHT = 4, 8, 256
_GAP = 4


def span(heat: Float[np.ndarray, "..."]) -> tuple[float, float]:
  """Returns the heat up to which nothing is drawn, and the one in full.

  These are the mean, which uniform attention has everywhere, and the largest,
  but at least twice the mean: so attention that is nearly uniform looks so.

  Args:
    heat: of all pictures that are to be compared.
  """
  cells = _finite(heat)
  mean = float(cells.mean()) if cells.size else 0.0
  return mean, max(float(cells.max(initial=0.0)), 2 * mean)


def overlay(
  picture: UInt8[np.ndarray, "height width 3"],
  heat: Float[np.ndarray, "rows columns"],
  *,
  size: int = 256,
  region: Sequence[Box] = (),
  scale: tuple[float, float] | None = None,
) -> Image.Image:
  """Draws attention over a picture, where it is above its mean.

  Elsewhere the picture keeps its colours.

  Args:
    picture: uint8 [height, width, 3].
    heat: [rows, columns] over the picture; negative or not finite means 0.
    size: longer side of the result, in pixels.
    region: boxes to outline, as x0, y0, x1, y1 in pixels of `picture`.
    scale: `span` of pictures to be compared; of this one if None.

  Returns:
    The picture with its heat, RGB; just the picture where heat is uniform.

  Raises:
    ValueError: `picture` or `heat` has another shape or type.
  """
  image = resize(picture, size)
  cells = _finite(heat)
  if cells.ndim != 2 or not cells.size:
    raise ValueError(f"heat must be [rows, columns], not {cells.shape}")
  low, high = span(cells) if scale is None else scale
  if high > low:
    above = (cells - low).clip(0) / (high - low)
    small = Image.fromarray(above.astype(np.float32))
    level = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))
    level = level.clip(0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(level, stops, c) for c in COLOURS.T], -1)
    alpha = _OPACITY * level[..., None]
    mixed = (1 - alpha) * np.asarray(image) + alpha * colour
    image = Image.fromarray(mixed.round().astype(np.uint8))
  factor = size / max(picture.shape[:2])
  for box in region:
    x0, x1 = sorted(min(round(x * factor), image.width - 1) for x in box[::2])
    y0, y1 = sorted(min(round(y * factor), image.height - 1) for y in box[1::2])
    draw, pen = ImageDraw.Draw(image), max(1, size // 128)
    # A dark line around a light one shows on any picture.
    around = (x0 - pen, y0 - pen, x1 + pen, y1 + pen)
    draw.rectangle(around, outline=(20, 20, 20), width=pen)
    draw.rectangle((x0, y0, x1, y1), outline=(255, 255, 255), width=pen)
  return image


def _finite(heat: np.ndarray) -> np.ndarray:
  cells = np.asarray(heat, np.float64)
  return np.where(np.isfinite(cells), cells, 0).clip(0)


def resize(
  picture: UInt8[np.ndarray, "height width 3"], size: int
) -> Image.Image:
  """Resizes a picture so that its longer side has `size` pixels.

  Raises:
    ValueError: it has another shape or type.
  """
  if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
    raise ValueError(f"not uint8 RGB: {picture.dtype} {picture.shape}")
  scale = size / max(picture.shape[:2])
  method = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST
  shape = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
  return Image.fromarray(picture).resize(shape, method)


def strip(images: Sequence[Image.Image]) -> Image.Image:
  """Puts pictures beside each other."""
  if len(images) == 1:
    return images[0]
  width = sum(image.width + _GAP for image in images) - _GAP
  height = max(image.height for image in images)
  sheet, x = Image.new("RGB", (width, height), "white"), 0
  for image in images:
    sheet.paste(image, (x, 0))
    x += image.width + _GAP
  return sheet


def views(
  cut: Cut, processor: Processor, most: int = FRAMES
) -> tuple[list[int], list[np.ndarray]]:
  """Chooses frames of a video, or its only one of a picture, spread evenly.

  Args:
    cut: of a prompt.
    processor: that it comes from.
    most: how many.

  Returns:
    (their numbers among its frames of patches; the first frame of each as the
    model sees it, uint8 [height, width, 3]).
  """
  tower = processor.config.vision
  chosen = _spread(cut.grid[0], most)
  seen = pictures.pixels_of(cut, processor.picture, tower)
  return chosen, [seen[i * tower.temporal_patch_size] for i in chosen]


def _spread(count: int, most: int) -> list[int]:
  return (
    np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
  )


def question(
  shown: Sequence[Mapping[str, Any]], name: str
) -> Image.Image | None:
  """Draws a question's pictures, and a few frames of each video, in a strip.

  Args:
    shown: parts of messages that are pictures or videos; the first eight
      pictures and frames are drawn.
    name: what errors call the question.

  Returns:
    The strip, or a single picture as it is; None if there is none.

  Raises:
    UserError: if one can't be read.
  """
  found: list[Image.Image] = []
  for part in shown:
    if len(found) >= _PICTURES:
      break
    source = parts.source(part, name)
    if part["type"] == "image":
      # A copy: it may be the data's own.
      found.append(pictures.read(source, name).copy())
    else:
      found += _frames(source, name, parts.fps(part, name))
  if len(found) < 2:
    return found[0] if found else None
  return strip([_of_height(image, _HEIGHT) for image in found[:_PICTURES]])


def _frames(source: Any, name: str, fps: float) -> list[Image.Image]:
  """Reads a few frames of a video."""
  clip = videos.read(
    source, name, lambda total, _: np.array(_spread(total, FRAMES)), fps
  )
  # Of frames that were taken already, all are there.
  return [
    Image.fromarray(clip.frames[i]) for i in _spread(len(clip.frames), FRAMES)
  ]


def _of_height(image: Image.Image, height: int) -> Image.Image:
  longer = height * max(image.size) / image.height
  return resize(np.asarray(image), round(longer))
