"""What a run remembers of its questions: files, sizes, and those left out.

questions.json has size and hash of every data file, and the sizes that prompts
are padded to if they come from the data; skipped.jsonl has a line
for each question that is left out. So a run that resumes leaves out the same
ones, and tells when a file isn't what it was.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import json
import sys
from typing import IO, Any

from mmrl import storage
from mmrl.data import arrow
from mmrl.data.sources import paths_of
from mmrl.errors import UserError
from mmrl.inspection import Finding
from mmrl.machines import processes

FILE, SKIPPED = "questions.json", "skipped.jsonl"
# Of larger files the first, middle and last part of this many bytes is hashed.
_PART = 2**24


@dataclasses.dataclass(frozen=True)
class Record:
  """Remembers what questions a run reads.

  Attributes:
    files: size and hash of each data file, by its path.
    skipped: the training questions that are left out.
    lengths, patches: sizes that prompts are padded to, where they come from the
      data; else empty.
  """

  files: Mapping[str, Mapping[str, Any]]
  skipped: Sequence[Finding] = ()
  lengths: Sequence[int] = ()
  patches: Sequence[int] = ()

  def changed(self, earlier: "Record") -> list[str]:
    """Lists the files that aren't what they were."""
    return [
      path
      for path, digest in self.files.items()
      if earlier.files.get(path, digest) != digest
    ]

  def write(self, workdir: storage.Name) -> None:
    """Writes both files; what is there already is replaced."""
    folder = storage.path(workdir)
    if self.skipped or SKIPPED in storage.names(folder):
      storage.write_text(folder / SKIPPED, lines(self.skipped))
    storage.write_text(folder / FILE, self.head())

  def head(self) -> str:
    """Writes all but the questions that are left out as JSON."""
    raw = dataclasses.asdict(dataclasses.replace(self, skipped=()))
    del raw["skipped"]
    return json.dumps(raw, indent=2, sort_keys=True) + "\n"


def lines(found: Iterable[Finding]) -> str:
  """Writes findings as JSON Lines."""
  return "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in found)


def parse(text: str) -> list[Finding]:
  """Reads findings that `lines` wrote."""
  return [Finding(**json.loads(line)) for line in text.splitlines()]


def read(workdir: storage.Name) -> Record | None:
  """Reads what a run has remembered; None if it has just begun.

  Raises:
    UserError: if a file can't be read.
  """
  folder = storage.path(workdir)
  try:
    head = storage.read_text(folder / FILE)
    skipped = ""
    if SKIPPED in storage.names(folder):
      skipped = storage.read_text(folder / SKIPPED)
    return _record(head, skipped)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, LookupError) as error:
    raise UserError(
      f"expected what a run wrote at {folder / FILE} and {SKIPPED}, found:"
      f" {error!s:.200}; delete both to have the questions inspected again"
    ) from error


def recall(workdir: storage.Name) -> Record | None:
  """Reads what a run has remembered, on all processes what the first reads.

  Raises:
    UserError: see `read`.
  """
  known: list[Record | None] = [None]

  def look() -> None:
    known[0] = read(workdir)

  processes.first_only(look)
  found = known[0]
  head = processes.gather(found.head() if found else "")[0]
  skipped = processes.gather(lines(found.skipped) if found else "")[0]
  return _record(head, skipped) if head else None


def _record(head: str, skipped: str) -> Record:
  raw = json.loads(head)
  return Record(
    files=dict(raw["files"]),
    skipped=parse(skipped),
    lengths=tuple(raw["lengths"]),
    patches=tuple(raw["patches"]),
  )


def measure(questions: Iterable[Any]) -> dict[str, dict[str, Any]]:
  """Measures size and hash of the data files that questions are read from.

  Pictures and videos that the files name aren't measured, nor are data sets of
  the hub.

  Raises:
    UserError: if a file can't be read.
  """
  paths = {str(path) for source in questions for path in paths_of(source)}
  return {
    path: _digest(path) for path in sorted(paths) if not arrow.is_hub(path)
  }


def _open_bytes(path: str) -> IO[bytes]:
  """Opens a file, local or in a store, to read parts of it."""
  file: Any = storage.path(path).open("rb")
  return file


def _digest(path: str) -> dict[str, Any]:
  """Hashes a file; of one larger than three parts, only these."""
  sha = hashlib.sha256()
  try:
    with storage.errors(path), _open_bytes(path) as file:
      size = file.seek(0, 2)
      starts = [*range(0, size, _PART)]
      if size > 3 * _PART:
        starts = [0, (size - _PART) // 2, size - _PART]
      for start in starts:
        file.seek(start)
        sha.update(file.read(_PART))
  except OSError as error:
    raise UserError(
      f"expected a readable data file at {path}, found:"
      f" {error.strerror or error}"
    ) from error
  return {"bytes": size, "sha256": sha.hexdigest()}


def say_changed(paths: Sequence[str]) -> None:
  """Says on stderr which data files have changed, and what that means."""
  if paths:
    print(
      f"changed since the run began: {', '.join(paths)}; a run that resumes"
      " goes on from its position in the order, with the questions as they are"
      " now; another number of them is another order",
      file=sys.stderr,
    )
