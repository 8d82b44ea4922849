"""Opening of checked rows: seconds and memory, and those of another commit.

  python -m experiments.bench.rows --rows 100000
  python -m experiments.bench.rows --rows 10000 --before COMMIT

Questions with pictures (each is looked for), conversations, texts, other
projects' formats, and parquet with pictures in it. `--before` runs the first
three with the reader of another commit, too, in turns of processes, and
compares the least times.
"""

import argparse
import base64
import io
import json
import pathlib
import subprocess
import sys
import tempfile

from PIL import Image
import pyarrow as pa
from pyarrow import parquet

_PICTURES = 500
_QUESTION = "What colour has the object to the left of the large one? " * 3
# Reads a file some times; prints the least seconds of the processor, since
# others may use it, too, and megabytes: of the first reading, and of all that
# the process holds then.
_MEASURE = """
import resource, sys, time
from mmrl import data
def held():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
path, repeats = sys.argv[1:]
make = getattr(data, "Files", None) or data.JsonLines
least, before = float("inf"), held()
for i in range(int(repeats)):
  began = time.process_time()
  source = make(path=path)
  least = min(least, time.process_time() - began)
  after = after if i else held()
print(least, after - before, after)
"""


def picture(i: int) -> dict:
  """A question with a picture."""
  rest = {"answer": "red", "kind": "colour", "images": [f"{i}.png"]}
  return rest | {"question": _QUESTION}


def conversation(i: int) -> dict:
  """A conversation with a picture in it."""
  shown = {"type": "image", "image": f"{i}.png"}
  content = [shown, {"type": "text", "text": _QUESTION}]
  messages = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": content},
  ]
  return {"messages": messages, "answer": "red"}


def text(i: int) -> dict:
  """A question without a picture."""
  return {"question": f"{i}: {_QUESTION}", "answer": "red"}


def video_r1(i: int) -> dict:
  """A question as Video-R1 has it."""
  return {
    "problem_id": i,
    "problem": _QUESTION,
    "data_type": "image",
    "problem_type": "multiple choice",
    "options": ["A. red", "B. blue"],
    "path": f"./{i}.png",
    "solution": "<answer>A</answer>",
    "data_source": "x",
  }


def llava(i: int) -> dict:
  """A conversation as LLaVA has it."""
  turns = [("human", f"<image>\n{_QUESTION}"), ("gpt", "red")]
  conversations = [{"from": a, "value": b} for a, b in turns]
  return {"id": i, "image": f"{i}.png", "conversations": conversations}


def trl(i: int) -> dict:
  """A question as TRL has it."""
  prompt = [{"role": "user", "content": _QUESTION}]
  return {"prompt": prompt, "images": [f"{i}.png"], "solution": "red"}


def verl(i: int) -> dict:
  """A question as verl has it, with the bytes of its picture."""
  content = io.BytesIO()
  Image.new("RGB", (8, 8), (i % 256, 9, 9)).save(content, "PNG")
  return {
    "data_source": "x",
    "prompt": [{"role": "user", "content": f"<image>{_QUESTION}"}],
    "images": [{"bytes": content.getvalue() + bytes(5000), "path": None}],
    "reward_model": {"style": "rule", "ground_truth": "red"},
    "extra_info": {"index": i, "split": "train"},
  }


def write(folder: pathlib.Path, count: int) -> dict[str, str]:
  """Writes pictures and a data file of each form of row."""
  for i in range(_PICTURES):
    Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
  found = {}
  for form in (picture, conversation, text, trl, llava):
    path = folder / f"{form.__name__}.jsonl"
    rows = (form(i % _PICTURES) for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found[form.__name__] = str(path)
  path = folder / "video_r1.json"
  path.write_text(json.dumps([video_r1(i % _PICTURES) for i in range(count)]))
  found["video_r1"] = str(path)
  path = folder / "vlmevalkit.tsv"
  shown = base64.b64encode(verl(0)["images"][0]["bytes"][:100]).decode()
  lines = [f"{i}\t{_QUESTION}\tred\t{shown}\n" for i in range(count)]
  path.write_text("".join(["index\tquestion\tanswer\timage\n", *lines]))
  found["vlmevalkit"] = str(path)
  path = folder / "verl.parquet"
  some = [verl(i) for i in range(_PICTURES)]
  table = pa.Table.from_pylist(some)
  with parquet.ParquetWriter(path, table.schema) as file:
    for _ in range(count // _PICTURES):
      file.write_table(table, row_group_size=100)
  found["verl"] = str(path)
  return found


def measured(tree: pathlib.Path, path: str, repeats: int) -> list[float]:
  """Least seconds of reading a file, and megabytes, by the code in a folder."""
  command = [sys.executable, "-c", _MEASURE, path, str(repeats)]
  output = subprocess.check_output(command, cwd=tree, stderr=subprocess.DEVNULL)
  return [float(value) for value in output.split()]


def main() -> None:
  """Prints the times, and their ratio if there are two."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=10000)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--before", help="commit to compare with")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    trees = {"now": pathlib.Path.cwd()}
    if flags.before:
      trees["before"] = folder / "before"
      trees["before"].mkdir()
      command = ["git", "archive", flags.before, "mmrl"]
      archive = subprocess.check_output(command)
      subprocess.run(["tar", "x", "-C", trees["before"]], input=archive)
    for form, path in write(folder, flags.rows).items():
      if flags.before and form not in ("picture", "conversation", "text"):
        continue
      found = {
        label: min(
          measured(tree, path, flags.repeats) for _ in range(flags.rounds)
        )
        for label, tree in trees.items()
      }
      shown = ", ".join(
        f"{label} {seconds * 1e3:.0f} ms, {grown:.0f} MB more, {all_:.0f} MB"
        for label, (seconds, grown, all_) in found.items()
      )
      if flags.before:
        ratio = found["now"][0] / found["before"][0]
        shown += f", ratio {ratio:.2f}"
      print(f"{flags.rows} rows, {form}: {shown}", flush=True)


if __name__ == "__main__":
  main()
