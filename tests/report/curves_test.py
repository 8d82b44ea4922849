"""Groups of all that a run logged."""

from mmrl.report import curves

ROWS = [
  {
    "step": 1,
    "reward/total": 0.5,
    "loss/kl": 0.1,
    "loss/total": 1.0,
    "first/loss/total": 2.0,
    "time/data": 0.25,
    "mine": 3.0,
  },
  {
    "step": 2,
    "reward/total": 0.75,
    "test/accuracy": 1.0,
    "test/accuracy/a": 0.0,
  },
]


def grouped() -> dict[str, curves.Group]:
  return {one.name: one for one in curves.group(ROWS, ["test"])}


def test_every_number_is_drawn():
  drawn = {name for one in grouped().values() for name in one.curves}
  assert drawn == {name for row in ROWS for name in row} - {"step"}


def test_main_ones_come_first():
  """Evaluations, but for parts of their items, then what every run has."""
  first, *_ = curves.group(ROWS, ["test"])
  assert first.name == ""
  assert [*first.curves] == ["test/accuracy", "reward/total", "loss/total"]


def test_a_group_is_a_prefix_and_whole():
  found = grouped()
  # All of "reward" is among the main ones.
  assert [*found] == ["", "first", "loss", "mine", "test", "time"]
  assert [*found["loss"].curves] == ["loss/kl", "loss/total"]
  assert [*found["test"].curves] == ["test/accuracy", "test/accuracy/a"]
  assert "Seconds" in found["time"].note and not found["loss"].note


def test_points_are_of_the_steps_that_have_the_number():
  assert grouped()[""].curves["reward/total"] == [(1, 0.5), (2, 0.75)]
  assert grouped()["test"].curves["test/accuracy"] == [(2, 1.0)]


def test_nothing_logged_has_no_groups():
  assert curves.group([], ["test"]) == []
