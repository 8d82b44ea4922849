"""Rows of VLMEvalKit (vlmeval/dataset/image_base.py, image_mcq.py)."""

import ast
import collections
from collections.abc import Mapping
import string
from typing import Any

from mmrl.data.formats import fields
from mmrl.data.tables import Table
from mmrl.errors import UserError

USED = {
  "index": "name that rows with the same picture refer to",
  "question": "question, behind its pictures",
  "answer": "right answer",
  "image": "base64 of a picture, a list of them, or the index of another row",
  "image_path": "path of a picture, or a list, for rows without `image`",
  "hint": "text in front of the question",
  "category": "kind",
  **dict.fromkeys(string.ascii_uppercase, "choice of this letter"),
}
UNUSED = ("l2-category", "split", "source", "comment", "prediction", "id")
_LONGEST_INDEX = 64


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  return "question" in row and "index" in row


class Shared:
  """Pictures that rows have from others, by the index of those."""

  def __init__(self, table: Table):
    self._table = table
    self._at: dict[str, int] | None = None
    self._seen: collections.Counter[str] | None = collections.Counter()

  def see(self, index: str) -> None:
    """Notes the index of a row, until `twice` is asked for."""
    if self._seen is not None:
      self._seen[index] += 1

  def twice(self) -> str:
    """Says which index several rows have; "" if none.

    It is asked for after all rows were seen once, and they may be seen again.
    """
    seen: Mapping[str, int] = self._seen or {}
    self._seen = None
    several = [index for index, count in seen.items() if count > 1]
    if not several:
      return ""
    more = f", as are {len(several) - 1} others" if several[1:] else ""
    return (
      f"{self._table.path}: expected each index once, found {several[0]!r:.80}"
      f" {seen[several[0]]} times{more}; number the rows"
    )

  def __getitem__(self, index: str) -> str:
    if self._at is None:
      self._at = {}
      rows = (row for _, row in self._table.scan())
      for i, row in enumerate(rows):
        if isinstance(row, dict) and len(str(row.get("image"))) > 64:
          self._at[str(row.get("index"))] = i
    if index not in self._at:
      raise UserError(
        "expected the base64 of a picture, or the index of a row with one,"
        f" found {index!r:.80}"
      )
    return self._table[self._at[index]]["image"]


def row(raw: dict[str, Any], shared: Any) -> dict[str, Any]:
  """Returns a row of our own format.

  Args:
    raw: the row.
    shared: pictures by the index of the row that has them.
  """
  if not isinstance(raw.get("index"), str | int):
    raise UserError(
      f"expected 'index', a number or text that no other row has, found"
      f" {raw.get('index')!r:.80}; number the rows"
    )
  shared.see(str(raw["index"]))
  asked = fields.text(raw, "question")
  options = [
    f"{k}. {_choice(raw, k)}\n" for k in string.ascii_uppercase if k in raw
  ]
  if options or "hint" in raw:
    asked = f"Question: {asked}\n" + "Options:\n" * bool(options)
    asked += "".join(options)
  if "hint" in raw:
    asked = f"Hint: {fields.text(raw, 'hint')}\n{asked}"
  found: dict[str, Any] = {"question": asked}
  if "image" in raw:
    images = fields.text(raw, "image")
    if len(images) <= _LONGEST_INDEX:
      images = shared[images]
    found["images"] = [{"bytes": image} for image in _listed(images)]
  elif "image_path" in raw:
    found["images"] = _listed(fields.text(raw, "image_path"))
  if "answer" in raw:
    found["answer"] = fields.answer(raw["answer"])
  if "category" in raw:
    found["kind"] = raw["category"]
  return found


def _choice(raw: dict[str, Any], letter: str) -> str:
  """Returns the text of a choice; whole numbers have one."""
  value = raw[letter]
  return str(value) if type(value) is int else fields.text(raw, letter)


def _listed(text: str) -> list[str]:
  """Returns the items of a list in Python's form, or the one text."""
  if not text.startswith("["):
    return [text]
  try:
    values = ast.literal_eval(text)
  except Exception as error:  # Of half a dozen kinds.
    raise UserError(
      f"expected a list of texts in Python's form, found {text!r:.80}"
    ) from error
  if not all(isinstance(value, str) for value in values):
    raise UserError(f"expected a list of texts, found {text!r:.80}")
  return values
