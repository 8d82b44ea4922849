"""Files of pictures and videos, checked before anything opens them."""

import os
import stat
from typing import Any

import numpy as np

from mmrl import storage


def fetched(source: Any) -> Any:
  """Checks that a path is that of a file with content, and reads stores.

  Args:
    source: a path, bytes, or anything else, which is returned as it is.

  Returns:
    The bytes of a file in a store, else `source`.

  Raises:
    OSError: if there is no such file, it is empty, or it is a folder, a pipe
      or a device, which would block or never end.
  """
  if isinstance(source, str | os.PathLike) and not storage.is_remote(source):
    found = os.stat(source)
    if stat.S_ISDIR(found.st_mode):
      raise OSError("a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
      raise OSError("a pipe, socket or device, not a file")
    empty = not found.st_size
  else:
    source = storage.fetched(source)
    empty = isinstance(source, bytes) and not source
  if empty:
    raise OSError("it is empty")
  return source


def shown(source: Any) -> str:
  """Names a source in an error: its path, or what it is, on one line."""
  if isinstance(source, bytes):
    return "bytes"
  if isinstance(source, np.ndarray):
    return f"an array of {source.dtype} {list(source.shape)}"
  if isinstance(source, list | tuple):
    return f"{len(source)} frames"
  # Of a picture that somebody opened.
  text = str(getattr(source, "filename", "") or source)
  return " ".join(f"{text:.200}".split())


def reason(error: BaseException) -> str:
  """Says why a source can't be read, on one line."""
  text = getattr(error, "strerror", None) or str(error)
  return " ".join(f"{text:.200}".split())
