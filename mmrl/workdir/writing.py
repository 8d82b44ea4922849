"""Writing that may fail, as on a full disk, without stopping a run.

A run needs its config, its checkpoints and its model: where those can't be
written it ends with an error. Whatever else it writes is told of once, tried
again, and changes nothing about how it trains and ends.
"""

from collections.abc import Callable
import contextlib
import math
import os
import queue
import threading
import time
from typing import Any

from mmrl import storage
from mmrl.errors import UserError, tell

# Reports that may wait for a tracker.
_HELD = 1000
# How long the end of a run waits for one, in seconds.
_LAST_SECONDS = 30.0
# A pause before a tracker is made again, over the time that making it took.
_PAUSE = 10.0


def attempt(action: Callable[[], object], *, quiet: bool = False) -> bool:
  """Runs an action that writes a file; tells whether it has.

  Its `UserError` becomes a warning, or nothing with `quiet`.
  """
  try:
    action()
  except UserError as error:
    if not quiet:
      tell(f"warning: {error}")
    return False
  return True


class Appended:
  """A local file that is added to.

  What couldn't be written is kept, in order, and tried again with what follows
  and at the end. No thread and no queue is between: what fails, fails here.
  """

  def __init__(self, path: storage.Name, start: bytes):
    """Begins the file, or replaces it in one move.

    Args:
      path: of the file.
      start: content that it begins with.
    """
    self._path, self._start = path, start
    self._file: int | None = None
    self._pending, self._warned = b"", False
    self.write(b"")

  def write(self, data: bytes) -> None:
    """Adds data, after all that is still to be written."""
    self._pending += data
    try:
      if self._file is None:
        storage.write_bytes(self._path, self._start)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
      while self._pending:
        # A part may fit: the rest goes on from there.
        self._pending = self._pending[os.write(self._file, self._pending) :]
    except (OSError, UserError) as error:
      self._warn(error)
    else:
      self._warned = False

  def _warn(self, error: OSError | UserError) -> None:
    if self._warned:
      return
    self._warned = True
    if isinstance(error, OSError):
      reason = f"could not write {self._path}: {error.strerror or error}"
    else:
      reason = str(error).partition(";")[0]
    tell(
      f"warning: {reason}; training goes on, and each step tries again to write"
      " all of it"
    )

  def close(self) -> None:
    """Closes the file; warns if it lacks something."""
    self.write(b"")
    if self._warned:
      tell(f"warning: {self._path} lacks its last lines")
    if self._file is not None:
      with contextlib.suppress(OSError):
        os.close(self._file)
      self._file = None


class Told:
  """One tracker, and the reports that it is still to be given.

  A report that fails isn't repeated, as it may be the reason; metrics.jsonl has
  all of them.
  """

  def __init__(self, name: str, make: Callable[[], Any], *, at_once: bool):
    """Makes the tracker, now or in its thread.

    Args:
      name: of its field, for messages.
      make: makes it; is called again if it fails.
      at_once: whether it is told here instead of in a thread.
    """
    self._name, self._make = name, make
    self._tracker: Any = None
    # What fails at present: "making", or a method; and what is told but once.
    self._failing: set[str] = set()
    self._not_before = -math.inf
    self._reports: queue.Queue = queue.Queue(_HELD)
    self._thread: threading.Thread | None = None
    if not at_once:
      self._thread = threading.Thread(target=self._work, daemon=True)
      self._thread.start()
    self.report("")

  def report(self, method: str, *args) -> None:
    """Lets a method of the tracker be called; only makes it if ""."""
    if self._thread is None:
      self._give(method, *args)
      return
    try:
      self._reports.put_nowait((method, *args))
    except queue.Full:
      self._warn(
        "behind",
        f"{_HELD} reports wait for it; it is given none until it takes some",
      )

  def close(self) -> None:
    """Gives the tracker its last reports and ends it, as far as it lets us."""
    if self._thread is None:
      self._end()
      return
    until = time.monotonic() + _LAST_SECONDS
    with contextlib.suppress(queue.Full):
      self._reports.put(None, timeout=_LAST_SECONDS)
    self._thread.join(max(until - time.monotonic(), 0.0))
    if self._thread.is_alive():
      self._warn(
        "late", f"not done after {_LAST_SECONDS:.0f} s; the run ends without it"
      )

  def _work(self) -> None:
    while (report := self._reports.get()) is not None:
      self._give(*report)
    self._end()

  def _end(self) -> None:
    if self._tracker is not None:
      self._give("close")

  def _give(self, method: str, *args) -> None:
    """Calls a method, having made the tracker if it isn't there yet."""
    began, doing = time.monotonic(), "making"
    if began < self._not_before:
      return
    try:
      if self._tracker is None:
        self._tracker = self._make()
      self._mended(doing)
      doing = method
      if hasattr(self._tracker, method):
        getattr(self._tracker, method)(*args)
        self._mended(doing)
    except Exception as error:
      reason = " ".join(str(error).split())
      kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
      then = "; training goes on, and it is tried again"
      self._warn(doing, f"{kind}{reason:.300}{then * (doing != 'close')}")
      if self._tracker is None:
        # What takes long to fail is tried less often.
        ended = time.monotonic()
        self._not_before = ended + _PAUSE * (ended - began)

  def _warn(self, doing: str, text: str) -> None:
    if doing not in self._failing:
      self._failing.add(doing)
      tell(f"warning: {self._name}: {text}")

  def _mended(self, doing: str) -> None:
    if doing in self._failing:
      self._failing.remove(doing)
      tell(f"{self._name} works again; metrics.jsonl has what it lacks")
