"""Files on local disks and in Google Cloud Storage (`gs://BUCKET/PATH`).

Working directories, data and models may be in either. A store needs a client:
`pip install -e '.[gcs]'`.
"""

from collections.abc import Iterable, Iterator
import contextlib
import errno
import importlib.util
import io
import os
import re
import tempfile
from typing import Any

from etils import epath
import jax

from mmrl.errors import UserError, not_installed

Name = str | os.PathLike[str]


def path(name: Name) -> epath.Path:
  """Returns the path of a local file or folder, or of one in a store.

  Raises:
    UserError: if it is elsewhere, or in a store without a client for it.
  """
  # pathlib makes one slash of two.
  text = re.sub("^gs:/+", "gs://", os.fspath(name))
  if not is_place(text):
    raise UserError(
      f"expected a local path or gs://BUCKET/PATH, found {text}; copy it to"
      " one of these"
    )
  if is_remote(text) and not _has_client():
    raise not_installed(f"a client for {text}", "gcs")
  return epath.Path(text)


def is_remote(name: Name) -> bool:
  """Tells whether a path is in a store."""
  return os.fspath(name).startswith("gs://")


def is_place(name: Name) -> bool:
  """Tells whether `path` accepts a name: local, or in a known store."""
  return "://" not in os.fspath(name) or is_remote(name)


def _has_client() -> bool:
  """Tells whether `etils.epath` has a client for Google Cloud Storage."""
  return any(map(importlib.util.find_spec, ("gcsfs", "tensorflow")))


@contextlib.contextmanager
def errors(name: Name) -> Iterator[None]:
  """Turns what a store's client raises, which may be anything, into OSError."""
  try:
    yield
  except (OSError, UserError):
    raise
  except Exception as error:
    if not is_remote(name):
      raise
    reason = " ".join(str(error).split())
    raise OSError(errno.EIO, f"{reason:.200}", os.fspath(name)) from error


def is_dir(name: Name) -> bool:
  """Tells whether a folder exists.

  Raises:
    OSError: if the store can't be reached.
  """
  with errors(name):
    return path(name).is_dir()


def names(folder: Name) -> frozenset[str]:
  """Lists the names in a folder; empty if there is none.

  Raises:
    OSError: if the store can't be reached.
  """
  with errors(folder):
    try:
      return frozenset(file.name for file in path(folder).iterdir())
    except FileNotFoundError:
      return frozenset()


def read_bytes(name: Name) -> bytes:
  """Reads the bytes of a file.

  Raises:
    OSError: if it can't be read.
  """
  with errors(name):
    return path(name).read_bytes()


def read_text(name: Name) -> str:
  """Reads a text file; line ends become "\\n".

  Raises:
    OSError: if it can't be read.
    UnicodeDecodeError: if it isn't UTF-8.
  """
  return io.TextIOWrapper(io.BytesIO(read_bytes(name)), "utf-8").read()


def write_bytes(name: Name, data: bytes) -> None:
  """Writes a file; readers find the old or the new one whole, at any time.

  Of a run's processes only the first writes.

  Raises:
    UserError: if it can't be written.
  """
  if jax.process_index():
    return
  target = path(name)
  try:
    with errors(name):
      target.parent.mkdir(parents=True, exist_ok=True)
      if is_remote(target):
        target.write_bytes(data)  # An object appears when it is whole.
      else:
        _replace(target, data)
  except OSError as error:
    raise UserError(
      f"could not write {target}: {error.strerror or error}; make it writable"
      " or free some space, then run the same command again"
    ) from error


def _replace(target: epath.Path, data: bytes) -> None:
  draft = target.with_name(f".{target.name}.part")
  try:
    with open(draft, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, target)
  finally:
    draft.unlink(missing_ok=True)


def move(file: Name, name: Name) -> None:
  """Moves a local file, which is complete, to another path.

  Raises:
    OSError: if it can't be written there.
  """
  with errors(name):
    if is_remote(name):
      path(file).copy(path(name), overwrite=True)
      os.remove(file)
    else:
      os.replace(file, name)


def write_text(name: Name, text: str) -> None:
  """Writes text to a file, as UTF-8; see `write_bytes`."""
  write_bytes(name, text.encode("utf-8"))


def fetched(source: Any) -> Any:
  """Reads the bytes of a file in a store; returns anything else as it is.

  Raises:
    OSError: if it can't be read.
  """
  if isinstance(source, str | os.PathLike) and is_remote(source):
    return read_bytes(source)
  return source


@contextlib.contextmanager
def local(folder: Name, names: Iterable[str]) -> Iterator[epath.Path]:
  """Yields a folder in which libraries can open files by name.

  Args:
    folder: the files' folder; yielded as it is where it is local.
    names: of files that are copied from a store, for as long as the context
      lasts, to the system's folder for temporary files (TMPDIR).

  Raises:
    OSError: if they can't be copied.
  """
  if not is_remote(folder):
    yield path(folder)
    return
  with tempfile.TemporaryDirectory(prefix="mmrl-") as copy:
    for name in names:
      with errors(folder):
        (path(folder) / name).copy(os.path.join(copy, name))
    yield path(copy)
