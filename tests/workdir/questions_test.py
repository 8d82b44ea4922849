"""Data files that a run remembers, and what it says when they change."""

import pytest

from mmrl.errors import UserError
from mmrl.inspection import Finding
from mmrl.workdir import questions
from mmrl.workdir.questions import Record


class Files:
  def __init__(self, *paths):
    self.paths = [str(path) for path in paths]


@pytest.fixture
def small_parts(monkeypatch):
  monkeypatch.setattr(questions, "_PART", 8)


# Of 50 bytes the parts 0 to 7, 21 to 28 and 42 to 49 are hashed.
@pytest.mark.parametrize(
  ("size", "changed", "seen"),
  [
    (20, 3, True),
    (20, 19, True),
    (24, 12, True),
    (50, 0, True),
    (50, 7, True),
    (50, 8, False),
    (50, 25, True),
    (50, 35, False),
    (50, 49, True),
  ],
)
def test_a_digest_is_of_all_or_of_three_parts(
  small_parts, tmp_path, size, changed, seen
):
  path = tmp_path / "a"
  content = bytearray(range(size))
  path.write_bytes(content)
  before = Record(questions.measure([Files(path)]))
  content[changed] += 100
  path.write_bytes(content)
  after = Record(questions.measure([Files(path), object()]))
  assert after.changed(before) == ([str(path)] if seen else [])
  path.write_bytes(content[:-1])
  assert Record(questions.measure([Files(path)])).changed(before)


def test_a_record_is_read_as_it_was_written(tmp_path):
  assert questions.read(tmp_path) is None
  (tmp_path / "a").write_text("1")
  files = questions.measure([Files(tmp_path / "a")])
  record = Record(files, [Finding(3, "a:4", fault="broken", message="é")])
  record.write(tmp_path)
  assert questions.read(tmp_path) == questions.recall(tmp_path) == record
  fewer = Record(files, [])
  fewer.write(tmp_path)
  assert questions.read(tmp_path) == fewer


@pytest.mark.parametrize("name", [questions.FILE, questions.SKIPPED])
def test_a_record_that_cannot_be_read_is_refused(tmp_path, name):
  Record({}, [Finding(0, "a")]).write(tmp_path)
  (tmp_path / name).write_text("{")
  with pytest.raises(UserError, match="delete both"):
    questions.read(tmp_path)


def test_a_data_set_of_the_hub_has_no_file(tmp_path):
  (tmp_path / "a").write_text("1")
  found = questions.measure([Files("hub:owner/name@train", tmp_path / "a")])
  assert [*found] == [str(tmp_path / "a")]


def test_a_file_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(UserError, match="a readable data file at .*gone"):
    questions.measure([Files(tmp_path / "gone")])
