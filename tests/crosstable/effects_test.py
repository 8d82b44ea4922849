"""The decomposition of a change, by hand."""

import numpy as np
import pytest

from mmrl.crosstable import effects

# Three questions; the last has no number in one cell.
CELLS = {
  "aa": np.array([0.0, 2.0, 9.0]),
  "ab": np.array([1.0, 2.0, np.nan]),
  "ba": np.array([4.0, 2.0, 9.0]),
  "bb": np.array([9.0, 4.0, 9.0]),
}


def test_golden():
  """Of the first question, 9 = 4 + 5 = 8 + 1; of the second, 2 = 0 + 2."""
  found = effects.metric("x", CELLS)
  assert found.questions == 2
  assert {k: v.value for k, v in found.cells.items()} == {
    **{"aa": 1.0, "ab": 1.5, "ba": 3.0, "bb": 6.5}
  }
  assert {k: v.value for k, v in found.effects.items()} == {
    "change": 5.5,
    "texts": (6 + 1) / 2,
    "weights": (3 + 1) / 2,
    "texts_under_a": 2.0,
    "texts_under_b": 5.0,
    "weights_on_a": 0.5,
    "weights_on_b": 3.5,
  }


def test_intervals_are_paired():
  """A change that is the same for all questions has no spread."""
  rng = np.random.default_rng(0)
  base = rng.normal(size=50)
  found = effects.metric(
    "x", {"aa": base, "ab": base + 1, "ba": base, "bb": base + 1}
  )
  low, high = found.cells["aa"].low, found.cells["aa"].high
  assert low < found.cells["aa"].value < high
  for name, value in (("change", 1), ("weights", 1), ("texts", 0)):
    one = found.effects[name]
    np.testing.assert_allclose([one.low, one.value, one.high], value, atol=1e-9)


def test_a_number_that_no_question_has_is_left_out():
  nothing = dict.fromkeys(effects.CELLS, np.full(3, np.nan))
  assert effects.metric("x", nothing) is None


def test_markdown_names_texts_and_weights():
  one = effects.metric(
    "x", {k: np.full(2, float(i)) for i, k in enumerate(CELLS)}
  )
  lines = effects.markdown([one]).splitlines()
  assert lines[2] == "| x: texts of A | 2 | 0 (0 to 0) | 1 (1 to 1) |"
  assert lines[3] == "| x: texts of B | 2 | 2 (2 to 2) | 3 (3 to 3) |"
  cells = [cell.split(" ")[0] for cell in lines[-1].split(" | ")[1:]]
  assert cells == ["3", "2", "1", "2", "2", "1", "1"]


@pytest.mark.parametrize("seed", range(3))
def test_the_two_add_up_in_either_order(seed):
  rng = np.random.default_rng(seed)
  values = {name: rng.normal(size=7) for name in effects.CELLS}
  found = {k: v.value for k, v in effects.metric("x", values).effects.items()}
  for one, other in (
    ("texts", "weights"),
    ("texts_under_a", "weights_on_b"),
    ("texts_under_b", "weights_on_a"),
  ):
    assert found[one] + found[other] == pytest.approx(found["change"])
