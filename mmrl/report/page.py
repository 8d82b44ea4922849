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
import markupsafe
import numpy as np
from PIL import Image, ImageDraw

from mmrl import storage
from mmrl.benchmarks.intervals import Estimate
from mmrl.report import curves
from mmrl.types import Box

# Inferno without its near-black and near-white ends, which would be invisible
# on a dark and on a light picture.
_COLOURS = np.frombuffer(
  bytes.fromhex("280b54 57106e 88226a bc3754 e35933 f98e09 fac127"), np.uint8
).reshape(-1, 3)
_OPACITY = 0.75


@dataclasses.dataclass(frozen=True)
class Row:
  """One number of a benchmark.

  Attributes:
    name: of the number.
    before, after: training; None where there is none, as for the baseline.
    baseline: of answers that need no model.
  """

  name: str
  before: Estimate | None
  after: Estimate | None
  baseline: Estimate | None

  @property
  def known(self) -> list[float]:
    """Returns all numbers of the row, the bounds of intervals among them."""
    there = [one for one in (self.before, self.after, self.baseline) if one]
    return [x for one in there for x in (one.low, one.value, one.high)]

  def text(self, value: float, unit: str = "%", sign: str = "") -> str:
    """Formats a number: as a share, where none of the row's is above 1."""
    if all(abs(x) <= 1 for x in self.known):
      return f"{100 * value:{sign}.1f}{unit}".replace("-", "−")
    return f"{value:{sign}.4g}".replace("-", "−")

  def texts(self) -> list[str]:
    """Formats the numbers before, after and of the baseline."""
    three = self.before, self.after, self.baseline
    return [self.text(one.value) if one else "–" for one in three]


@dataclasses.dataclass(frozen=True)
class Table:
  """The numbers of one benchmark.

  Attributes:
    name: of the benchmark.
    items: how many they are of.
    rows: the numbers; a row `NAME/PART` follows the row NAME.
  """

  name: str
  items: int
  rows: Sequence[Row]

  @property
  def guessed(self) -> bool:
    """Tells whether any number has a baseline."""
    return any(row.baseline for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer of the model to one question.

  Attributes:
    text: the whole output of the model.
    scores: its values by name; from 1 on they are good, up to 0 bad.
    heat: attention mass per cell of the picture, at any scale from 0 up.
    region_share: share of the visual attention on the region, in [0, 1].
  """

  text: str
  scores: Mapping[str, float]
  heat: Float[np.ndarray, "rows columns"]
  region_share: float | None


@dataclasses.dataclass(frozen=True)
class Example:
  """One question about a picture, answered before and after training.

  Attributes:
    picture: the picture, of any size.
    question: the question.
    gold: the right answer; empty if the data have none.
    region: boxes around what is asked about: x0, y0, x1, y1 in pixels.
    before: the answer before training.
    after: the answer after training.
  """

  picture: UInt8[np.ndarray, "height width 3"]
  question: str
  gold: str
  region: Sequence[Box]
  before: Answer
  after: Answer


@dataclasses.dataclass(frozen=True)
class Completion:
  """One answer that the model has learned from.

  Attributes:
    step: in which it was sampled.
    picture: the question's first, of any size; None if there is none.
    question: the question.
    gold: the right answer; empty if the data have none.
    text: the whole answer.
    scores: rewards by name; from 1 on they are good, up to 0 bad.
    total: their weighted sum.
  """

  step: int
  picture: UInt8[np.ndarray, "height width 3"] | None
  question: str
  gold: str
  text: str
  scores: Mapping[str, float]
  total: float


def overlay(
  picture: UInt8[np.ndarray, "height width 3"],
  heat: Float[np.ndarray, "rows columns"],
  *,
  size: int = 256,
  region: Sequence[Box] = (),
  top: float | None = None,
) -> Image.Image:
  """Draws attention over a picture, scaled to the most attended cell.

  Args:
    picture: uint8 [height, width, 3].
    heat: [rows, columns] over the picture; negative or not finite means 0.
    size: longer side of the result, in pixels.
    region: boxes to outline, as x0, y0, x1, y1 in pixels of `picture`.
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
  scale = size / max(picture.shape[:2])
  for box in region:
    x0, x1 = sorted(min(round(x * scale), image.width - 1) for x in box[::2])
    y0, y1 = sorted(min(round(y * scale), image.height - 1) for y in box[1::2])
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
  tables: Sequence[Table],
  groups: Sequence[curves.Group],
  examples: Mapping[str, Sequence[Example]],
  samples: Sequence[Completion] = (),
  config: str,
) -> None:
  """Writes the report as one HTML file that needs no other file.

  Args:
    path: file to write; an older report is replaced once this one is complete.
    title: heading of the page.
    subtitle: one sentence that describes the run.
    figures: key numbers, as (label, value).
    tables: numbers of each benchmark.
    groups: curves; all groups with a name are collapsed.
    examples: questions by the name of their benchmark, in the order given.
    samples: answers from training, in the order given.
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
  environment.filters["breaks"] = _breaks
  environment.globals.update(resize=_resize, overlay=overlay, uri=_uri)
  source = pathlib.Path(__file__).with_name("report.html")
  page = environment.from_string(source.read_text("utf-8")).render(
    title=title,
    subtitle=subtitle,
    figures=figures,
    tables=tables,
    groups=groups,
    draw=curves.draw,
    frame=curves.FRAME,
    examples=examples,
    samples=samples,
    colours=_COLOURS,
    config=config,
  )
  # A model may emit half a surrogate pair, which UTF-8 cannot encode.
  storage.write_bytes(path, page.encode("utf-8", "replace"))


def _breaks(name: str) -> markupsafe.Markup:
  """Lets a browser break a name after its slashes and underscores."""
  text = str(markupsafe.escape(name))
  return markupsafe.Markup(re.sub("([/_])", r"\1<wbr>", text))


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
