"""Regions: what they cover, and every mistake in one line."""

import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.prompts import regions

CHART = ((640, 480), (12, 16), 28)  # shown as 448 x 336


def marked(value, size, grid, cell) -> list[int]:
  share, _ = regions.cells(value, size, grid, cell)
  return np.flatnonzero(share).tolist()


def test_boxes_to_tokens_golden():
  """Those of SAYO's note; scaled, then clamped, then rounded down."""
  found = marked((300, 100, 620, 380), *CHART)
  wanted = [16 * r + c for r in range(2, 10) for c in range(7, 16)]
  assert found == wanted and len(found) == 72
  assert (found[0], found[-1]) == (39, 159)
  assert marked((0, 0, 640, 480), *CHART) == list(range(192))
  assert marked((630, 470, 700, 500), *CHART) == [191]
  assert marked((10, 10, 50, 40), (96, 64), (2, 3), 32) == [0, 1, 3, 4]
  point = regions.touched(np.array([28.0, 28, 28, 28]), (12, 16), 28)
  assert np.flatnonzero(point).tolist() == [17]


def test_a_box_is_scaled_before_it_is_clamped():
  """Clamped first, to 448 x 336, its right side would end at column 10."""
  large = ((896, 672), (12, 16), 28)
  assert marked((672, 0, 896, 55), *large) == [12, 13, 14, 15]
  # The cell that it ends at is touched, and covers nothing.
  share, _ = regions.cells((0, 0, 56, 56), *large)
  np.testing.assert_allclose(share[:2], [1, 1e-6])


def test_units_are_stated():
  size, grid, cell = (640, 480), (12, 16), 28
  wanted, target = regions.cells((320, 120, 480, 360), size, grid, cell)
  for unit, side in (("share", 1), ("thousandths", 1000)):
    box = [0.5 * side, 0.25 * side, 0.75 * side, 0.75 * side]
    found = regions.cells({"boxes": [box], "unit": unit}, size, grid, cell)
    np.testing.assert_allclose(found[0], wanted)
    np.testing.assert_allclose(found[1], target)


def test_several_boxes_are_their_union():
  one, other = (0, 0, 100, 100), (300, 100, 620, 380)
  union = {*marked(one, *CHART), *marked(other, *CHART)}
  assert marked([one, other, one], *CHART) == sorted(union)
  assert marked([one], *CHART) == marked(one, *CHART)


def test_ranges_of_tokens_are_the_regions_own():
  """SAYO's `focus_area`: both ends count, a range may go on in the next row."""
  found = {"tokens": [[39, 40], [47, 48]]}
  assert marked(found, *CHART) == [39, 40, 47, 48]
  share, evidence = regions.cells(found, *CHART)
  assert share.sum() == 4
  np.testing.assert_allclose(evidence.sum(), 1)
  boxes = regions.read(found).in_pixels((640, 480), (12, 16))
  assert boxes == [(280, 80, 360, 120), (600, 80, 640, 120), (0, 120, 40, 160)]


def test_evidence_golden():
  """A box of the left of two cells: deviation 1/4, 2 of them to its sides.

  P(|z| < 2) = 0.954500, P(2 < z < 6) = 0.022750; of their sum 0.976720.
  """
  _, evidence = regions.cells((0, 0, 8, 8), (16, 8), (1, 2), 8)
  np.testing.assert_allclose(evidence, [0.976720, 0.023280], atol=1e-6)
  both = [(0, 0, 8, 8), (8, 0, 16, 8)]
  _, evidence = regions.cells(both, (16, 8), (1, 2), 8)
  np.testing.assert_allclose(evidence, [0.5, 0.5])


@pytest.mark.parametrize(
  "box", [(3, 3, 4, 4), (0, 0, 640, 480), (1, 2, 3, 470)]
)
def test_evidence_is_a_distribution_at_any_size(box):
  _, evidence = regions.cells(box, *CHART)
  assert (evidence >= 0).all()
  np.testing.assert_allclose(evidence.sum(), 1)


@pytest.mark.parametrize(
  "value, message",
  [
    (
      [1],
      "four numbers x0, y0, x1, y1, or a list of such boxes, found \\[1\\]",
    ),
    ([], "four numbers"),
    ("0 0 1 1", "four numbers"),
    ([0, 0, 1, True], "four numbers"),
    ([0, 0, 1, float("nan")], "four numbers"),
    ([[0, 0, 9, 9], [1]], "four numbers .*, found \\[1\\]"),
    ([2, 0, 1, 9], "x0 < x1 and y0 < y1"),
    # Shares of the picture that nobody said are shares; one is beyond 1.
    ([0.1, 0.1, 0.5, 0.5], 'narrower than one, .*"unit": "share"'),
    ([0.1, 0.1, 1.002, 1.0], "narrower than one"),
    ({"boxes": [[0, 0, 300, 200]], "unit": "share"}, "in share, 0 to 1"),
    ({"boxes": [[0, 0, 3, 2e3]], "unit": "thousandths"}, "0 to 1000"),
    ({"boxes": [[0, 0, 1, 1]]}, "'boxes' and their 'unit', one of pixels, sha"),
    ({"boxes": [[0, 0, 1, 1]], "unit": "inches"}, "'unit', one of pixels"),
    ({"tokens": [[0, 1]], "unit": "pixels"}, "or as 'tokens'"),
    ({"tokens": []}, "a list of \\[first, last\\], at least one, found \\[\\]"),
    ({"tokens": [[2, 1]]}, "\\[first, last\\]"),
    ({"tokens": [[0, 1.5]]}, "\\[first, last\\]"),
    ({"tokens": [3]}, "\\[first, last\\]"),
    ({"tokens": None}, "\\[first, last\\]"),
  ],
)
def test_what_is_no_region_is_refused(value, message):
  with pytest.raises(UserError, match=message):
    regions.read(value)


@pytest.mark.parametrize(
  "value, message",
  [
    ((640, 0, 700, 10), "inside of the picture, 640 x 480 pixels, found a box"),
    ((0, -20, 9, 0), "found a box at 0, -20, 9, 0"),
    ([(0, 0, 9, 9), (0, 481, 9, 500)], "found a box at 0, 481"),
    ({"tokens": [[0, 192]]}, "12 x 16 visual tokens, found token 192"),
  ],
)
def test_a_region_outside_of_the_picture_is_refused(value, message):
  with pytest.raises(regions.OutsideError, match=message):
    regions.cells(value, *CHART)
