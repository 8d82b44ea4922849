"""Logs that are read back, and disks that are full for a while."""

import errno
import json
import os
import struct

from etils import epath
from PIL import Image
import pytest
from runs import full_disk
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from mmrl import storage
from mmrl.errors import UserError
from mmrl.report import samples
from mmrl.workdir import log as log_lib
from mmrl.workdir import trackers, writing


def events(workdir):
  """All whole events of the one file that there is."""
  (file,) = (workdir / "tensorboard").iterdir()
  data, found = file.read_bytes(), []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    parts = data[:8], data[12 : 12 + length]
    sums = data[8:12], data[12 + length : 16 + length]
    for part, checksum in zip(parts, sums, strict=True):
      wanted = record_writer.masked_crc32c(part)
      assert struct.unpack("<I", checksum) == (wanted,)
    found.append(event_pb2.Event.FromString(parts[1]))
    data = data[16 + length :]
  return found


def scalars(workdir):
  return {
    (event.step, value.tag): value.simple_value
    for event in events(workdir)
    for value in event.summary.value
  }


def make_log(workdir, step):
  """With TensorBoard's files, as a run has it by default."""
  run = trackers.Run(epath.Path(workdir), step, {})
  tracked = trackers.Trackers({"board": {"name": "tensorboard"}}, run)
  return log_lib.Log(workdir, step=step, trackers=tracked)


def test_tensorboard_files(tmp_path):
  log = make_log(tmp_path, step=2)
  log.write(3, {"reward/total": 0.5, "odd name!": -1.0})
  log.write(4, {"reward/total": 0.25})
  assert scalars(tmp_path) == {
    (3, "reward/total"): 0.5,
    (3, "odd_name_"): -1.0,
    (4, "reward/total"): 0.25,
  }, "before it is closed"
  log.close()
  first, start, *_ = events(tmp_path)
  assert first.file_version == "brain.Event:2"
  # TensorBoard drops what a killed run has written from here on.
  assert start.step == 3
  assert start.session_log.status == event_pb2.SessionLog.START


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_a_disk_that_is_full_for_a_while(tmp_path, capsys, size):
  """From the first byte or later on; nothing is missing afterwards."""
  values = {"loss/total": 0.5}
  with full_disk(size):
    log = make_log(tmp_path, step=0)
    for step in range(1, 50):
      log.write(step, values)
  warnings = capsys.readouterr().err.splitlines()
  # One of each file.
  assert len(warnings) == 2, warnings
  warnings.sort(key=lambda line: "tfevents" in line)
  for line, name in zip(warnings, ("metrics", "tfevents"), strict=True):
    assert line.startswith("warning: could not write ") and name in line
    assert line.endswith("tries again to write all of it")
  log.write(50, values)
  log.close()
  assert capsys.readouterr().err == ""
  rows = log_lib.read(tmp_path)
  assert rows == [{"step": step, **values} for step in range(1, 51)]
  assert scalars(tmp_path) == {
    (step, "loss/total"): 0.5 for step in range(1, 51)
  }


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
  """No file is written over, and each comes after those before it."""
  seen = []
  for now in (2000.0, 2000.5, 100.0):
    monkeypatch.setattr(trackers.time, "time", lambda now=now: now)
    log = make_log(tmp_path, step=len(seen))
    log.write(len(seen) + 1, {"a": now})
    log.close()
    files = sorted(f.name for f in (tmp_path / "tensorboard").iterdir())
    assert files[:-1] == seen
    seen = files
  assert len(seen) == 3


def test_a_disk_that_stays_full(tmp_path, capsys):
  with full_disk(200):
    log = make_log(tmp_path, step=0)
    for step in range(1, 50):
      log.write(step, {"loss/total": 0.5})
    log.close()
  err = capsys.readouterr().err
  assert err.count("could not write") == err.count("lacks its last lines") == 2
  # What is there is what was written first.
  rows = log_lib.read(tmp_path)
  assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) != []


def test_lines_that_are_not_replaced_yet_are_not_doubled(tmp_path):
  """A resumed run drops lines of steps that it will do again."""
  text = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))
  (tmp_path / "metrics.jsonl").write_text(text)
  with full_disk(0):
    log = make_log(tmp_path, step=1)
    log.write(2, {"a": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == text
  log.write(3, {"a": 3.0})
  log.close()
  assert log_lib.read(tmp_path) == [
    {"step": 1},
    {"step": 2, "a": 2.0},
    {"step": 3, "a": 3.0},
  ]


def shown(picture):
  return {"type": "image", "image": picture}


def make_sample(step, **changes):
  return samples.Sample(
    **{
      "step": step,
      "name": "a:3",
      "question": "how many?",
      "answer": "<answer>\x1b[2J two\n\n*three*</answer>",
      "right": ["2", "two"],
      "rewards": {"accuracy": 0.25},
      "total": 0.125,
      "shown": [shown(Image.new("RGB", (2048, 1024), "red"))],
      **changes,
    }
  )


def test_samples_of_later_steps_are_dropped(tmp_path):
  """As lines of metrics; without a sample there is no file."""
  make_log(tmp_path, step=0).close()
  assert not (tmp_path / "samples.jsonl").exists()
  log = make_log(tmp_path, step=0)
  for step in (1, 2, 3):
    log.write_samples(step, [make_sample(step), make_sample(step)])
  log.close()
  log = make_log(tmp_path, step=1)
  assert [sample.step for sample in log.samples] == [1, 1]
  log.write_samples(2, [make_sample(2, answer="anew")])
  log.close()
  rows = log_lib.read(tmp_path, samples.FILE)
  assert [row["step"] for row in rows] == [1, 1, 2]
  assert rows[-1]["answer"] == "anew"
  assert samples.parse(rows)[0] == make_sample(1, shown=())


def test_a_sample_in_tensorboard(tmp_path):
  """As it is, whatever Markdown would make of it, and its picture smaller."""
  picture = Image.new("RGB", (2048, 1024), "red")
  log = make_log(tmp_path, step=0)
  log.write_samples(1, [make_sample(1, shown=[shown(picture)])])
  log.write_samples(2, [make_sample(2, shown=(), right=[], rewards={})])
  log.close()
  _, _, first, second = events(tmp_path)
  text, image = first.summary.value
  assert (text.tag, image.tag) == ("samples/1/text_summary", "samples/1")
  assert (image.image.width, image.image.height) == (512, 256)
  assert picture.size == (2048, 1024)
  blocks = text.tensor.string_val[0].decode().split("\n\n**")
  assert blocks[2].splitlines() == [
    "answer**",
    "",
    "    <answer>\x1b[2J two",
    "    ",
    "    *three*</answer>",
  ]
  assert blocks[4] == "reward**\n\n    0.125 (accuracy 0.25)"
  (text,) = second.summary.value
  assert b"reward" not in text.tensor.string_val[0]


def test_a_sample_on_the_terminal():
  """In one line each, of what can be printed."""
  sample = make_sample(7, question="why " * 100, right=[])
  head, question, answer, reward = sample.lines()
  assert head == "sample of step 7, a:3"
  assert len(question) < 220 and question.endswith("…")
  assert answer == "  answer   <answer>?[2J two *three*</answer>"
  assert reward == "  reward   0.125 (accuracy 0.25)"


def test_a_folder_in_the_way(tmp_path, capsys):
  (tmp_path / "tensorboard").write_text("")
  log = make_log(tmp_path, step=0)
  for step in (1, 2):
    log.write(step, {"a": 1.0})
  log.close()
  assert len(log_lib.read(tmp_path)) == 2
  first, last = capsys.readouterr().err.splitlines()
  assert "tensorboard" in first and "lacks its last lines" in last


def test_a_store_that_fails_is_told_of_once(tmp_path, monkeypatch, capsys):
  write = storage.write_text

  def fail(name, text):
    raise UserError("could not write; do something")

  log = make_log(tmp_path, step=0)
  log.close()
  capsys.readouterr()
  log._metrics._file = None  # as in a store
  monkeypatch.setattr(storage, "write_text", fail)
  for step in (1, 2):
    log.write(step, {"a": 1.0})
    log.flush()
  assert capsys.readouterr().err == ("warning: could not write; do something\n")
  monkeypatch.setattr(storage, "write_text", write)
  log.flush()
  assert len(log_lib.read(tmp_path)) == 2


def test_a_write_that_fails_otherwise_is_an_error(tmp_path, monkeypatch):
  """A mistake of ours isn't taken for a full disk."""
  file = writing.Appended(tmp_path / "file", b"start")

  def fail(*_):
    raise ValueError

  with monkeypatch.context() as patch:
    patch.setattr(os, "write", fail)
    with pytest.raises(ValueError):
      file.write(b"x")

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "write", full)
    file.write(b"y")
  file.close()
  assert (tmp_path / "file").read_bytes() == b"startxy"
