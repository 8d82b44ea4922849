"""Rows of Video-R1 (tulerfeng/Video-R1, src/r1-v/src/open_r1)."""

from typing import Any

from mmrl.data.formats import fields
from mmrl.errors import UserError

USED = {
  "problem": "question, behind its picture or video",
  "options": "choices, which a multiple choice question lists",
  "data_type": "`image` or `video`: what `path` is",
  "path": "picture or video",
  "problem_type": "kind",
  "solution": "right answer in <answer> tags",
  "process": "thought, which is learned with the solution behind it",
}
UNUSED = ("problem_id", "data_source")
_CHOICE = "multiple choice"


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  return "problem" in row and "problem_type" in row and "solution" in row


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format."""
  asked = fields.text(raw, "problem")
  kind = fields.text(raw, "problem_type")
  if kind == _CHOICE:
    options = raw.get("options")
    if (
      not isinstance(options, list)
      or not options
      or not all(isinstance(option, str) for option in options)
    ):
      raise UserError(
        f"expected 'options' as a list of texts, found {options!r:.80}"
      )
    asked += "Options:\n" + "".join([f"{option}\n" for option in options])
  elif raw.get("options", []) != []:
    raise UserError(
      f"expected 'options' beside problem_type {_CHOICE!r} only, found them"
      f" beside {kind!r:.80}"
    )
  found: dict[str, Any] = {"question": asked, "kind": kind}
  if "path" in raw:
    form = raw.get("data_type")
    if form not in ("image", "video"):
      raise UserError(
        f"expected 'data_type' as 'image' or 'video', found {form!r:.80}"
      )
    found[f"{form}s"] = [raw["path"]]
  solution = fields.text(raw, "solution")
  found["answer"] = fields.answer(solution)
  if "process" in raw:
    found["answers"] = [f"{fields.text(raw, 'process')}\n{solution}"]
  return found
