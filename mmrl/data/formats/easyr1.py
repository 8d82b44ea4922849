"""Rows of EasyR1 (hiyouga/EasyR1, verl/utils/dataset.py)."""

from typing import Any

from mmrl.data.formats import fields

USED = {
  "problem": "question, with <image> or <video> once for each; or",
  "prompt": "question",
  "answer": "right answer",
  "images": "list of pictures",
  "videos": "list of videos",
}
UNUSED = ("id", "problem_id", "data_source", "source", "problem_type")


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  asked = row.get("problem", row.get("prompt"))
  return isinstance(asked, str) and "answer" in row


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format."""
  asked = fields.text(raw, fields.one_of(raw, ("problem", "prompt")))
  pictures = fields.media(
    images=fields.shown(raw, "images"), videos=fields.shown(raw, "videos")
  )
  found = fields.question(asked, pictures)
  if "answer" in raw:
    found["answer"] = fields.answer(raw["answer"])
  return found
