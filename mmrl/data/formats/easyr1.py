"""Rows of EasyR1 (hiyouga/EasyR1, verl/utils/dataset.py)."""

import re
from typing import Any

from mmrl.data.formats import fields
from mmrl.errors import UserError

_FACT = re.compile(r"<info([1-9]\d{0,3})>(.*?)</info\1>", re.DOTALL)

USED = {
  "problem": "question, with <image> or <video> once for each; or",
  "prompt": "question",
  "answer": "right answer",
  "images": "list of pictures",
  "videos": "list of videos",
  "visual_key_info": "visual facts, as Perception-R1 has them",
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
  if "visual_key_info" in raw:
    found["facts"] = _facts(raw["visual_key_info"])
  return found


def _facts(value: Any) -> list[str]:
  """Returns the facts of a text `<info1>..</info1> <info2>..</info2>`.

  Raises:
    UserError: if it has anything else, or other numbers.
  """
  blocks = _FACT.findall(value) if isinstance(value, str) else []
  numbers = [int(number) for number, _ in blocks]
  whole = isinstance(value, str) and not _FACT.sub("", value).strip()
  if not whole or not blocks or numbers != [*range(1, len(blocks) + 1)]:
    raise UserError(
      "expected 'visual_key_info' as text of <info1>..</info1>,"
      f" <info2>..</info2> and so on, found {value!r:.80}; null where a row has"
      " none"
    )
  return [fact.strip() for _, fact in blocks]
