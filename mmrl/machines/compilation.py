"""Compiled programs: what JAX says of them, and keeping them for later runs."""

from collections.abc import Mapping
import hashlib
import os
import pathlib
import platform
import sys
from typing import Any

import jax
from jaxlib import version

# Bytes above which the programs that were used longest ago are deleted.
_MOST_BYTES = 4 * 2**30
_CPU = pathlib.Path("/proc/cpuinfo")
# What JAX reports once a program is compiled, or read from where it was kept.
EVENT = "/jax/core/compile/backend_compile_duration"
# Least seconds of a program's compilation that are shown by its name.
SHOWN_SECONDS = 1.0


def name_of(about: Mapping[str, Any]) -> str:
  """Returns the name of the program that one of JAX's events is about."""
  name = str(about.get("fun_name", "others"))
  return name.removeprefix("jit(").removesuffix(")").strip("<>")


def keep_programs(folder: str) -> None:
  """Keeps what this process compiles, and takes what is kept (JAX's cache).

  JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) comes first; in a process
  with several runs, the first decides.

  Args:
    folder: of all programs, with a folder in it for each version of jaxlib and
      kind of processor; "" keeps none. If it can't be written, a line on
      stderr says so, and none are kept.
  """
  settings: Any = jax.config  # whose names JAX makes as it starts
  if not folder or settings.jax_compilation_cache_dir:
    return
  place = pathlib.Path(folder).expanduser() / machine()
  try:
    place.mkdir(parents=True, exist_ok=True)
    if not os.access(place, os.W_OK):
      raise PermissionError(13, "Permission denied")
    prune(place, _MOST_BYTES)
  except OSError as error:
    print(
      f"compiled programs aren't kept, as {place} can't be written"
      f" ({error.strerror or error}); set config.compilation_cache to another"
      ' folder, or to ""',
      file=sys.stderr,
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(place))
  # Small ones, too: a run has a hundred of them, and each takes long to make.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def machine() -> str:
  """Names the version of jaxlib and the kind of this machine's processor.

  A program for a CPU uses its instructions, which JAX's key doesn't name; on
  another processor it could crash.
  """
  try:
    lines = _CPU.read_text().splitlines()
  except OSError:
    lines = [platform.node()]
  wanted = ("model name", "flags", "Features", "CPU part")
  kind = sorted({line for line in lines if line.startswith(wanted)}) or lines
  text = "\n".join([platform.machine(), *kind])
  digest = hashlib.sha256(text.encode()).hexdigest()
  return f"jaxlib-{version.__version__}-{digest[:12]}"


def prune(folder: pathlib.Path, most: int) -> None:
  """Deletes the files that were used longest ago, until `most` bytes are left.

  JAX's own limit isn't used: a process that is killed while it writes leaves
  what makes every later write fail.
  """
  found = []
  for file in folder.rglob("*"):
    if file.is_file():
      status = file.stat()
      used = max(status.st_atime, status.st_mtime)
      found.append((used, status.st_size, file))
  total = sum(size for _, size, _ in found)
  for _, size, file in sorted(found):
    if total <= most:
      return
    file.unlink(missing_ok=True)
    total -= size
