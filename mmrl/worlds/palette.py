"""Colours that people and colour-blind people tell apart, and pale grounds."""

from collections.abc import Sequence

from mmrl.errors import UserError

Colour = tuple[int, int, int]
# x0, y0, x1, y1 in pixels; the last two are excluded.
Box = tuple[int, int, int, int]

# Any two are at least 28 apart in CIELAB (Delta E, 1976), also as people
# without one of the three cones see them, and as far from every ground.
COLOURS: dict[str, Colour] = {
  "black": (24, 30, 54),
  "red": (150, 11, 8),
  "orange": (240, 122, 78),
  "yellow": (255, 192, 6),
  "green": (17, 120, 98),
  "cyan": (70, 200, 255),
  "blue": (56, 0, 232),
  "purple": (132, 35, 152),
}
GROUNDS: tuple[Colour, ...] = (
  (244, 241, 234),
  (232, 240, 246),
  (240, 234, 246),
  (234, 244, 234),
  (250, 238, 226),
  (238, 238, 238),
)
# Sides of pictures are multiples of it: four cells of 28 pixels, as published
# models have, and seven of 16, as tiny ones have.
SIDE = 112


def check_size(size: int) -> None:
  """Checks the side of a picture.

  Raises:
    UserError: if it isn't a multiple of 112 up to 896.
  """
  if type(size) is not int or size % SIDE or not SIDE <= size <= 8 * SIDE:
    raise UserError(
      f"size: expected a multiple of {SIDE} from {SIDE} to {8 * SIDE}, found"
      f" {size!r:.80}"
    )


def check_one_of(name: str, value: object, known: Sequence[object]) -> None:
  """Checks that an option has a value that there is.

  Raises:
    UserError: listing the values that there are.
  """
  if value not in known:
    raise UserError(
      f"{name}: expected one of {', '.join(map(str, known))}, found"
      f" {value!r:.80}"
    )


def check_number(
  name: str, value: object, low: int | float, high: int | float
) -> None:
  """Checks that an option is a number in [low, high]; whole if `low` is an int.

  Raises:
    UserError: if it isn't.
  """
  kinds = (int,) if type(low) is int else (int, float)
  if not (type(value) in kinds and low <= value <= high):  # type: ignore[operator]
    whole = "a whole number" if type(low) is int else "a number"
    raise UserError(
      f"{name}: expected {whole} from {low} to {high}, found {value!r:.80}"
    )


def check_flag(name: str, value: object) -> None:
  """Checks that an option is True or False.

  Raises:
    UserError: if it isn't.
  """
  if type(value) is not bool:
    raise UserError(f"{name}: expected True or False, found {value!r:.80}")


def check_list(name: str, values: object, known: Sequence[object]) -> None:
  """Checks that an option is a list of different values that there are.

  Raises:
    UserError: listing the values that there are.
  """
  if isinstance(values, str) or not isinstance(values, Sequence):
    raise UserError(
      f"{name}: expected a list of {', '.join(map(str, known))}, found"
      f" {values!r:.80}; write [{values!r:.40}]"
    )
  for value in values:
    check_one_of(name, value, known)
  if len({*values}) < len(values):
    raise UserError(f"{name}: expected each once, found {values!r:.80}")
