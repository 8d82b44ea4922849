"""A reward of answers that are boxes in a picture.

A box is four numbers x0, y0, x1, y1, in brackets of any kind or in none, such
as `[10, 20, 110, 220]`, `(10,20),(110,220)` or `{"bbox_2d": [10, 20, 110,
220]}`.
"""

from collections.abc import Sequence
import functools
import re
from typing import Any, Literal

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.prompts import pictures
from mmrl.rewards.answer import label, score

Units = Literal["same", "thousandths", "resized"]
Box = tuple[float, float, float, float]

_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|<[^<>]*>")
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d*)?(?![\w])")


@functools.lru_cache(4096)
def parse(text: str) -> Box | None:
  """Returns the box that a text gives; None if it isn't just one, or empty."""
  found = [float(x) for x in _NUMBER.findall(_QUOTED.sub(" ", text))]
  if len(found) != 4:
    return None
  x0, y0, x1, y1 = found
  return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def overlap(one: Box, other: Box) -> float:
  """Computes the intersection of two boxes over their union."""
  width = min(one[2], other[2]) - max(one[0], other[0])
  height = min(one[3], other[3]) - max(one[1], other[1])
  both = max(width, 0.0) * max(height, 0.0)
  areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
  return both / (sum(areas) - both)


def _check(*, units: Units = "same", threshold: float = 0.0) -> None:
  if not 0 <= threshold <= 1:
    raise UserError(f"expected a threshold in [0, 1], found {threshold}")


@marked(check=_check)
def box_iou(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  example: Sequence[Any],
  *,
  units: Units = "same",
  threshold: float = 0.0,
) -> Float[np.ndarray, "P G"]:
  """Rewards boxes by their intersection over union with the right ones.

  What isn't one box has 0.

  Args:
    text: P lists of G answers.
    answer: the right box of each question.
    example: the questions (`mmrl.data.Example`), whose first picture is the
      boxes'.
    units: "same" if the model's boxes are measured as the right ones are, both
      in pixels or both in thousandths of the picture. Otherwise the right ones
      are in pixels of the picture's file, and the model's in "thousandths" of
      it, 0 to 1000, as Qwen2-VL and Qwen3-VL write them, or in pixels of the
      picture as it is shown to the model, "resized", as Qwen2.5-VL does.
    threshold: if positive, the reward is 1 from this overlap on, else 0.

  Raises:
    UserError: if a right answer isn't a box, or there is no picture.
  """
  rows = []
  for texts, right, one in zip(text, answer, example, strict=True):
    wanted = label(right)
    if wanted and parse(wanted) is None:
      raise UserError(
        f"{one.name}: expected a box x0, y0, x1, y1 with x0 < x1 and y0 < y1 as"
        f" right answer, found {wanted!r:.80}; repair the data"
      )
    scale = (1.0, 1.0) if units == "same" else _scale(one, units)

    def compare(
      given: str, right: str, scale: tuple[float, float] = scale
    ) -> float:
      found, box = parse(given), parse(right)
      if found is None or box is None:
        return 0.0
      (x, y), (x0, y0, x1, y1) = scale, found
      shared = overlap((x * x0, y * y0, x * x1, y * y1), box)
      return float(shared >= threshold) if threshold else shared

    rows.append(score([texts], [right], compare)[0])
  return np.array(rows, np.float32)


def _scale(example: Any, units: Units) -> tuple[float, float]:
  """Returns pixels of the picture's file in a unit, across and down."""
  part = example.picture
  if part is None or (units == "resized" and not example.shown):
    raise UserError(
      f"{example.name}: expected a picture, whose size units={units!r} needs,"
      " found none; write right answers as the model does and use 'same'"
    )
  source = next(part[key] for key in ("image", "path", "url") if key in part)
  width, height = pictures.read(source, example.name).size
  across, down = example.shown[0] if units == "resized" else (1000, 1000)
  return width / across, height / down
