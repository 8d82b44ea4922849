"""Lock of a working directory: one run at a time."""

from collections.abc import Iterator, Sequence
import contextlib
import datetime
import fcntl
import itertools
import os
import secrets
import signal
import socket
import threading
import time
from typing import TextIO

from etils import epath

from mmrl import storage
from mmrl.errors import UserError, say, tell

# Seconds between heartbeats of a run whose working directory is in a store.
_BEAT_SECONDS = 10.0
# A run without a heartbeat for this many intervals has ended.
_SILENT_BEATS = 3


@contextlib.contextmanager
def hold(workdir: storage.Name) -> Iterator[None]:
  """Holds a working directory's lock, the file `lock` in it.

  On a disk it is a kernel lock, which is released whenever and however its
  process ends. Some network disks have no locks; the user must ensure that no
  two runs share a directory. A store (`gs://`) has none either; see
  `_in_store`. Only a run's first process holds the lock, and acquires it before
  anything else is written. A directory in which nothing else has been written
  by the end, as its run was refused, is as if it had never been held.

  Raises:
    UserError: if another run has it, or the directory can't be written.
  """
  workdir = storage.path(workdir)
  kind = _in_store if storage.is_remote(workdir) else _on_disk
  now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  holder = f"process {os.getpid()} on {socket.gethostname()} since {now}"
  with kind(workdir, holder):
    yield


def unwritable(workdir: epath.Path, error: OSError) -> UserError:
  """Makes the error for a working directory that can't be written."""
  return UserError(
    f"expected a writable --workdir, found {workdir}:"
    f" {error.strerror or error}; pass another directory"
  )


def _in_use(workdir: epath.Path, holder: str) -> UserError:
  holder = holder.partition("\n")[0] or "another process"
  return UserError(
    f"expected a --workdir of its own, found {workdir} in use by {holder};"
    " wait for that run or end it, or pass another directory"
  )


@contextlib.contextmanager
def _on_disk(workdir: epath.Path, holder: str) -> Iterator[None]:
  with contextlib.ExitStack() as stack:
    try:
      made = [x for x in (workdir, *workdir.parents) if not x.exists()]
      file = stack.enter_context(_open(workdir))
      while not _is_locked(file, workdir):
        file = stack.enter_context(_open(workdir))
    except OSError as error:
      raise unwritable(workdir, error) from error
    file.truncate(0)
    file.write(f"{holder}\n")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)
      _clear(workdir, made)


def _open(workdir: epath.Path) -> TextIO:
  workdir.mkdir(parents=True, exist_ok=True)
  return open(workdir / "lock", "a+")


def _is_locked(file: TextIO, workdir: epath.Path) -> bool:
  """Locks the file; tells whether it still is the one of the directory.

  Whoever held it may have removed it meanwhile, see `_clear`.

  Raises:
    UserError: if another run has locked it.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.seek(0)
    raise _in_use(workdir, file.read()) from error
  except OSError:
    return True  # The disk has no locks.
  try:
    return os.path.samestat(os.fstat(file.fileno()), os.stat(workdir / "lock"))
  except FileNotFoundError:
    return False


def _clear(workdir: epath.Path, made: Sequence[epath.Path]) -> None:
  """Removes the lock if there is nothing else, and folders made for it."""
  with contextlib.suppress(OSError):
    if [file.name for file in workdir.iterdir()] == ["lock"]:
      (workdir / "lock").unlink()
      for folder in made:
        folder.rmdir()


@contextlib.contextmanager
def _in_store(workdir: epath.Path, holder: str) -> Iterator[None]:
  """Holds a lock in a store by rewriting it every few seconds (heartbeat).

  A store has no atomic locks. A run that finds a lock watches whether it
  changes, so clocks don't matter. A run that has written one checks a moment
  later whether another run has, too. Two runs can still overlap if the first
  was suspended or cut off from the store: as soon as it reads the other's lock
  it stops itself by SIGTERM.
  """
  file, name, done = workdir / "lock", secrets.token_hex(8), threading.Event()

  def write(beat: int) -> None:
    storage.write_text(file, f"{holder}\n{name} {beat}\n")

  def go_on() -> None:
    for beat in itertools.count(1):
      if done.wait(_BEAT_SECONDS):
        return
      with contextlib.suppress(UserError):  # The next beat may succeed.
        if other := _another(file, name):
          tell(f"error: {_in_use(workdir, other)}")
          os.kill(os.getpid(), signal.SIGTERM)
          return
        write(beat)

  if other := _another(file, name):
    seconds = _SILENT_BEATS * _BEAT_SECONDS
    say(f"waiting {seconds:.0f} s: does {other.splitlines()[0]} go on?")
    for _ in range(_SILENT_BEATS):
      time.sleep(_BEAT_SECONDS)
      if _another(file, name) not in ("", other):
        raise _in_use(workdir, other)
  write(0)
  # Another run may have written at the same time: the last writer wins.
  time.sleep(_BEAT_SECONDS / 5)
  if other := _another(file, name):
    raise _in_use(workdir, other)
  thread = threading.Thread(target=go_on, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    with contextlib.suppress(OSError, UserError), storage.errors(file):
      if not _another(file, name):
        file.unlink()


def _another(file: epath.Path, name: str) -> str:
  """Returns another run's lock text; '' if there is none or it is ours."""
  try:
    text = storage.read_text(file)
  except FileNotFoundError:
    return ""
  except OSError as error:
    raise unwritable(file.parent, error) from error
  return "" if name in text else text
