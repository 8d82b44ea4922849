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
from PIL import Image

from mmrl import storage
from mmrl.benchmarks.intervals import Estimate
from mmrl.report import curves, drawing
from mmrl.types import Box

# Longer side of a single picture, and of one of several beside each other.
_ALONE, _BESIDE = 320, 240


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

  @property
  def is_share(self) -> bool:
    """Tells whether its numbers are shares: none is above 1, nor a count."""
    counted = self.name.startswith("asked/")
    return not counted and all(abs(x) <= 1 for x in self.known)

  def text(self, value: float, unit: str = "%", sign: str = "") -> str:
    """Formats a number: as a share, where it is one."""
    if self.is_share:
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
    heat: attention mass per cell of each picture of its example, at any scale
      from 0 up; not looked at where that has none.
    region_share: share of the visual attention on the region, in [0, 1].
  """

  text: str
  scores: Mapping[str, float]
  heat: Float[np.ndarray, "pictures rows columns"]
  region_share: float | None


@dataclasses.dataclass(frozen=True)
class Example:
  """One question, answered before and after training.

  Attributes:
    pictures: the picture, of any size; a few frames of a video; none of a
      question without either.
    question: the question.
    gold: the right answer; empty if the data have none.
    region: boxes around what is asked about: x0, y0, x1, y1 in pixels of the
      first picture.
    before: the answer before training.
    after: the answer after training.
  """

  pictures: Sequence[UInt8[np.ndarray, "height width 3"]]
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
    picture: those of the question and frames of its videos beside each other,
      of any size; None if there are none.
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
  environment.globals.update(
    resize=drawing.resize, seen=_seen, looked=_looked, uri=_uri
  )
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
    colours=drawing.COLOURS,
    config=config,
  )
  # A model may emit half a surrogate pair, which UTF-8 cannot encode.
  storage.write_bytes(path, page.encode("utf-8", "replace"))


def _breaks(name: str) -> markupsafe.Markup:
  """Lets a browser break a name after its slashes and underscores."""
  text = str(markupsafe.escape(name))
  return markupsafe.Markup(re.sub("([/_])", r"\1<wbr>", text))


def _seen(example: Example) -> Image.Image:
  """Draws the pictures of a question."""
  side = _BESIDE if len(example.pictures) > 1 else _ALONE
  return drawing.strip([drawing.resize(x, side) for x in example.pictures])


def _looked(example: Example, answer: Answer) -> Image.Image:
  """Draws the attention of an answer on them, on one scale."""
  side = _BESIDE if len(example.pictures) > 1 else _ALONE
  scale = drawing.span(answer.heat)
  return drawing.strip(
    [
      drawing.overlay(
        picture,
        heat,
        size=side,
        scale=scale,
        region=() if number else example.region,
      )
      for number, (picture, heat) in enumerate(
        zip(example.pictures, answer.heat, strict=True)
      )
    ]
  )


def _uri(image: Image.Image) -> str:
  """Encodes a picture as a data URI for an `src` attribute."""
  buffer = io.BytesIO()
  image.save(buffer, "WEBP", quality=90)
  code = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f"data:image/webp;base64,{code}"
