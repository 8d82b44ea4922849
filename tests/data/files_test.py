"""Files, folders, patterns and the hub: which rows are read, and when."""

import base64
import concurrent.futures
import json
import pickle
import re
import sys
import types

from formats_test import picture, processor, write
from PIL import Image
import pytest

from mmrl import data
from mmrl.data import arrow, files, tables, texts
from mmrl.errors import UserError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path):
  for i, name in enumerate("abc"):
    (tmp_path / f"{name}.png").write_bytes(picture(i))
  (tmp_path / "data").mkdir()
  return tmp_path / "data"


def question(i=0, **more):
  return {"question": f"{i}?", "answer": "a"} | more


def asked(source):
  return [example.question for example in source]


# Places.


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet", ".tsv"])
def test_a_folder_and_a_pattern(folder, ending, capsys):
  (folder / "read.me").write_text("not data")
  write(folder / f"train-1{ending}", [question(2)])
  write(folder / f"train-0{ending}", [question(0), question(1)])
  for path in (folder, folder / f"train-*{ending}", folder / "train-?.*"):
    source = data.Files(str(path))
    assert asked(source) == ["0?", "1?", "2?"]
    assert [p[-len(ending) - 1] for p in source.paths] == ["0", "1"]
    said = capsys.readouterr().err
    assert said == f"{path}: 3 rows of 2 files, read as mmrl\n"
  names = list(source.names())
  assert names == [example.name for example in source] and len({*names}) == 3
  with pytest.raises(IndexError):
    source[3]


@pytest.mark.parametrize(
  ("names", "path", "message"),
  [
    ([], "", "expected files of .json, .jsonl, .parquet, .tsv in"),
    ([], "*.json", "expected data files that match"),
    ([], "none.json", "expected a readable data file at"),
    (["a.json", "a.jsonl"], "", "of one kind in .*found .json and .jsonl; na"),
    (["test.json", "train.json"], "", "found test and train; name one by"),
    (["val-0.json", "Train-0.json"], "", "found train and val; name one by"),
  ],
)
def test_folders_that_are_refused(folder, names, path, message):
  for name in names:
    write(folder / name, [question()])
  with pytest.raises(UserError, match=message):
    data.Files(str(folder / path))


def test_files_of_several_formats(folder):
  write(folder / "a.json", [question()])
  write(folder / "b.json", [{"problem": "q", "answer": "a"}])
  with pytest.raises(UserError, match="of one format, found (mmrl|easyr1) and"):
    data.Files(str(folder))


def test_mistakes_of_all_files_are_told(folder):
  write(folder / "a.json", [question(), question(images=["none.png"])])
  write(folder / "b.json", [question(x=1)])
  with pytest.raises(UserError) as error:
    data.Files(str(folder))
  first, second = str(error.value).split(
    "; paths are relative to the data file"
  )
  assert "a.json[1]: expected a picture at" in first
  assert "b.json[0]: expected a row with no other keys" in second


def test_paths_of_pictures(folder):
  path = write(folder / "a.json", [question(images=["a.png"])])
  source = data.Files(path, media=str(folder.parent))
  assert source[0].picture["image"] == str(folder.parent / "a.png")
  with pytest.raises(UserError, match=r"a.json\[0\]: expected a picture at"):
    data.Files(path)


def test_rows_that_do_not_use_the_prompt_are_counted(folder, capsys):
  chat = [{"role": "user", "content": "?"}]
  rows = [question(), {"messages": chat, "answer": "a"}]
  for name in "ab":
    write(folder / f"{name}.json", rows)
  data.Files(str(folder), prompt="Say: {question}")
  said = capsys.readouterr().err
  assert said.endswith("; prompt is unused by 2 rows, which have messages\n")
  data.Files(str(folder))
  assert "prompt" not in capsys.readouterr().err


def test_a_name_of_the_hub_is_written_so():
  with pytest.raises(UserError, match="write hub:owner/name if it is a data"):
    data.Files("owner/name")


# Mappings.


def test_columns(folder, capsys):
  rows = [{"q": "0?", "right": 3, "img": "../a.png", "id": 7}, {"q": "1?"}]
  rows[1]["right"] = ["x", "y"]
  columns = {"question": "q", "answer": "right", "images": "img"}
  for ending in (".json", ".jsonl"):
    path = write(folder / f"a{ending}", rows)
    one, two = data.Files(path, format=columns)
    assert one.right == ("3",) and two.right == ("x", "y")
    assert one.picture["image"] == f"{folder}/../a.png"
    said = capsys.readouterr().err
    assert said == f"{path}: 2 rows, read as columns; unused: id\n"
  path = write(folder / "a.parquet", [row | {"right": "x"} for row in rows])
  assert asked(data.Files(path, format=columns)) == ["0?", "1?"]
  assert "unused: id" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    ({"question": "q", "answer": "rigth"}, "'rigth' .is it 'right'"),
    ({"question": "q", "solution": "right"}, "'solution' .is it 'answer'"),
    ({"question": "q", "answer": 3}, "the name of a column for 'answer'"),
    ({"answer": "right"}, "either 'question' or 'messages'"),
    ("mmlr", "format: expected one of mmrl, trl"),
    (["mmrl"], "format: expected one of mmrl, trl"),
  ],
)
def test_columns_that_are_not_there(folder, columns, message):
  path = write(folder / "a.json", [{"q": "?", "right": "x"}])
  with pytest.raises(UserError, match=message):
    data.Files(path, format=columns)


# JSON.


def rows_of(path):
  table = texts.json_table(str(path))
  scanned = [row for _, row in table.scan()]
  assert [table[i] for i in range(len(table))] == scanned
  return scanned


@pytest.mark.parametrize("block", [1, 7, 2**22])
@pytest.mark.parametrize(
  "text",
  [
    "[]",
    " [ ] \n",
    '[{"a": "é\\u00e9😀", "b": [1, {}]}\n, {"a": null}]\n\n',
    '\ufeff[{"a": "]"},{"b": -12.5e3},{"c": "\\""}]',
  ],
)
def test_arrays_are_read_in_parts(folder, monkeypatch, text, block):
  monkeypatch.setattr(texts, "_BLOCK", block)
  path = folder / "a.json"
  path.write_text(text, "utf-8")
  expected = json.loads(text.removeprefix("\ufeff"))
  for row in expected:
    for key in [key for key in row if row[key] is None]:
      del row[key]
  assert rows_of(path) == expected


@pytest.mark.parametrize("block", [1, 2**22])
@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('[{"a": 1}', r"a.json\[1\]: expected a comma and a row, or the array's"),
    ('[{"a": 1} {"a": 2}]', r"\[1\]: expected a comma and a row"),
    ('[{"a": 1},]', r"\[1\]: expected a row as JSON"),
    ('[{"a": 1}, {"a": ]', r"\[1\]: expected a row as JSON"),
    ('[{"a": 1}] {}', r"\[1\]: expected nothing behind the array"),
    ('[{"a": 1, "a": 2}, {"b": NaN}, 3]', r"\[0\].* once.*\[1\].*found NaN"),
    (r'[{"a": "\u0000"}, {"a": 1}]', r"\[0\]: expected text without control"),
    ('[{"a": "\xff"}]', r"\[0\]: expected a readable data file in UTF-8"),
    ("[" * 9**5, r"\[0\]: expected a row, found lists or objects within"),
  ],
)
def test_arrays_with_mistakes(folder, monkeypatch, text, message, block):
  if len(text) > 99 and block == 1:
    return  # Takes long.
  monkeypatch.setattr(texts, "_BLOCK", block)
  path = folder / "a.json"
  path.write_bytes(text.encode("latin-1"))
  said = texts.json_table(str(path)).check(lambda row, name: None)
  assert re.search(message, said), said


def test_a_file_that_changes_is_refused(folder):
  for ending in (".json", ".jsonl", ".tsv"):
    path = write(folder / f"a{ending}", [question()])
    source = data.Files(path)
    write(folder / f"a{ending}", [question(), question()])
    with pytest.raises(UserError, match="as it was at the start, found: it ch"):
      source[0]
    (folder / f"a{ending}").unlink()
    with pytest.raises(UserError, match="as it was at the start, found: No su"):
      source[0]


# TSV.


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("a\tb\n1\n", r"a.tsv\[0\]: expected 2 fields between tabs, found 1"),
    ("a\tb\n1\t2\n1\t2\t3\n", r"a.tsv\[1\]: expected 2 fields .* found 3"),
    ('a\n"x\n', r"a.tsv\[0\]: expected fields between tabs, found: unexp"),
    ('a\n"x"y\n', r"a.tsv\[0\]: expected fields between tabs, found"),
    ("a\n\0\n", r"a.tsv\[0\]: expected (text without|fields)"),
    ("a\ta\n1\t2\n", "a.tsv: expected names of columns, each once"),
    ("", "expected at least one question in|expected names of columns"),
  ],
)
def test_tsv_with_mistakes(folder, text, message):
  (folder / "a.tsv").write_text(text)
  with pytest.raises(UserError, match=message):
    data.Files(str(folder / "a.tsv"), format="vlmevalkit")


# Parquet.


def shown(count, form=lambda raw: {"bytes": raw, "path": None}):
  rows = [
    question(i, question=f"<image>{i}?", images=[form(picture(i))])
    for i in range(count)
  ]
  return rows


def test_pictures_are_read_with_their_row(folder, monkeypatch):
  path = folder / "a.parquet"
  parquet.write_table(pa.Table.from_pylist(shown(10)), path, row_group_size=3)
  read = []
  whole = parquet.ParquetFile.read_row_group

  def noted(self, group, columns, **options):
    read.append((group, [c for c in columns if c.endswith("bytes")]))
    return whole(self, group, columns, **options)

  monkeypatch.setattr(parquet.ParquetFile, "read_row_group", noted)
  source = data.Files(str(path))
  assert list(source.pairs())[7] == ("<image>7?", "a")
  assert len(list(source.given())) == len(list(source.names())) == 10
  assert read and not any(columns for _, columns in read)
  del read[:]
  assert source[7].picture["image"] == picture(7)
  assert source[8].picture["image"] == picture(8)
  assert [group for group, _ in read] == [2]
  assert [e.picture["image"] for e in source] == [picture(i) for i in range(10)]


def test_threads_and_processes_read_the_same(folder):
  path = folder / "a.parquet"
  parquet.write_table(pa.Table.from_pylist(shown(40)), path, row_group_size=3)
  source = data.Files(str(path))
  source[0]
  copy = pickle.loads(pickle.dumps(source))
  for one in (source, copy):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      order = [(7 * i) % 40 for i in range(80)]
      found = [e.picture["image"] for e in pool.map(one.__getitem__, order)]
    assert found == [picture(i) for i in order]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".tsv"])
def test_other_tables_are_copied_as_well(folder, ending):
  path = write(folder / f"a{ending}", [question(i) for i in range(9)])
  source = data.Files(path)
  assert asked(pickle.loads(pickle.dumps(source))) == asked(source)


def test_pictures_of_several_forms(folder):
  (folder / "x.png").write_bytes(picture(99))
  both = [{"bytes": picture(1), "path": "gone.png"}]
  both += [{"bytes": None, "path": "x.png"}]
  rows = [question(i, images=images) for i, images in enumerate([both, None])]
  rows.append(question(2, images=both[1:]))
  path = write(folder / "a.parquet", rows)
  one, two, three = data.Files(path)
  kinds = [part["image"] for part in one.messages[0]["content"][:2]]
  assert kinds == [picture(1), str(folder / "x.png")]
  assert two.picture is None and three.picture["image"] == kinds[1]
  bare = [question(i, images=[picture(i)]) for i in range(3)]
  found = data.Files(write(folder / "b.parquet", bare))
  assert [e.picture["image"] for e in found] == [picture(i) for i in range(3)]
  one = [{"q": "?", "a": "x", "i": {"bytes": picture(5), "path": "x"}}]
  columns = {"question": "q", "answer": "a", "images": "i"}
  (found,) = data.Files(write(folder / "c.parquet", one), format=columns)
  assert found.picture["image"] == picture(5)


def test_pictures_without_statistics(folder):
  path = folder / "a.parquet"
  table = pa.Table.from_pylist(shown(4))
  parquet.write_table(table, path, write_statistics=False)
  source = data.Files(str(path))
  assert [e.picture["image"] for e in source] == [picture(i) for i in range(4)]


@pytest.mark.parametrize(
  ("images", "message"),
  [
    ([{"bytes": None, "path": "none.png"}], "a picture at .*none.png"),
    ([{"bytes": None, "path": None}], "a picture in one of .*found none"),
    (
      [{"bytes": picture(0), "path": None}] * 2,
      "as many marks <image> .*1 and",
    ),
    ([], "as many marks <image> .*1 and 0"),
    ([None], "a picture as a path, found None"),
  ],
)
def test_parquet_names_file_and_row(folder, images, message):
  rows = shown(5)
  rows[3]["images"] = images
  for row in rows:
    row["problem"] = row.pop("question")
  path = write(folder / "a.parquet", rows)
  with pytest.raises(UserError, match=rf"a.parquet\[3\]: expected {message}"):
    data.Files(path)


def test_a_broken_picture_is_told_when_it_is_read(folder):
  rows = shown(2, lambda raw: {"bytes": raw[:9], "path": None})
  source = data.Files(write(folder / "a.parquet", rows))
  with pytest.raises(
    UserError, match=r"a.parquet\[1\]: expected the base64 of"
  ):
    source[1]


def test_texts_of_parquet_are_checked(folder):
  rows = [question(0), question(1, question="a\0b"), question(2)]
  with pytest.raises(UserError, match=r"a.parquet\[1\]: .* control characters"):
    data.Files(write(folder / "a.parquet", rows))
  column = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
  table = pa.table({"question": column, "answer": ["x", "y", "z"]})
  parquet.write_table(table, folder / "a.parquet")
  with pytest.raises(
    UserError, match=r"a.parquet\[1\]: expected a row that ca"
  ):
    data.Files(str(folder / "a.parquet"))


def test_files_that_are_no_parquet(folder):
  (folder / "a.parquet").write_text("{}")
  with pytest.raises(UserError, match="a.parquet: expected a parquet file, f"):
    data.Files(str(folder / "a.parquet"))
  with pytest.raises(UserError, match="expected a readable data file at"):
    data.Files(str(folder / "none.parquet"))


def test_large_row_groups_are_told(folder, monkeypatch, capsys):
  monkeypatch.setattr(arrow, "_LARGE", 100)
  data.Files(write(folder / "a.parquet", shown(4)))
  assert "is read whole for each of its rows" in capsys.readouterr().err


def test_pyarrow_is_missing(folder, monkeypatch):
  path = write(folder / "a.parquet", shown(1))
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[data\]'"):
    data.Files(path)
  json_path = write(folder / "a.json", [question()])
  assert len(data.Files(json_path)) == 1


# The hub.


@pytest.fixture
def hub(monkeypatch):
  """A stub of `datasets`, whose one data set has 3 rows."""
  asked = []

  class Dataset:
    column_names = ("question", "answer", "images")

    def __init__(self):
      self.table = pa.Table.from_pylist(shown(3))

    def __len__(self):
      return 3

    def with_format(self, form):
      assert form == "arrow"
      return self

    def __getitem__(self, rows):
      return self.table[rows]

  def load_dataset(name, config, *, split):
    asked.append((name, config, split))
    if name == "owner/none":
      raise FileNotFoundError("no such\ndata set")
    return Dataset()

  stub = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", stub)
  return asked


def test_the_hub(hub, capsys):
  for path, expected in (
    ("hub:owner/name", ("owner/name", None, "train")),
    ("hub:owner/name@test", ("owner/name", None, "test")),
    ("hub:owner/name/small@test", ("owner/name", "small", "test")),
  ):
    source = data.Files(path)
    assert hub.pop() == expected
    assert source[1].picture["image"] == picture(1)
    assert source[1].name == f"{path}[1]" and list(source.paths) == [path]
    assert capsys.readouterr().err == f"{path}: 3 rows, read as mmrl\n"
  for path, message in (
    ("hub:owner/none", "a data set of the hub at hub:owner/none, found: no su"),
    ("hub:name", "expected hub:OWNER/NAME@SPLIT, found 'hub:name'"),
  ):
    with pytest.raises(UserError, match=message) as error:
      data.Files(path)
    assert "\n" not in str(error.value)


def test_datasets_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[hub\]'"):
    data.Files("hub:owner/name")


def test_bytes_are_base64_in_json(folder):
  text = base64.b64encode(picture(3)).decode()
  row = question(images=[{"bytes": text, "path": None}])
  assert data.Files(write(folder / "a.json", [row]))[0].picture == {
    "type": "image",
    "image": picture(3),
  }


class Decoded(tables.Table):
  """A stub of what gives rows whose pictures `datasets` has decoded."""

  def __init__(self, rows):
    super().__init__("decoded")
    self.rows = rows

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, index):
    return self.rows[index]

  def scan(self):
    return enumerate(self.rows)


def test_pictures_that_are_decoded(folder, monkeypatch):
  one = Image.new("RGB", (4, 3), "red")
  chat = [{"type": "image", "image": one}, {"type": "text", "text": "?"}]
  rows = [
    question(images=[one]),
    question(images=[{"image": one, "region": [0, 0, 1, 1]}]),
    {"messages": [{"role": "user", "content": chat}], "answer": "a"},
  ]
  monkeypatch.setattr(files, "_table", lambda path: Decoded(rows))
  path = write(folder / "a.json", rows[:0])
  found = data.Files(path)
  assert all(example.picture["image"] is one for example in found)
  assert found[1].picture["region"] == (0, 0, 1, 1)
  for example in found:
    processor().encode(example.messages, "x")
  rows[0] = question(videos=[one])
  with pytest.raises(UserError, match=r"decoded\[0\]: expected a video as a p"):
    data.Files(path)


def test_nested_columns_of_parquet_are_checked(folder):
  def chat(text, **more):
    return {"messages": [{"role": "user", "content": text} | more]}

  rows = [chat(f"{i}?") | {"answer": "a"} for i in range(5)]
  assert asked(data.Files(write(folder / "a.parquet", rows)))[4] == "4?"
  rows[2]["messages"] += chat("x", name=None)["messages"]
  path = write(folder / "a.parquet", rows)
  assert asked(data.Files(path))[2] == "x"
  rows[3] = chat("a\x9fb") | {"answer": "a"}
  with pytest.raises(UserError, match=r"a.parquet\[3\]: .* control characters"):
    data.Files(write(folder / "a.parquet", rows))
  rows[3] = chat("b", name="n") | {"answer": "a"}
  with pytest.raises(UserError, match=r"a.parquet\[3\]: .* no other keys"):
    data.Files(write(folder / "a.parquet", rows))
