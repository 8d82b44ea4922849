"""An eye and a mind that know only pixels and the text of a question.

Independent of `mmrl.worlds.scenes.questions`: things are what hangs together
in one exact colour, their shape is the one whose outline fits best, and texts
are read by patterns of their own. Slow, and right only where nothing overlaps.
"""

import re

import numpy as np
from scipy import ndimage

from mmrl.worlds import palette
from mmrl.worlds.scenes import things

PLURALS = {s + ("es" if s == "cross" else "s"): s for s in things.SHAPES}


def look(picture: np.ndarray) -> list[dict]:
  """Finds colour, shape and centre of everything in a picture."""
  found = []
  for colour, value in palette.COLOURS.items():
    labels, _ = ndimage.label((picture == value).all(-1), np.ones((3, 3)))
    for i, (rows, columns) in enumerate(ndimage.find_objects(labels)):
      inside = labels[rows, columns] == i + 1
      if inside.sum() < 40:
        continue  # A trace in the blend of two colours.
      middle = [(x.start + x.stop) / 2 for x in (columns, rows)]
      shape = outline(inside)
      found.append({"colour": colour, "shape": shape, "at": middle})
  return found


def outline(inside: np.ndarray) -> str:
  """Names a shape by how its mass lies in its box."""

  def fit(shape, direction):
    share = things.alpha(shape, direction, 64) > 127
    rows, columns = (
      (np.arange(n) * 64 / n + 32 / n).astype(int) for n in inside.shape
    )
    other = share[np.ix_(rows, columns)]
    return (inside & other).sum() / (inside | other).sum()

  scores = {
    shape: max(
      fit(shape, d) for d in (things.DIRECTIONS if shape == "arrow" else ("",))
    )
    for shape in things.SHAPES
  }
  return max(scores, key=scores.get)


def solve(text: str, pictures: list[np.ndarray]) -> str:
  """Answers a question from pictures."""
  seen = [look(picture) for picture in pictures]
  here = seen[0]

  def number(**wanted):
    return sum(all(t[k] == v for k, v in wanted.items()) for t in here)

  def only(**wanted):
    (one,) = (t for t in here if all(t[k] == v for k, v in wanted.items()))
    return one

  def read(pattern):
    return (m := re.fullmatch(pattern, text)) and m.groups()

  if found := read(r"What colour is the (\w+)\?"):
    return only(shape=found[0])["colour"]
  if found := read(r"What shape is the (\w+) thing\?"):
    return only(colour=found[0])["shape"]
  if found := read(r"Is there an? (\w+) (\w+)\?"):
    return "yes" if number(colour=found[0], shape=found[1]) else "no"
  if found := read(r"Is there an? (\w+)\?"):
    return "yes" if number(shape=found[0]) else "no"
  if found := read(r"How many (\w+) things are there\?"):
    return str(number(colour=found[0]))
  if found := read(r"How many (\w+) are there\?"):
    return str(number(shape=PLURALS[found[0]]))
  if found := read(r"What is (left of|right of|above|below) the (\w+)\?"):
    side, anchor = found[0], only(shape=found[1])
    axis, sign = {
      **{"left of": (0, -1), "right of": (0, 1)},
      **{"above": (1, -1), "below": (1, 1)},
    }[side]
    (one,) = (
      t for t in here if sign * (t["at"][axis] - anchor["at"][axis]) > 14
    )
    return one["shape"]
  if found := read(r"Are there more (\w+) than (\w+)\?"):
    one, other = (number(shape=PLURALS[f]) for f in found)
    return "yes" if one > other else "no"
  if text == "How many corners do all triangles and squares have together?":
    return str(3 * number(shape="triangle") + 4 * number(shape="square"))
  if found := read(r"An? (\w+) costs (\d) and an? (\w+) costs (\d)\..*"):
    one, each, other, per = found
    total = int(each) * number(shape=one) + int(per) * number(shape=other)
    return str(total)
  if found := read(r"What colours do (.*) have\?"):
    shapes = re.findall(r"the (\w+)", found[0])
    colours = [only(shape=shape)["colour"] for shape in shapes]
    return ", ".join(colours[:-1]) + " and " + colours[-1]
  if found := read(r"In which of the \d pictures is the (\w+) (\w+)\?"):
    shape, colour = found
    right = [
      i + 1
      for i, things_ in enumerate(seen)
      if any(t["shape"] == shape and t["colour"] == colour for t in things_)
    ]
    return ",".join(map(str, right))
  assert text == "What is in the picture?"
  third = pictures[0].shape[0] / 3
  order = sorted(here, key=lambda t: (t["at"][1] // third, t["at"][0]))
  names = [
    ("an " if t["colour"] == "orange" else "a ") + f"{t['colour']} {t['shape']}"
    for t in order
  ]
  return ", ".join(names[:-1]) + " and " + names[-1]
