"""python -m mmrl.worlds: sheets, baselines, files and one-line errors."""

import sys

import numpy as np
from PIL import Image
import pytest

from mmrl.worlds import __main__ as command
from mmrl.worlds import examples, sheet


def run(monkeypatch, *arguments: str) -> None:
  monkeypatch.setattr(sys, "argv", ["worlds", *arguments])
  command.main()


@pytest.mark.parametrize("world", examples.WORLDS)
def test_a_sheet_is_drawn(monkeypatch, tmp_path, world):
  path = tmp_path / "sheet.png"
  run(monkeypatch, "--world", world, "--output", str(path), "--count", "2")
  page = np.asarray(Image.open(path))
  assert min(page.shape[:2]) > 150 and page.std() > 10


def test_baselines_are_printed(monkeypatch, capsys):
  run(monkeypatch, "--world", "scenes", "--baselines", "4", "--split", "test")
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "| kind | questions | chance | blind |"
  assert len(lines) == 2 + 9 and "| attribute | 4 | 12.5% |" in lines[3]


def test_kitchens_are_written(monkeypatch, capsys, tmp_path):
  run(
    monkeypatch,
    *("--world", "kitchens", "--folder", str(tmp_path), "--count", "1"),
  )
  (path,) = capsys.readouterr().out.splitlines()
  assert path.endswith("3d_perception_fixture_interaction_counting.json")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--world", "scene"], "world: expected one of scenes, kitchens, figures"),
    (["--world", "scenes"], "expected --output, --baselines or --folder"),
    (
      ["--world", "scenes", "--split", "L1"],
      "split: expected one of train, va",
    ),
    (
      ["--world", "scenes", "--output", "a.txt"],
      "expected a file that ends in",
    ),
    (["--world", "scenes", "--output", "no/a.png"], "No such file"),
    (["--world", "scenes", "--count", "0", "--baselines", "4"], "--count: exp"),
    (
      ["--world", "scenes", "--baselines", "1"],
      "--baselines: expected a whole",
    ),
    (["--world", "figures", "--folder", "x"], "--folder: expected --world kit"),
  ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, message):
  with pytest.raises(SystemExit) as found:
    run(monkeypatch, *arguments)
  assert found.value.code == 2
  told = capsys.readouterr().err
  assert told.startswith("error: ") and message in told
  assert told.count("\n") == 1


def test_frames_are_around_boxes_and_text_is_below():
  picture = np.full((20, 30, 3), 200, np.uint8)
  panel = sheet.Panel([picture, picture], [[(5, 5, 15, 15)], []], "a\nb")
  page = np.asarray(sheet.draw([panel] * 3, columns=2))
  frame = (page == (255, 0, 255)).all(-1)
  assert frame[8 + 4, 8 + 4] and frame[8 + 15, 8 + 15]
  assert frame.sum() == 3 * 4 * 11
