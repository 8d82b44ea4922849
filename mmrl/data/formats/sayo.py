"""Rows of SAYO (arXiv 2602.08241), as its training reads them."""

from typing import Any

from mmrl.data.formats import fields

USED = {
  "question": "question",
  "image": "picture",
  "answer": "right answer, whole",
  "short_answer": "right answer in a word; null where there is none",
  "focus_area": "ranges of visual tokens, the last one included",
  "type": "kind",
}
UNUSED = ("id",)


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  return {"question", "image"} <= row.keys() and bool(
    row.keys() & {"focus_area", "short_answer"}
  )


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format; either answer is right."""
  asked = fields.text(raw, "question")
  fields.check_unmarked(asked)
  found: dict[str, Any] = {"question": asked}
  if "image" in raw:
    found["images"] = [raw["image"]]
  keys = [key for key in ("answer", "short_answer") if key in raw]
  if keys:
    both = [fields.answer(fields.text(raw, key)) for key in keys]
    found["answer"] = [*dict.fromkeys(both)]
  if "focus_area" in raw:
    found["focus_area"] = raw["focus_area"]
  if "type" in raw:
    found["kind"] = raw["type"]
  return found
