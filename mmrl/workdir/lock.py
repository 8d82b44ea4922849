"""Keeps a working directory to one run at a time."""

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import itertools
import os
import secrets
import signal
import socket
import sys
import threading
import time

from etils import epath

from mmrl import storage
from mmrl.errors import UserError

# How often a run in a store says that it goes on.
_BEAT_SECONDS = 10.0
# Who says nothing for so many beats has ended.
_SILENT_BEATS = 3


@contextlib.contextmanager
def hold(workdir: storage.Name) -> Iterator[None]:
  """Holds a working directory's lock, the file `lock` in it.

  On a disk the lock is the kernel's: it ends with its process, however that
  ends. Some network disks have none; there it is up to the user that no two
  runs share a directory. A store (`gs://`) has none either; see `_in_store`.
  Of a run's processes the first takes it, before anything else is written.

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
  """What a user is told where nothing can be written."""
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
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / "lock", "a+")  # noqa: SIM115 (closed below)
  except OSError as error:
    raise unwritable(workdir, error) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise _in_use(workdir, file.read()) from error
    except OSError:
      pass  # The disk has no locks.
    file.truncate(0)
    file.write(f"{holder}\n")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)


@contextlib.contextmanager
def _in_store(workdir: epath.Path, holder: str) -> Iterator[None]:
  """A lock that its holder rewrites, every few seconds, as long as it lives.

  Nothing in a store can be taken by one alone. Who finds a lock watches
  whether it changes, whatever the clocks say; who has written one looks a
  moment later whether another has as well. Two runs meet all the same where
  the first was suspended or cut off from the store: as soon as it sees the
  other's lock it is told to stop.
  """
  file, name, done = workdir / "lock", secrets.token_hex(8), threading.Event()

  def write(beat: int) -> None:
    storage.write_text(file, f"{holder}\n{name} {beat}\n")

  def go_on() -> None:
    for beat in itertools.count(1):
      if done.wait(_BEAT_SECONDS):
        return
      with contextlib.suppress(UserError):  # The next one may come through.
        if other := _another(file, name):
          print(f"error: {_in_use(workdir, other)}", file=sys.stderr)
          os.kill(os.getpid(), signal.SIGTERM)
          return
        write(beat)

  if other := _another(file, name):
    seconds = _SILENT_BEATS * _BEAT_SECONDS
    print(f"waiting {seconds:.0f} s: does {other.splitlines()[0]} go on?")
    for _ in range(_SILENT_BEATS):
      time.sleep(_BEAT_SECONDS)
      if _another(file, name) not in ("", other):
        raise _in_use(workdir, other)
  write(0)
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
  """What a lock says; nothing if there is none, or its holder has this name."""
  try:
    text = storage.read_text(file)
  except FileNotFoundError:
    return ""
  except OSError as error:
    raise unwritable(file.parent, error) from error
  return "" if name in text else text
