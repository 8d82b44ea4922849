"""Small data files of questions about pictures."""

import json
import pathlib

from PIL import Image


def write(path: pathlib.Path, rows) -> str:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def picture(folder: pathlib.Path, name: str, width=64, height=64) -> str:
  Image.new("RGB", (width, height), (9, 99, 9)).save(folder / name)
  return name


def good(folder: pathlib.Path, count: int) -> list[dict]:
  """Rows that a run of the base config has room for."""
  image = picture(folder, "a.png")
  row = {"question": "what?", "answer": "red", "images": [image]}
  return [{**row, "answer": ("red", "blue")[i % 2]} for i in range(count)]


def spoil(folder: pathlib.Path, rows: list[dict]) -> dict[int, str]:
  """Changes five of at least eight rows; returns their faults by index."""
  (folder / "broken.png").write_bytes(b"\x89PNG and then nothing")
  changes = {
    1: ("broken", {"images": ["broken.png"]}),
    2: ("long prompt", {"question": "what? " * 60}),
    3: ("many patches", {"images": [picture(folder, "b.png", 80, 64)]}),
    5: ("long answer", {"answer": "red " * 20}),
    7: ("broken", {"images": [picture(folder, "c.png", 2000, 4)]}),
  }
  for index, (_, changed) in changes.items():
    rows[index] = rows[index] | changed
  return {index: fault for index, (fault, _) in changes.items()}
