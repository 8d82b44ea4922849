"""Reading of 10,000 checked rows, and of the reader of another commit.

  python -m experiments.bench.rows --before COMMIT

Questions with pictures (each is looked for), conversations, and texts. Of
`--before` only `mmrl/data/sources.py` is used; its reader and that of this tree
are run in turn, and the least times are compared.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import types

from PIL import Image

from mmrl.data import sources

_PICTURES = 500


def earlier(commit: str, folder: pathlib.Path) -> types.ModuleType:
  """Imports the sources of another commit."""
  path = folder / "earlier.py"
  path.write_bytes(
    subprocess.check_output(["git", "show", f"{commit}:mmrl/data/sources.py"])
  )
  spec = importlib.util.spec_from_file_location("earlier", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules["earlier"] = module
  spec.loader.exec_module(module)
  return module


def write(folder: pathlib.Path, count: int) -> dict[str, str]:
  """Writes pictures and a data file of each form of row."""
  for i in range(_PICTURES):
    Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
  question = "What colour has the object to the left of the large one? " * 3

  def picture(i: int) -> dict:
    rest = {"answer": "red", "kind": "colour", "images": [f"{i}.png"]}
    return rest | {"question": question}

  def conversation(i: int) -> dict:
    shown = {"type": "image", "image": f"{i}.png"}
    content = [shown, {"type": "text", "text": question}]
    messages = [
      {"role": "system", "content": "Answer in one word."},
      {"role": "user", "content": content},
    ]
    return {"messages": messages, "answer": "red"}

  def text(i: int) -> dict:
    return {"question": f"{i}: {question}", "answer": "red"}

  found = {}
  for form in (picture, conversation, text):
    path = folder / f"{form.__name__}.jsonl"
    rows = (form(i % _PICTURES) for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found[form.__name__] = str(path)
  return found


def seconds(module: types.ModuleType, path: str) -> float:
  """Time of reading a file."""
  began = time.perf_counter()
  module.JsonLines(path=path)
  return time.perf_counter() - began


def main() -> None:
  """Prints the times, and their ratio if there are two."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=10000)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--before", help="commit to compare with")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    modules = {"now": sources}
    if flags.before:
      modules["before"] = earlier(flags.before, folder)
    for form, path in write(folder, flags.rows).items():
      least = dict.fromkeys(modules, float("inf"))
      for _ in range(flags.repeats):
        for label, module in modules.items():
          least[label] = min(least[label], seconds(module, path))
      shown = ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in least.items())
      if flags.before:
        shown += f", ratio {least['now'] / least['before']:.2f}"
      print(f"{flags.rows} rows, {form}: {shown}")


if __name__ == "__main__":
  main()
