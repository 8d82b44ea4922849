"""Paths at which there is no whole file."""

import os
import pathlib


def unusual(folder: pathlib.Path, kind: str, half: bytes) -> pathlib.Path:
  """Makes one of a kind; `half` is what is left of a truncated file."""
  path = folder / "a.file"
  pipe = folder / "pipe"
  if kind == "folder":
    path.mkdir()
  elif kind == "folder link":
    path.symlink_to(folder)
  elif kind == "fifo":
    os.mkfifo(path)
  elif kind == "link":
    os.mkfifo(pipe)
    path.symlink_to(pipe)
  elif kind == "device":
    path.symlink_to("/dev/zero")
  elif kind != "none":
    content = {"empty": b"", "page": b"<html>404</html>", "half": half}
    path.write_bytes(content[kind])
  return path
