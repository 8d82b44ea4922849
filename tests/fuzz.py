"""Throws damaged rows, model directories and pictures at what reads them.

    python -m tests.fuzz                              a hundred of each
    python -m tests.fuzz --minutes 10 --seed 1        as many as fit

What is read is used, or refused by one printable line; anything else (another
exception, a warning of NumPy's, a line of a thousand characters) is a fault,
which is printed with the smallest input that shows it.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import copy
import csv
import functools
import importlib.util
import io
import json
import pathlib
import shutil
import tempfile
import time
from typing import Any

import hypothesis
from hypothesis import strategies as st
import numpy as np
from PIL import Image

from mmrl import hub
from mmrl.data import sources
from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.prompts.processor import Processor

LONGEST = 2000
TEXTS = st.one_of(
  st.text(max_size=12),
  st.sampled_from(
    [
      *("a.png", "v.mp4", "", " ", "<image>", "<video>", "<image><image>"),
      *("user", "assistant", "system", "text", "image", "video", "\x00"),
      *("data:image/png;base64,AA", "https://e.org/a.png", "gs://b/a", "../"),
      *("file:///dev/null", "/dev/zero", "NaN", "1e999", "\ud800", "A" * 5000),
    ]
  ),
)
LEAVES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-(2**70), 2**70),
  st.sampled_from([0, 1, -1, 2, 10**9, 10**12, 0.5, 1e300]),
  st.floats(),
  TEXTS,
)
VALUES = st.recursive(
  LEAVES,
  lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)
  ),
  max_leaves=8,
)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
  """Yields the path of every value in a tree of JSON."""
  yield path
  if isinstance(value, dict | list):
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
      yield from places(value[key], (*path, key))


@st.composite
def damaged(draw, wholes: list[Any]) -> Any:
  """Draws a whole value of JSON in which one to three places are changed."""
  value = copy.deepcopy(draw(st.sampled_from(wholes)))
  for _ in range(draw(st.integers(1, 3))):
    *outer, last = draw(st.sampled_from([(None,), *places(value)][1:])) or [
      None
    ]
    if last is None:
      return draw(VALUES)
    inner = functools.reduce(lambda tree, key: tree[key], outer, value)
    change = draw(st.sampled_from(["other", "out", "more"]))
    if change == "other":
      inner[last] = draw(VALUES)
    elif change == "out":
      del inner[last]
    elif isinstance(inner, dict):
      inner[draw(TEXTS)] = draw(VALUES)
    else:
      inner.append(draw(VALUES))
  return value


def as_json(value: Any) -> bytes:
  """Writes JSON, NaN and half surrogates included."""
  return json.dumps(value).encode("utf-8", "surrogatepass")


def refused_well(read: Callable[[], Any]) -> None:
  """Calls `read`, which may refuse what it reads by one line."""
  try:
    with np.errstate(all="raise"):
      read()
  except UserError as error:
    text = str(error)
    assert text.isprintable(), f"more than a printable line: {text!r}"
    assert len(text) < LONGEST, f"{len(text)} characters: {text:.300}"


ROW = {"question": "what?", "answer": "red"}
ROWS = [
  ROW,
  ROW | {"images": ["a.png"], "region": [0, 0, 2, 2], "kind": "k"},
  ROW | {"images": [{"path": "a.png"}], "videos": [{"video": "v.mp4"}]},
  {"answers": ["t"], "question": "first <image>", "images": ["a.png"]},
  {
    "messages": [
      {"role": "system", "content": "be good"},
      {"role": "user", "content": [{"type": "image"}, {"type": "text"}]},
      {"role": "assistant", "content": "yes"},
      {
        "role": "user",
        "content": [
          {"type": "image", "image": "a.png", "region": [0, 0, 1, 1]},
          {"type": "text", "text": "what?"},
        ],
      },
    ],
    "images": ["a.png"],
    "answer": ["red", 3],
  },
]


def rows(folder: pathlib.Path) -> tuple[st.SearchStrategy, Callable]:
  """Rows of data files, as objects and as bytes."""
  Image.new("RGB", (4, 3)).save(folder / "a.png")
  (folder / "v.mp4").write_bytes(b"no video")
  path = folder / "data.jsonl"
  lines = st.one_of(
    damaged(ROWS).map(as_json),
    VALUES.map(as_json),
    st.binary(max_size=40),
    st.tuples(
      st.sampled_from(ROWS), st.integers(0, 400), st.binary(max_size=3)
    ).map(lambda x: as_json(x[0])[: x[1]] + x[2] + as_json(x[0])[x[1] :]),
  )

  def read(found: list[bytes]) -> None:
    path.write_bytes(b"\n".join(found))
    with contextlib.redirect_stderr(io.StringIO()):
      list(sources.Files(path=str(path), format="mmrl"))

  return st.lists(lines, min_size=1, max_size=3), read


FORMATS = pathlib.Path(__file__).parent / "testdata" / "formats"


def whole_rows() -> list[tuple[str, dict]]:
  """Returns formats and whole rows of them, those of the tests."""
  found = []
  for path in sorted(FORMATS.iterdir()):
    form = path.stem.partition("-")[0]
    if path.suffix == ".tsv":
      with path.open("r", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    elif path.suffix == ".json":
      rows = json.loads(path.read_text("utf-8"))
    else:
      rows = [json.loads(x) for x in path.read_text("utf-8").splitlines()]
    if not path.stem.endswith("_ours"):
      found += [(form, row) for row in rows]
  return found


def as_tsv(found: list[Any]) -> bytes:
  """Writes rows as tab-separated values, other values than texts as JSON."""
  text = io.StringIO()
  rows = [row if isinstance(row, dict) else {"question": row} for row in found]
  names = list(dict.fromkeys(key for row in rows for key in row))
  writer = csv.writer(text, delimiter="\t", lineterminator="\n")
  for fields in (names, *([row.get(n, "") for n in names] for row in rows)):
    writer.writerow(
      [f if isinstance(f, str) else json.dumps(f) for f in fields]
    )
  return text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(found: list[Any]) -> bytes:
  """Writes rows as parquet; empty where Arrow can't have such columns."""
  import pyarrow
  from pyarrow import parquet

  names = dict.fromkeys(key for row in found for key in row)
  file = io.BytesIO()
  try:
    columns = {name: [row.get(name) for row in found] for name in names}
    parquet.write_table(pyarrow.table(columns), file, row_group_size=2)
  except (pyarrow.ArrowException, OverflowError, UnicodeError):
    return b""
  return file.getvalue()


def writers() -> dict[str, Callable[[list[Any]], bytes]]:
  """Returns what writes rows, by the ending of the file."""
  found = {
    ".jsonl": lambda rows: b"\n".join(map(as_json, rows)),
    ".json": as_json,
    ".tsv": as_tsv,
  }
  if importlib.util.find_spec("pyarrow"):
    found[".parquet"] = as_parquet
  return found


# Columns of one type, most of which no key means to have.
COLUMNS = st.one_of(
  [
    st.lists(one, min_size=3, max_size=3)
    for one in (
      *(st.booleans(), st.integers(-9, 9), st.floats(), st.binary(max_size=9)),
      *(st.datetimes(), st.decimals(0, 9, places=2), st.just(None), TEXTS),
      st.lists(TEXTS, max_size=3),
      st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2),
      st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}),
      st.lists(
        st.fixed_dictionaries(
          {"bytes": st.none() | st.binary(max_size=3), "path": TEXTS}
        ),
        max_size=2,
      ),
    )
  ]
)


def other_formats(folder: pathlib.Path) -> tuple[st.SearchStrategy, Callable]:
  """Rows of other projects' formats, in files of every kind."""
  for name in "abc":
    Image.new("RGB", (4, 3)).save(folder / f"{name}.png")
  (folder / "v.mp4").write_bytes(b"no video")
  wholes, write = whole_rows(), writers()
  rows_of = {
    form: [row for name, row in wholes if name == form] for form, _ in wholes
  }

  @st.composite
  def files(draw) -> tuple[str, str | None, list[Any]]:
    form = draw(st.sampled_from(sorted(rows_of)))
    ending = draw(st.sampled_from(sorted(write)))
    rows = draw(st.lists(damaged(rows_of[form]), min_size=1, max_size=3))
    if ending == ".parquet":
      rows = copy.deepcopy([draw(st.sampled_from(rows_of[form]))] * 3)
      name = draw(st.sampled_from([*rows[0], "id"]))
      for row, value in zip(rows, draw(COLUMNS), strict=True):
        row[name] = value
    return ending, draw(st.sampled_from([form, None])), rows

  def read(found: tuple[str, str | None, list[Any]]) -> None:
    ending, form, rows = found
    path = folder / f"data{ending}"
    path.write_bytes(write[ending](rows))
    with contextlib.redirect_stderr(io.StringIO()):
      list(sources.Files(path=str(path), format=form))

  return files(), read


def model_files(folder: pathlib.Path) -> tuple[st.SearchStrategy, Callable]:
  """Small files of a model directory, each damaged in turn."""
  tiny = pathlib.Path(str(directory.tiny_path()))
  copied = folder / "model"
  shutil.copytree(tiny, copied)
  (copied / "model.safetensors").unlink()
  ends = {"eos_token_id": [374, 372], "pad_token_id": 372}
  (copied / "generation_config.json").write_bytes(as_json(ends))
  wholes = {
    name: json.loads((copied / name).read_text("utf-8"))
    for name in (
      *("config.json", "generation_config.json", "preprocessor_config.json"),
      "tokenizer_config.json",
    )
  }
  files = st.one_of(
    [
      st.tuples(
        st.just(name),
        st.one_of(damaged([whole]).map(as_json), st.binary(max_size=40)),
      )
      for name, whole in wholes.items()
    ]
  )

  def read(found: tuple[str, bytes]) -> None:
    name, content = found
    before = (copied / name).read_bytes()
    (copied / name).write_bytes(content)
    try:
      Processor.load(copied, config_json.read(copied))
    finally:
      (copied / name).write_bytes(before)

  return files, read


def chat_templates(folder: pathlib.Path) -> tuple[st.SearchStrategy, Callable]:
  """Chat templates that are cut or have something put in."""
  tiny = pathlib.Path(str(directory.tiny_path()))
  copied = folder / "model"
  shutil.copytree(tiny, copied)
  (copied / "model.safetensors").unlink()
  path = copied / "chat_template.jinja"
  whole = path.read_text("utf-8")
  config = config_json.read(copied)
  pieces = st.sampled_from(
    [
      *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{% if %}",
        "{{ nothing.at.all }}",
        "{{ 1/0 }}",
      ),
      *("{% for x in 3 %}{% endfor %}", "{{ messages[9] }}", "{% endfor %}"),
      *("{{ raise_exception('no') }}", "{{ 'a' * 10**9 }}", "{{ messages }}"),
      *("{% set x = namespace() %}{{ x.y }}", "{{ [].pop() }}", "\x00"),
    ]
  )
  texts = st.tuples(st.integers(0, len(whole)), pieces, st.integers(0, 30))
  messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]

  def read(found: tuple[int, str, int]) -> None:
    at, piece, cut = found
    path.write_text(whole[:at] + piece + whole[at + cut :], "utf-8")
    Processor.load(copied, config).encode(messages, "file:1")

  return texts, read


def pictures(folder: pathlib.Path) -> tuple[st.SearchStrategy, Callable]:
  """Picture files with bytes that are changed or cut off."""
  path = folder / "a"
  processor = hub.load("tiny").processor
  wholes = []
  colours = np.random.RandomState(0).randint(0, 255, (20, 30, 4), np.uint8)
  for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
    image = Image.fromarray(colours, "RGBA")
    image = image if form in ("PNG", "TIFF", "WEBP") else image.convert("RGB")
    image.save(path, form)
    wholes.append(path.read_bytes())
  changes = st.tuples(
    st.sampled_from(wholes),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5),
    st.integers(0, 10**6),
  )
  text = {"type": "text", "text": "what?"}

  def read(found: tuple[bytes, list[tuple[int, int]], int]) -> None:
    whole, swaps, cut = found
    content = bytearray(whole)
    for at, byte in swaps:
      # The headers, mostly, where a size or a colour type is.
      content[at % min(len(content), 400)] = byte
    if cut % 4 == 0:
      del content[cut % len(content) :]
    path.write_bytes(content)
    part = {"type": "image", "image": str(path)}
    messages = [{"role": "user", "content": [part, text]}]
    processor.encode(messages, "file:1")

  return changes, read


KINDS = {
  "rows": rows,
  "formats": other_formats,
  "model_files": model_files,
  "chat_templates": chat_templates,
  "pictures": pictures,
}


@contextlib.contextmanager
def target(kind: str) -> Iterator[tuple[st.SearchStrategy, Callable]]:
  """Yields what draws inputs of a kind, and what reads one."""
  with tempfile.TemporaryDirectory() as folder:
    yield KINDS[kind](pathlib.Path(folder))


def check(kind: str, count: int, seed: int) -> None:
  """Reads so many damaged inputs of a kind.

  Raises:
    AssertionError: or whatever the reader raised, for the smallest input.
  """
  with target(kind) as (inputs, read):

    @hypothesis.seed(seed)
    @hypothesis.settings(
      max_examples=count,
      deadline=None,
      database=None,
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(inputs)
    def once(found):
      refused_well(lambda: read(found))

    once()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--minutes", type=float, default=0.0)
  parser.add_argument("--count", type=int, default=100, help="of each, a round")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
  flags = parser.parse_args()
  ends, rounds = time.monotonic() + 60 * flags.minutes, 0
  while not rounds or time.monotonic() < ends:
    for kind in flags.kinds:
      check(kind, flags.count, flags.seed + rounds)
    rounds += 1
  print(f"{rounds * flags.count} of each of {', '.join(flags.kinds)}: no fault")


if __name__ == "__main__":
  main()
