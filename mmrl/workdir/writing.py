"""Writing that may fail, as on a full disk, without stopping a run.

A run needs its config, its checkpoints and its model: where those can't be
written it ends with an error. Whatever else it writes is told of once, tried
again, and changes nothing about how it trains and ends.
"""

from collections.abc import Callable
import contextlib
import os

from mmrl import storage
from mmrl.errors import UserError, tell


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
