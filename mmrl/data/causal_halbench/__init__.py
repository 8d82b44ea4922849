"""Questions of Causal-HalBench (arXiv 2511.10268), in its own files' form."""

from collections.abc import Iterator, Sequence
import json
import os
import re
from typing import Any

from mmrl import storage
from mmrl.data import lines
from mmrl.data.example import Example, ask, check_prompt
from mmrl.data.media import Media
from mmrl.errors import UserError

__all__ = ["FIELDS", "CausalHalBench", "original", "rows"]

FIELDS = ("image_name", "type", "answer", "tag", "id", "q")
# What the files call an object's role, and the picture that it is asked about.
ROLES = {
  "target": "contextual",
  "absent": "absent",
  "inpaint": "counterfactual",
}
TAGS = ("origin", "inpainted")
_CHANGED = re.compile(r"(.+)_\d{3}(\.\w+)")


def original(image_name: str) -> str:
  """Returns the original picture of a changed one, `NAME_ddd.jpg`.

  A name without three digits at the end is that of an original.
  """
  found = _CHANGED.fullmatch(image_name)
  return found[1] + found[2] if found else image_name


def rows(path: storage.Name) -> list[dict[str, Any]]:
  """Reads a file of questions.

  Raises:
    UserError: if it isn't one, naming the row and the field that is wrong.
  """
  try:
    found = json.loads(storage.read_text(path))
  except (OSError, ValueError) as error:
    raise UserError(
      f"expected questions of Causal-HalBench as a JSON array at {path}, found:"
      f" {error!s:.200}"
    ) from error
  if not isinstance(found, list) or not found:
    raise UserError(
      f"{path}: expected a JSON array of questions, found {found!r:.80}"
    )
  seen: set[tuple[str, Any]] = set()
  for i, row in enumerate(found):
    try:
      _check(row)
      key = row["image_name"], row["id"]
      if key in seen:
        raise UserError(
          f"expected each id of a picture once, found {row['id']!r:.40} twice;"
          " number the questions"
        )
      seen.add(key)
    except UserError as error:
      raise UserError(f"{path}[{i}]: {error}") from error
  return found


def _check(row: Any) -> None:
  if not isinstance(row, dict):
    raise UserError(f"expected an object, found {row!r:.80}")
  lines.check_keys(row, FIELDS, "a question")
  for field in ("image_name", "q"):
    if not isinstance(row.get(field), str) or not row[field].strip():
      raise UserError(
        f"expected {field!r} as text that isn't empty, found"
        f" {row.get(field)!r:.80}"
      )
    lines.check_text(row[field])
  for field, known in (("type", ROLES), ("tag", TAGS), ("answer", "yes no")):
    values = known.split() if isinstance(known, str) else [*known]
    if row.get(field) not in values:
      raise UserError(
        f"expected {field!r} as one of {', '.join(values)}, found"
        f" {row.get(field)!r:.80}"
      )
  if not isinstance(row.get("id"), str | int) or isinstance(row["id"], bool):
    raise UserError(f"expected 'id' as a number, found {row.get('id')!r:.80}")
  changed = original(row["image_name"]) != row["image_name"]
  if changed != (row["tag"] == "inpainted"):
    raise UserError(
      "expected a picture NAME_ddd.jpg where the tag is inpainted, and only"
      f" there, found {row['image_name']!r:.80} of tag {row['tag']}"
    )
  if row["type"] == "inpaint" and not changed:
    raise UserError(
      f"expected type inpaint of a changed picture, found tag {row['tag']}"
    )


class CausalHalBench:
  """Questions about pictures in which one object was replaced.

  `extra` has "causal": the original picture, the one that is shown, the role of
  the object that is asked for, and the question.

  Attributes:
    paths: the file.
  """

  def __init__(self, path: str, *, media: str, prompt: str = "{question}"):
    """Reads and checks every question; pictures are opened later.

    Args:
      path: the released file of questions, a JSON array.
      media: folder of the pictures, original and changed ones.
      prompt: text of the user's turn, with "{question}" in it.

    Raises:
      UserError: naming file and row of what is wrong first.
    """
    check_prompt(prompt)
    self.paths: Sequence[str] = [os.fspath(path)]
    self._prompt, self._path = prompt, path
    self._rows = rows(path)
    shown = Media(storage.path(media))
    self._parts: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(self._rows):
      name = row["image_name"]
      try:
        self._parts[name] = self._parts.get(name) or shown.part("image", name)
      except UserError as error:
        raise UserError(f"{path}[{i}]: {error}") from error

  @staticmethod
  def about(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Returns original picture, picture, role and text of a row."""
    name = row["image_name"]
    return original(name), name, ROLES[row["type"]], row["q"]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Example:
    row = self._rows[index]
    return Example(
      name=self._name(index),
      question=row["q"],
      messages=ask(row["q"], self._prompt, [self._parts[row["image_name"]]]),
      answer=row["answer"],
      kind=f"{ROLES[row['type']]}, {row['tag']}",
      extra={"causal": self.about(row)},
    )

  def originals(self) -> Iterator[str]:
    """Yields the original picture of every question."""
    return (original(row["image_name"]) for row in self._rows)

  def pairs(self) -> Iterator[tuple[str, str]]:
    """Yields (question, answer) of every example."""
    return ((row["q"], row["answer"]) for row in self._rows)

  def names(self) -> Iterator[str]:
    """Yields the name of every example: file and row."""
    return map(self._name, range(len(self)))

  def _name(self, index: int) -> str:
    return f"{self._path}[{index}]"
