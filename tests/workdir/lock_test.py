"""A working directory has one run at a time, on a disk and in a store."""

import os
import socket
import subprocess
import sys
import threading
import time

from etils import epath
import pytest
import runs
from storage_test import store  # noqa: F401 (a fixture)

from mmrl import storage
from mmrl.errors import UserError
from mmrl.machines import signals
from mmrl.workdir import lock

OURS = f"process {os.getpid()} on {socket.gethostname()}"


def refused(workdir, message):
  """In one line."""
  with pytest.raises(UserError, match=message) as caught, lock.hold(workdir):
    pass
  assert "\n" not in str(caught.value)


def test_one_run_at_a_time(tmp_path):
  path = tmp_path / "new"
  with lock.hold(path):
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    refused(path, f"in use by {OURS} since")
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before
  with lock.hold(epath.Path(path)):
    pass


def test_a_refused_run_leaves_nothing(tmp_path):
  """Nor a folder that it has made; what was there stays."""
  with pytest.raises(UserError, match="mistake"), lock.hold(tmp_path / "a/b"):
    raise UserError("mistake")
  assert not [*tmp_path.iterdir()]
  (tmp_path / "empty").mkdir()
  with lock.hold(tmp_path / "empty"):
    assert (tmp_path / "empty" / "lock").exists()
  assert not [*(tmp_path / "empty").iterdir()]
  with lock.hold(tmp_path / "full"):
    (tmp_path / "full" / "config.json").write_text("{}")
  assert {f.name for f in (tmp_path / "full").iterdir()} == {
    *("config.json", "lock")
  }


def test_a_lock_that_was_removed_is_made_again(tmp_path, monkeypatch):
  """Its holder removed it between our opening it and locking it."""
  ours, opened = lock._open, []

  def slow(workdir):
    opened.append(ours(workdir))
    if len(opened) == 1:
      (workdir / "lock").unlink()
    return opened[-1]

  monkeypatch.setattr(lock, "_open", slow)
  with lock.hold(tmp_path):
    assert len(opened) == 2
    monkeypatch.setattr(lock, "_open", ours)
    refused(tmp_path, f"in use by {OURS} since")


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  refused(tmp_path / "file", "writable --workdir")


HOLDER = """
import sys
from mmrl.workdir import lock

with lock.hold(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_a_killed_run_holds_no_lock(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path)],
    cwd=runs.ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "held\n"
    refused(tmp_path, f"in use by process {process.pid} on")
  finally:
    process.kill()
    process.communicate()
  with lock.hold(tmp_path):
    assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()


# In a store.

RUN = "gs://bucket/run"
FILE = f"{RUN}/lock"
LEFT = "process 1 on elsewhere since then\nname 5\n"
OTHER = "process 2 on elsewhere since now\nname 0\n"


@pytest.fixture
def quick(store, monkeypatch):  # noqa: F811
  """A store, and a pulse that a test can wait for."""
  monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.2)
  return store


def content():
  return storage.read_text(FILE)


def until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_one_run_at_a_time_in_a_store(quick, monkeypatch):
  """Who finds a lock doesn't watch on when it has seen it change."""
  monkeypatch.setattr(lock, "_SILENT_BEATS", 600)
  with lock.hold(RUN):
    first = content()
    assert f"{OURS} since" in first
    until(lambda: content() != first)
    refused(RUN, f"own, found {RUN} in use by {OURS} since")
  assert storage.names(RUN) == frozenset()
  with lock.hold(RUN):
    pass


def test_a_lock_that_was_left_is_taken_over(quick, capsys):
  """After a look at whether its run goes on."""
  storage.write_text(FILE, LEFT)
  began = time.monotonic()
  with lock.hold(RUN):
    assert time.monotonic() - began >= 3 * 0.2
    assert "elsewhere" not in content()
  assert (
    "does process 1 on elsewhere since then go on?" in capsys.readouterr().out
  )


def test_a_lock_that_is_given_back_meanwhile(quick):
  storage.write_text(FILE, LEFT)
  timer = threading.Timer(0.1, (quick / "bucket/run/lock").unlink)
  timer.start()
  with lock.hold(RUN):
    timer.join()


def test_two_that_start_at_once(quick, monkeypatch):
  """The last that has written has it."""
  write = storage.write_text

  def second_comes(name, text):
    write(name, text)
    write(name, OTHER)

  monkeypatch.setattr(storage, "write_text", second_comes)
  refused(RUN, "in use by process 2 on elsewhere")
  assert "elsewhere" in content()


def test_a_run_that_was_taken_for_dead_is_told_to_stop(quick, capsys):
  with signals.Termination() as termination:
    termination.in_step = True
    with lock.hold(RUN):
      storage.write_text(FILE, OTHER)
      until(lambda: termination.asked)
  assert "elsewhere" in content(), "the other's lock stays"
  assert "error: expected a --workdir of its own" in capsys.readouterr().err


def test_a_store_that_fails_for_a_while(quick, monkeypatch):
  with lock.hold(RUN):
    first = content()
    with monkeypatch.context() as patch:

      def fail(*_):
        raise UserError("could not write")

      patch.setattr(storage, "write_text", fail)
      time.sleep(0.5)
      assert content() == first
    until(lambda: content() != first)
