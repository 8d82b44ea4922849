"""Report of a training run as one self-contained HTML page."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import io
import math
import pathlib
import re

from jaxtyping import Float, UInt8
import jinja2
import numpy as np
from PIL import Image, ImageDraw

from mmrl import storage
from mmrl.types import Box

# Inferno without its near-black and near-white ends, which would be invisible
# on a dark and on a light picture.
_COLOURS = np.frombuffer(
  bytes.fromhex("280b54 57106e 88226a bc3754 e35933 f98e09 fac127"), np.uint8
).reshape(-1, 3)
_OPACITY = 0.75
_FRAME = (46.0, 8.0, 310.0, 152.0)  # Left, top, right, bottom of a plot.
_SHORT = 20  # Curves with fewer points are drawn unsmoothed, with dots.


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer of the model to one question.

  Attributes:
    text: the whole output of the model.
    correct: whether the answer is right.
    heat: attention mass per cell of the picture, at any scale from 0 up.
    region_share: share of the visual attention on the region, in [0, 1].
  """

  text: str
  correct: bool
  heat: Float[np.ndarray, "rows columns"]
  region_share: float | None


@dataclasses.dataclass(frozen=True)
class Example:
  """One question about a picture, answered before and after training.

  Attributes:
    picture: the picture, of any size.
    question: the question.
    gold: the right answer.
    region: box around the object asked about: x0, y0, x1, y1 in pixels.
    before: the answer before training.
    after: the answer after training.
  """

  picture: UInt8[np.ndarray, "height width 3"]
  question: str
  gold: str
  region: Box | None
  before: Answer
  after: Answer


def overlay(
  picture: UInt8[np.ndarray, "height width 3"],
  heat: Float[np.ndarray, "rows columns"],
  *,
  size: int = 256,
  region: Box | None = None,
  top: float | None = None,
) -> Image.Image:
  """Draws attention over a picture, scaled to the most attended cell.

  Args:
    picture: uint8 [height, width, 3].
    heat: [rows, columns] over the picture; negative or not finite means 0.
    size: longer side of the result, in pixels.
    region: box to outline, as x0, y0, x1, y1 in pixels of `picture`.
    top: heat to draw at full strength, shared by pictures to be compared; the
      most attended cell's if None.

  Returns:
    The picture with its heat, RGB; just the picture where all heat is 0.

  Raises:
    ValueError: `picture` or `heat` has another shape or type.
  """
  image = _resize(picture, size)
  cells = np.asarray(heat, np.float64)
  if cells.ndim != 2 or not cells.size:
    raise ValueError(f"heat must be [rows, columns], not {cells.shape}")
  cells = np.where(np.isfinite(cells), cells, 0).clip(0)
  if cells.max() > 0:
    share = 1.0 if top is None else min(1.0, cells.max() / top)
    small = Image.fromarray((cells / cells.max()).astype(np.float32))
    level = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))
    level = share * level.clip(0) / level.max()
    stops = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(level, stops, c) for c in _COLOURS.T], -1)
    alpha = _OPACITY * level[..., None]
    mixed = (1 - alpha) * np.asarray(image) + alpha * colour
    image = Image.fromarray(mixed.round().astype(np.uint8))
  if region is not None:
    scale = size / max(picture.shape[:2])
    x0, x1 = sorted(min(round(x * scale), image.width - 1) for x in region[::2])
    y0, y1 = sorted(
      min(round(y * scale), image.height - 1) for y in region[1::2]
    )
    draw, pen = ImageDraw.Draw(image), max(1, size // 128)
    # A dark line around a light one shows on any picture.
    around = (x0 - pen, y0 - pen, x1 + pen, y1 + pen)
    draw.rectangle(around, outline=(20, 20, 20), width=pen)
    draw.rectangle((x0, y0, x1, y1), outline=(255, 255, 255), width=pen)
  return image


def write(
  path: storage.Name,
  *,
  title: str,
  subtitle: str,
  figures: Sequence[tuple[str, str]],
  table: Sequence[tuple[str, float | None, float | None]],
  curves: Mapping[str, Sequence[tuple[int, float | int]]],
  examples: Sequence[Example],
  config: str,
) -> None:
  """Writes the report as one HTML file that needs no other file.

  Args:
    path: file to write; an older report is replaced once this one is complete.
    title: heading of the page.
    subtitle: one sentence that describes the run.
    figures: key numbers, as (label, value).
    table: rows (name, before, after), shares in [0, 1]; None shows a dash.
    curves: (step, value) points by name; non-finite points are only counted.
    examples: test questions, drawn in the order given.
    config: the run's settings, shown as they are.

  Raises:
    ValueError: a picture or heat map has another shape or type than it should.
    UserError: the file cannot be written.
  """
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  environment.tests["known"] = lambda v: v is not None and math.isfinite(v)
  # Splitting puts the tags at odd indices, which the template prints paler.
  environment.filters["tags"] = lambda text: re.split(r"(</?\w+>)", text)
  environment.globals.update(resize=_resize, overlay=overlay, uri=_uri)
  source = pathlib.Path(__file__).with_name("report.html")
  page = environment.from_string(source.read_text("utf-8")).render(
    title=title,
    subtitle=subtitle,
    figures=figures,
    table=table,
    curves=[_curve(name, points) for name, points in curves.items()],
    frame=_FRAME,
    examples=examples,
    colours=_COLOURS,
    config=config,
  )
  # A model may emit half a surrogate pair, which UTF-8 cannot encode.
  storage.write_bytes(path, page.encode("utf-8", "replace"))


def _resize(picture: np.ndarray, size: int) -> Image.Image:
  """Resizes a picture so that its longer side has `size` pixels."""
  if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
    raise ValueError(f"not uint8 RGB: {picture.dtype} {picture.shape}")
  scale = size / max(picture.shape[:2])
  method = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST
  shape = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
  return Image.fromarray(picture).resize(shape, method)


def _uri(image: Image.Image) -> str:
  """Encodes a picture as a data URI for an `src` attribute."""
  buffer = io.BytesIO()
  image.save(buffer, "WEBP", quality=90)
  code = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f"data:image/webp;base64,{code}"


def _curve(
  name: str, points: Sequence[tuple[int, float | int]]
) -> dict[str, object]:
  """Computes a curve's points and ticks for the template, in `_FRAME` units."""
  data = np.array(sorted(points, key=lambda p: p[0]), np.float64).reshape(-1, 2)
  kept = data[np.abs(data[:, 1]) < 1e30]  # No axis can show more; drops NaN.
  drawn = {"name": name, "count": len(kept), "lost": len(data) - len(kept)}
  if not len(kept):
    return drawn
  steps, values = kept.T
  mean = values if len(values) < _SHORT else _smooth(values)
  left, top, right, bottom = _FRAME
  xs, x_ticks = _axis(steps, steps, 0.0, left, right)
  line, y_ticks = _axis(values, mean, 0.06, bottom, top)
  return drawn | {
    "raw": np.stack([xs, _axis(values, values, 0.06, bottom, top)[0]], axis=1),
    "line": np.stack([xs, line], axis=1),
    "dots": len(kept) < _SHORT,
    "last": _number(mean[-1], 3),
    "x_ticks": [(x, text) for x, text in x_ticks if "." not in text],
    "y_ticks": y_ticks,
    "hover": zip(steps, values, mean, xs, line, strict=True),
  }


def _smooth(values: np.ndarray) -> np.ndarray:
  """Smooths values by local linear regression, without lag at the ends."""
  sigma = max(1.0, len(values) / 40)
  offset = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
  kernel = np.exp(-0.5 * (offset / sigma) ** 2)
  weights = [kernel * offset**power for power in range(3)]
  ones = np.ones_like(values)
  s0, s1, s2 = (np.convolve(ones, weight, "same") for weight in weights)
  t0, t1 = (np.convolve(values, weight, "same") for weight in weights[:2])
  # The clip keeps an extrapolated share from passing 100%.
  mean = (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2)
  return mean.clip(values.min(), values.max())


def _axis(
  span: np.ndarray, values: np.ndarray, pad: float, start: float, end: float
) -> tuple[np.ndarray, list[tuple[float, str]]]:
  """Places values, and round ticks, on an axis that spans other values."""
  low, high = float(span.min()), float(span.max())
  largest = max(abs(low), abs(high))
  extra = pad * (high - low)
  if high - low <= 1e-9 * largest + 1e-20:
    extra = 0.1 * largest if largest > 1e-20 else 1.0
  low, high = low - extra, high + extra
  rough = (high - low) / 6
  power = 10.0 ** math.floor(math.log10(rough))
  tick = next(m for m in (1, 2, 2.5, 5, 10, 20) if m * power >= rough) * power
  ticks = range(math.ceil(low / tick), math.floor(high / tick) + 1)
  scale = (end - start) / (high - low)
  return start + (values - low) * scale, [
    (start + (k * tick - low) * scale, _number(k * tick)) for k in ticks
  ]


def _number(value: float, digits: int = 6) -> str:
  whole = 10**digits <= abs(value) < 1e6
  text = f"{value:.0f}" if whole else f"{value:.{digits}g}"
  return text.replace("e-0", "e-").replace("e+0", "e")
