"""Rows of TRL 1.16 (docs/source/dataset_formats.md, trl/data_utils.py).

Pictures stand where `prepare_multimodal_messages` puts them: in the parts
{"type": "image"} without a picture, in order, and else in front of the first
message of the user that is a plain text.
"""

from typing import Any

from mmrl.data.formats import fields
from mmrl.errors import UserError

USED = {
  "prompt": "messages that are asked",
  "messages": "conversation; its last message, the assistant's, is learned",
  "completion": "message of the assistant to learn",
  "chosen": "messages to prefer; they may begin with the prompt",
  "rejected": "messages to avoid",
  "images": "list of pictures",
  "image": "one picture",
  "answer": "right answer; or",
  "solution": "right answer",
}
UNUSED = ("id", "problem", "source", "score_chosen", "score_rejected")
_TARGETS = ("completion", "chosen", "messages")


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  if isinstance(row.get("messages"), list):
    last = row["messages"][-1:]
    return (
      last
      and isinstance(last[0], dict)
      and last[0].get("role") == ("assistant")
    )
  if "conversations" in row or "reward_model" in row:
    return False
  return isinstance(row.get("prompt", row.get("chosen")), list)


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format."""
  asked, targets = _asked(raw)
  images = fields.shown(raw, "images", "image")
  found = {"messages": _placed(asked, len(images))} | fields.media(
    images=images
  )
  if targets:
    found["answers"] = targets
  if "answer" in raw or "solution" in raw:
    key = fields.one_of(raw, ("answer", "solution"))
    found["answer"] = fields.answer(raw[key])
  return found


def _asked(raw: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
  """Returns messages that are asked, and texts to learn."""
  if ("chosen" in raw) != ("rejected" in raw):
    raise UserError("expected 'chosen' and 'rejected', found one of them")
  if "prompt" in raw:
    asked = _messages(raw, "prompt")
    keys = [key for key in ("completion", "chosen", "rejected") if key in raw]
    if "messages" in raw or keys[:2] == ["completion", "chosen"]:
      raise UserError(
        "expected 'messages', or 'prompt' with 'completion' or with 'chosen'"
        f" and 'rejected', found {', '.join(k for k in USED if k in raw)}"
      )
    return asked, [_target(_messages(raw, key)) for key in keys]
  key = fields.one_of(raw, ("prompt", "messages", "chosen"))
  conversation = _messages(raw, key)
  if key == "messages":
    if conversation[-1]["role"] == "assistant":
      return conversation[:-1], [fields.spoken(conversation[-1])]
    return conversation, []
  rejected = _messages(raw, "rejected")
  if conversation[:-1] != rejected[:-1]:
    raise UserError(
      "expected 'chosen' and 'rejected' with the same messages but for the"
      " last, found others; write the same ones as 'prompt'"
    )
  return conversation[:-1], [_target(m[-1:]) for m in (conversation, rejected)]


def _messages(raw: dict[str, Any], key: str) -> list[dict[str, Any]]:
  if isinstance(raw[key], str):
    raise UserError(
      f"expected {key!r} as a list of messages, found text; a model that"
      ' chats reads {"role": .., "content": ..}'
    )
  return fields.messages(raw[key], key)


def _target(messages: list[dict[str, Any]]) -> str:
  if len(messages) != 1:
    raise UserError(
      f"expected one message of the assistant to learn, found {len(messages)};"
      " write those before it in 'prompt'"
    )
  return fields.spoken(messages[0])


def _placed(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
  """Makes parts of texts, pictures in front of the user's first."""
  found = []
  for message in messages:
    content = message["content"]
    if isinstance(content, str):
      content = [{"type": "text", "text": content}]
      if message["role"] == "user":
        content = [{"type": "image"}] * count + content
        count = 0
    for part in content if isinstance(content, list) else []:
      if isinstance(part, dict) and isinstance(part.get("text"), str):
        fields.check_unmarked(part["text"])
    found.append({"role": message["role"], "content": content})
  return found
