"""Parts of messages: texts, and where pictures and videos come from."""

from collections.abc import Iterator, Mapping, Sequence
import math
import re
from typing import Any

from mmrl.errors import UserError


def each(conversation: Sequence[dict], name: str) -> Iterator[dict]:
  """Yields the message parts of a conversation, checked."""
  for message in conversation:
    if isinstance(message["content"], str):
      continue
    for part in message["content"]:
      kind = part.get("type") if isinstance(part, Mapping) else None
      if kind not in ("text", "image", "video"):
        raise UserError(
          f"{name}: expected message parts of type 'text', 'image' or"
          f" 'video', found {part!r:.80}"
        )
      yield part


def shown(conversation: Sequence[dict], name: str) -> list[dict]:
  """Returns the pictures and videos of a conversation, checked."""
  return [part for part in each(conversation, name) if part["type"] != "text"]


def fps(part: Mapping[str, Any], name: str) -> float:
  """Returns the frames per second that a video part gives, 0 if none."""
  given = part.get("fps") or 0
  try:
    rate = float(given)
  except (TypeError, ValueError):
    rate = math.nan
  if not 0 <= rate < math.inf:
    raise UserError(
      f"{name}: expected the part's 'fps' as a number above 0, found"
      f" {given!r:.80}; change it or leave it out"
    )
  return rate


def source(part: Mapping[str, Any], name: str) -> Any:
  """Returns the source of a picture or video part, under any usual key."""
  kind = part["type"]
  for key in (kind, "path", "url"):
    if part.get(key) is not None:
      found = part[key]
      break
  else:
    raise UserError(
      f"{name}: expected the part to hold {kind!r} or 'path', found"
      f" {sorted(part)}"
    )
  if isinstance(found, str):
    if re.match(r"https?://", found):
      raise UserError(
        f"{name}: expected a {kind} on this machine, found {found!r:.200};"
        " download it first"
      )
    found = found.removeprefix("file://")
  return found
