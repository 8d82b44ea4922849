"""Rows of LLaVA (haotian-liu/LLaVA, docs/Finetune_Custom_Data.md)."""

from typing import Any

from mmrl.data.formats import fields

USED = {
  "conversations": "messages with `from` and `value`; the last is the answer",
  "image": "picture, or a list of them, at marks <image>",
  "video": "video, or a list of them, at marks <video>",
}
UNUSED = ("id", "source", "data_source", "dataset")


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  return "conversations" in row and not row.keys() & {
    *("images", "videos", "chosen", "system", "tools")
  }


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format."""
  conversation = fields.messages(raw.get("conversations"), "conversations")
  asked, target = fields.split(conversation)
  pictures = fields.media(
    images=fields.shown(raw, "image"), videos=fields.shown(raw, "video")
  )
  return fields.asked(asked, pictures) | target
