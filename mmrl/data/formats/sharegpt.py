"""Rows of ShareGPT's form, as LLaMA-Factory has them (data/README.md)."""

from typing import Any

from mmrl.data.formats import fields
from mmrl.errors import UserError

USED = {
  "conversations": "messages with `from` and `value`; the last is the answer",
  "messages": "the same with `role` and `content`",
  "system": "message of the system",
  "images": "pictures at marks <image>",
  "videos": "videos at marks <video>",
  "chosen": "message to prefer, behind the conversation",
  "rejected": "message to avoid",
  "tools": "refused, unless empty",
  "audios": "refused, unless empty",
}
UNUSED = ("id", "source", "dataset")


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  if "conversations" in row:
    return not row.keys() & {"image", "video"}
  values = row.get("messages")
  return (
    isinstance(values, list)
    and "answer" not in row
    and all(
      isinstance(m, dict) and isinstance(m.get("content"), str) for m in values
    )
  )


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format."""
  fields.refuse(raw, ["tools"], "no tools are called here")
  fields.refuse(raw, ["audios"], "models here don't hear")
  key = fields.one_of(raw, ("conversations", "messages"))
  conversation = fields.messages(raw[key], key)
  if raw.get("system", "") != "":
    if conversation[0]["role"] == "system":
      raise UserError("expected one message of the system, found two")
    conversation.insert(0, {"role": "system", "content": raw["system"]})
  pictures = fields.media(
    images=fields.shown(raw, "images"), videos=fields.shown(raw, "videos")
  )
  if "chosen" not in raw and "rejected" not in raw:
    asked, target = fields.split(conversation)
    return fields.asked(asked, pictures) | target
  pair = [
    fields.spoken(fields.messages([raw.get(side)], side)[0])
    for side in ("chosen", "rejected")
  ]
  return fields.asked(conversation, pictures) | {"answers": pair}
