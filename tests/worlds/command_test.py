"""python -m mmrl.worlds: sheets, baselines, files and one-line errors."""

import subprocess
import sys
import types

import numpy as np
from PIL import Image
import pytest

from mmrl.errors import UserError
from mmrl.worlds import __main__ as command
from mmrl.worlds import examples, sheet

DEFAULTS = dict.fromkeys(("output", "count", "baselines", "folder"))


def run(world: str, **flags) -> None:
  given = DEFAULTS | {"world": world, "split": "train"} | flags
  command.run(types.SimpleNamespace(**given))


@pytest.mark.parametrize("world", examples.WORLDS)
def test_a_sheet_is_drawn(tmp_path, world):
  path = tmp_path / "sheet.png"
  run(world, output=str(path), count=2)
  page = np.asarray(Image.open(path))
  assert min(page.shape[:2]) > 150 and page.std() > 10


def test_baselines_are_printed(capsys):
  run("scenes", baselines=4, split="test")
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "| kind | questions | chance | blind |"
  assert len(lines) == 2 + 9 and "| attribute | 4 | 12.5% |" in lines[3]


def test_kitchens_are_written(capsys, tmp_path):
  run("kitchens", folder=str(tmp_path), count=1)
  (path,) = capsys.readouterr().out.splitlines()
  assert path.endswith("3d_perception_fixture_interaction_counting.json")


@pytest.mark.parametrize(
  ("world", "flags", "message"),
  [
    ("scene", {}, "world: expected one of scenes, kitchens, figures"),
    ("scenes", {}, "expected --output, --baselines or --folder"),
    ("scenes", {"split": "L1"}, "split: expected one of train, va"),
    ("scenes", {"output": "a.txt"}, "expected a file that ends in"),
    ("scenes", {"output": "no/a.png"}, "No such file"),
    ("scenes", {"count": 0, "baselines": 4}, "--count: exp"),
    ("scenes", {"baselines": 1}, "--baselines: expected a whole"),
    ("figures", {"folder": "x"}, "--folder: expected --world kit"),
  ],
)
def test_a_mistake_is_one_line(world, flags, message):
  with pytest.raises((UserError, OSError)) as found:
    run(world, **flags)
  assert message in str(found.value) and "\n" not in str(found.value)


def test_the_command_ends_with_status_2():
  found = subprocess.run(
    [sys.executable, "-m", "mmrl.worlds", "--world=scenes"],
    capture_output=True,
    text=True,
  )
  assert found.returncode == 2 and not found.stdout
  assert found.stderr.startswith("error: expected --output, --baselines or")


def test_frames_are_around_boxes_and_text_is_below():
  picture = np.full((20, 30, 3), 200, np.uint8)
  panel = sheet.Panel([picture, picture], [[(5, 5, 15, 15)], []], "a\nb")
  page = np.asarray(sheet.draw([panel] * 3, columns=2))
  frame = (page == (255, 0, 255)).all(-1)
  assert frame[8 + 4, 8 + 4] and frame[8 + 15, 8 + 15]
  assert frame.sum() == 3 * 4 * 11
