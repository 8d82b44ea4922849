"""Files survive what ends a process, and lie on disks or in a store."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import av
from etils import epath
from etils.epath import testing
import jax
import numpy as np
from PIL import Image
import pytest
import runs
import small_models

from mmrl import config as config_lib
from mmrl import hub, storage
from mmrl.benchmarks import results
from mmrl.benchmarks.intervals import Estimate
from mmrl.data import sources
from mmrl.errors import UserError
from mmrl.prompts import pictures, videos
from mmrl.workdir import log as log_lib
from mmrl.workdir.claim import claim

ROOT = pathlib.Path(__file__).parents[1]
SMALL = small_models.small_config()


@pytest.fixture
def store(tmp_path, monkeypatch):
  """A folder that stands for gs://, which has no files to append to."""
  folder = tmp_path / "store"
  folder.mkdir()

  def here(name):
    return os.fspath(name).replace("gs://", f"{folder}/", 1)

  def one(function, name, *args, **options):
    return function(here(name), *args, **options)

  def both(function, name, other, **options):
    os.makedirs(os.path.dirname(here(other)), exist_ok=True)
    return function(here(name), here(other), **options)

  def open_(function, name, mode):
    assert "a" not in mode or not storage.is_remote(name)
    if "w" in mode:
      os.makedirs(os.path.dirname(here(name)), exist_ok=True)
    return function(here(name), mode)

  def glob(function, name):
    found = function(here(name))
    return [file.replace(f"{folder}/", "gs://", 1) for file in found]

  monkeypatch.setattr(storage, "_has_client", lambda: True)
  ones = ("exists", "isdir", "listdir", "makedirs", "mkdir", "remove", "rmtree")
  with testing.mock_epath(
    open=open_,
    glob=glob,
    copy=both,
    rename=both,
    replace=both,
    **dict.fromkeys(ones, one),
  ):
    yield folder


@pytest.fixture
def temporary(tmp_path, monkeypatch):
  """The folder that copies of files go to."""
  folder = tmp_path / "temporary"
  folder.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(folder))
  return folder


@pytest.mark.full
def test_paths(tmp_path, store):
  assert storage.path(tmp_path) == tmp_path
  assert isinstance(storage.path("a/b"), epath.Path)
  for name in ("gs://a/b", pathlib.Path("gs://a/b"), epath.Path("gs://a/b")):
    path = storage.path(name) / "c"
    assert os.fspath(path) == str(path) == "gs://a/b/c"
    assert storage.is_remote(path)
  assert not storage.is_remote(storage.path(tmp_path))


def test_places_that_are_not_known(monkeypatch):
  with pytest.raises(UserError, match="a local path or gs://.* found s3://a"):
    storage.path("s3://a/b")
  monkeypatch.setattr(storage, "_has_client", lambda: False)
  with pytest.raises(UserError, match=r"client for gs://a/b.*\.\[gcs\]"):
    storage.path("gs://a/b")


@pytest.mark.full
@pytest.mark.parametrize("place", ["local", "gs://bucket/deep"])
def test_what_is_written_is_read(tmp_path, store, place):
  folder = storage.path(tmp_path / "deep" if place == "local" else place)
  assert storage.names(folder) == frozenset() and not storage.is_dir(folder)
  with pytest.raises(FileNotFoundError):
    storage.read_bytes(folder / "a")
  for text in ("longer text ü", "short\n"):
    storage.write_text(folder / "a", text)
    assert storage.read_text(folder / "a") == text
  assert storage.names(folder) == {"a"} and storage.is_dir(folder)
  storage.write_bytes(folder / "b", b"one\r\ntwo")
  assert storage.read_text(folder / "b") == "one\ntwo"
  assert storage.read_bytes(folder / "b") == b"one\r\ntwo"


@pytest.mark.full
def test_a_store_that_fails(monkeypatch, store):
  """Its client may raise anything; what users see is one line."""

  def fail(*_, **__):
    raise RuntimeError("401: invalid\ncredentials")

  with testing.mock_epath(open=fail, isdir=fail, makedirs=fail, listdir=fail):
    for call in (storage.read_bytes, storage.is_dir, storage.names):
      with pytest.raises(OSError, match="401: invalid credentials: 'gs://a/b"):
        call("gs://a/b")
    with pytest.raises(UserError, match="could not write gs://a/b: .*401"):
      storage.write_text("gs://a/b", "text")
    with pytest.raises(UserError, match="couldn't reach gs://a/b: .*401"):
      hub.load("gs://a/b")
    with pytest.raises(UserError, match="write a model to gs://a/b: .*401"):
      hub.save(small_models.make_model(SMALL), "gs://a/b")
    with pytest.raises(UserError, match="writable --workdir.*401"):
      claim("gs://a/b", config_lib.get_config())


WRITER = """
import sys
from mmrl import storage

storage.write_bytes(sys.argv[1], b"a" * 2**22)
print("ready", flush=True)
while True:
  for letter in b"ba":
    storage.write_bytes(sys.argv[1], bytes([letter]) * 2**22)
"""


@pytest.mark.full
def test_sigkill_leaves_the_old_file_or_the_new_one(tmp_path):
  file = tmp_path / "file"
  for number in (1, 3):
    process = subprocess.Popen(
      [sys.executable, "-c", WRITER, str(file)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    try:
      assert process.stdout.readline() == "ready\n"
      for _ in range(20):
        content = file.read_bytes()
        assert content == content[:1] * 2**22
      time.sleep(0.013 * number)
    finally:
      process.send_signal(signal.SIGKILL)
      process.communicate()
    content = file.read_bytes()
    assert content == content[:1] * 2**22
  storage.write_text(file, "new")
  assert [f.name for f in tmp_path.iterdir()] == ["file"], "drafts are left"


def test_a_full_disk_leaves_the_old_file(tmp_path):
  """A limit on file size stands for the disk."""
  storage.write_text(tmp_path / "file", "old")
  wanted = pytest.raises(UserError, match="write .*too large; make it")
  with runs.full_disk(4096), wanted:
    storage.write_bytes(tmp_path / "file", b"x" * 8192)
  assert (tmp_path / "file").read_text() == "old"
  assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  storage.write_text(tmp_path / "file", "text")
  log = log_lib.Log(tmp_path, step=0)
  log.write(1, {"a": 1.0})
  log.close()
  assert not list(tmp_path.iterdir())


# Models.


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.full
@pytest.mark.parametrize("most", [10**9, 40_000])
def test_a_model_in_a_store(tmp_path, store, temporary, most):
  model = small_models.make_model(SMALL)
  hub.save(model, tmp_path / "local", max_shard_bytes=most)
  hub.save(model, "gs://bucket/model", max_shard_bytes=most)
  here, there = (
    {f.name: f.read_bytes() for f in folder.iterdir()}
    for folder in (tmp_path / "local", store / "bucket" / "model")
  )
  # Where the tokenizer was read or written is no part of it.
  assert here == there
  assert len(here) > 6
  loaded = hub.load("gs://bucket/model")
  same(loaded.params, model.params)
  assert loaded.config == model.config
  assert loaded.processor.picture == model.processor.picture
  assert not list(temporary.iterdir()), "copies are left"


@pytest.mark.full
def test_shards_are_copied_one_at_a_time(store, temporary, monkeypatch):
  model = small_models.make_model(SMALL)
  hub.save(model, "gs://bucket/model", max_shard_bytes=40_000)
  shards = len(list((store / "bucket/model").glob("model-*.safetensors")))
  copied = []
  local = storage.local

  def watched(folder, names):
    copied.append(list(names))
    left = list(temporary.rglob("*.safetensors"))
    assert not left
    return local(folder, names)

  monkeypatch.setattr(storage, "local", watched)
  hub.load("gs://bucket/model")
  weights = [names for names in copied if names[0].endswith(".safetensors")]
  assert [len(names) for names in weights] == [1] * shards and shards > 2


@pytest.mark.full
@pytest.mark.parametrize("most", [10**9, 40_000])
def test_a_model_in_a_store_is_replaced(store, most):
  """By one with more shards, or fewer."""
  model = small_models.make_model(SMALL)
  hub.save(model, "gs://b/m", max_shard_bytes=50_000 - most % 7)
  changed = hub.Model(
    SMALL, jax.tree.map(lambda x: x + 1, model.params), model.processor
  )
  hub.save(changed, "gs://b/m", max_shard_bytes=most)
  same(hub.load("gs://b/m").params, changed.params)
  fresh = storage.path("gs://b/fresh")
  hub.save(changed, fresh, max_shard_bytes=most)
  assert storage.names("gs://b/m") == storage.names(fresh)


@pytest.mark.full
def test_broken_weights_in_a_store(store):
  with pytest.raises(UserError, match="found none at gs://b/m; pass"):
    hub.load("gs://b/m")
  hub.save(small_models.make_model(SMALL), "gs://b/m")
  file = store / "b" / "m" / "model.safetensors"
  whole = file.read_bytes()
  for content in (b"", b"\xff" * 8, b"\x05" + b"\0" * 12, whole[:-100]):
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"weights at gs://b/m/{file.name}"):
      hub.load("gs://b/m")


def test_a_killed_save_leaves_no_litter(tmp_path):
  model = small_models.make_model(SMALL)
  hub.save(model, tmp_path)
  names = storage.names(tmp_path)
  (tmp_path / ".saving-killed").mkdir()
  (tmp_path / ".saving-killed" / "model.safetensors").write_bytes(b"half")
  hub.save(model, tmp_path)
  assert storage.names(tmp_path) == names


def test_what_is_not_weights_is_written_whole(tmp_path, monkeypatch):
  """A save that ends anywhere leaves each file as it was, or the new one."""
  model = small_models.make_model(SMALL)
  hub.save(model, tmp_path)
  replace, done = os.replace, []
  monkeypatch.setattr(
    os, "replace", lambda *names: (done.append(names[1]), replace(*names))
  )
  hub.save(model, tmp_path)
  written = [pathlib.Path(name).name for name in done]
  assert sorted(written) == sorted([*storage.names(tmp_path), INDEX])
  assert written[-1] == "config.json"


INDEX = "model.safetensors.index.json"


# Data.


def picture(size=(12, 8)):
  values = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  return Image.fromarray(values)


def film(path):
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=4)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    for tone in (0, 80, 160, 240):
      frame = np.full((32, 32, 3), tone, np.uint8)
      frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def take_all(total, rate):
  del rate
  return np.arange(total)


@pytest.mark.full
def test_data_in_a_store(tmp_path, store):
  folder = store / "bucket" / "data"
  (folder / "files").mkdir(parents=True)
  picture().save(folder / "files" / "a.png")
  film(folder / "files" / "b.mp4")
  row = {
    "question": "What?",
    "answer": "this",
    "images": ["files/a.png"],
    "videos": ["files/b.mp4"],
  }
  (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
  source = sources.Files(path="gs://bucket/data/data.jsonl")
  image, video, _ = source[0].messages[0]["content"]
  assert image["image"] == "gs://bucket/data/files/a.png"
  found = pictures.read(image["image"], "sample")
  np.testing.assert_array_equal(np.asarray(found), np.asarray(picture()))
  clip = videos.read(video["video"], "sample", take_all, 0.0)
  local = videos.read(folder / "files" / "b.mp4", "sample", take_all, 0.0)
  np.testing.assert_array_equal(clip.frames, local.frames)
  assert len(clip.frames) == 4


@pytest.mark.full
@pytest.mark.parametrize("ending", ["json", "jsonl", "tsv", "parquet"])
def test_tables_in_a_store(store, ending):
  rows = [{"question": f"{i}?", "answer": "this"} for i in range(3)]
  folder = store / "bucket" / "data"
  folder.mkdir(parents=True)
  for i in range(2):
    file = folder / f"{i}.{ending}"
    if ending == "json":
      file.write_text(json.dumps(rows))
    elif ending == "jsonl":
      file.write_text("\n".join(map(json.dumps, rows)))
    elif ending == "tsv":
      lines = ["question\tanswer", *(f"{i}?\tthis" for i in range(3))]
      file.write_text("\n".join(lines))
    else:
      parquet = pytest.importorskip("pyarrow.parquet")
      table = {"question": ["0?", "1?", "2?"], "answer": ["this"] * 3}
      parquet.write_table(pytest.importorskip("pyarrow").table(table), file)
  for path in ("gs://bucket/data", f"gs://bucket/data/*.{ending}"):
    source = sources.Files(path)
    assert [e.question for e in source] == ["0?", "1?", "2?"] * 2
    assert source.paths == [f"gs://bucket/data/{i}.{ending}" for i in range(2)]


@pytest.mark.full
def test_missing_data_in_a_store(store):
  with pytest.raises(UserError, match="expected a readable data file"):
    sources.Files(path="gs://b/data.jsonl")
  row = {"question": "What?", "answer": "this", "images": ["files/a.png"]}
  storage.write_text("gs://b/data.jsonl", json.dumps(row))
  missing = "data.jsonl:1: expected a picture at gs://b/files/a.png, found no"
  with pytest.raises(UserError, match=missing):
    sources.Files(path="gs://b/data.jsonl")
  storage.write_text("gs://b/files/b.png", "")
  with pytest.raises(UserError, match=missing):
    sources.Files(path="gs://b/data.jsonl")
  with pytest.raises(UserError, match="readable picture, found gs://b/c.png"):
    pictures.read("gs://b/c.png", "sample")
  with pytest.raises(UserError, match="readable video, found gs://b/c.mp4"):
    videos.read("gs://b/c.mp4", "sample", take_all, 0.0)


@pytest.mark.full
def test_one_request_for_a_folder_of_pictures(store, monkeypatch):
  rows = [
    {"question": "What?", "answer": "this", "images": [f"files/{i}.png"]}
    for i in range(20)
  ]
  for i in range(20):
    storage.write_text(f"gs://b/files/{i}.png", "")
  storage.write_text("gs://b/data.jsonl", "\n".join(map(json.dumps, rows)))
  asked = []
  names = storage.names
  monkeypatch.setattr(
    storage, "names", lambda name: (asked.append(name), names(name))[1]
  )
  assert len(sources.Files(path="gs://b/data.jsonl")) == 20
  assert asked == ["gs://b/files"]


# What a run writes.


def test_metrics_are_rewritten_whole(tmp_path, monkeypatch):
  assert log_lib.read(tmp_path) == []
  log = log_lib.Log(tmp_path, step=0)
  for step in (1, 2, 3):
    log.write(step, {"a": float(step)})
  log.close()
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 4, "a')
  before = path.read_text()

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      log_lib.Log(tmp_path, step=2)
  assert path.read_text() == before
  log = log_lib.Log(epath.Path(tmp_path), step=2)
  log.write(3, {"a": 33.0})
  assert [row["a"] for row in log_lib.read(tmp_path)] == [1, 2, 33]
  log.close()


@pytest.mark.full
def test_metrics_in_a_store(store, monkeypatch):
  """Rewritten now and then, and always when asked to."""
  assert log_lib.read("gs://b/run") == []
  clock = [1000.0]
  monkeypatch.setattr(log_lib.time, "monotonic", lambda: clock[0])
  log = log_lib.Log("gs://b/run", step=0)

  def steps():
    return [row["step"] for row in log_lib.read("gs://b/run")]

  log.write(1, {"a": 1.0})
  log.write(2, {"a": 2.0})
  assert steps() == []
  clock[0] += 31
  log.write(3, {"a": 3.0})
  assert steps() == [1, 2, 3]
  log.write(4, {"a": 4.0})
  assert steps() == [1, 2, 3]
  log.flush()
  assert steps() == [1, 2, 3, 4]
  log.write(5, {"a": 5.0})
  log.close()
  assert steps() == [1, 2, 3, 4, 5]
  log = log_lib.Log("gs://b/run", step=4)
  assert steps() == [1, 2, 3, 4]
  log.close()
  assert storage.names("gs://b/run") == {"metrics.jsonl"}


def evaluation():
  scores = {"accuracy": 1.0}
  shown = results.Shown(3, "<answer>7</answer>", scores, [[[0.5, 0.25]]], None)
  half, none = {"accuracy": Estimate(0.5, 0.25, 0.75)}, {}
  right = {"accuracy": "1010-"}
  return {"test": results.Result(8, half, none, [shown], right)}


def test_an_evaluation_with_odd_numbers_is_json(tmp_path):
  """What isn't finite is null, and NaN when it is read."""
  path = tmp_path / "before.json"
  shown = results.Shown(0, "", {"x": np.inf}, [[[np.nan, 0.5]]], None)
  odd = {"x": Estimate(1.0, np.nan, np.inf)}
  results.save({"test": results.Result(1, odd, {}, [shown])}, path)

  def refuse(constant):
    raise AssertionError(constant)

  json.loads(path.read_text(), parse_constant=refuse)
  number = results.load(path)["test"].numbers["x"]
  assert number.value == 1 and np.isnan([number.low, number.high]).all()


@pytest.mark.parametrize("place", small_models.first("local", "gs://b/run"))
def test_evaluations(tmp_path, store, place):
  path = storage.path(tmp_path if place == "local" else place) / "before.json"
  results.save(evaluation(), path)
  assert results.load(path) == evaluation()
  text = storage.read_text(path)
  for broken in (text[: len(text) // 2], "[]", '{"test": {}}'):
    storage.write_text(path, broken)
    with pytest.raises(UserError, match="evaluation at .*before.json.*delete"):
      results.load(path)
