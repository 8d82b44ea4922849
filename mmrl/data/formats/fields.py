"""Fields that rows of several formats have."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from mmrl.errors import UserError

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile("</?answer>")
# Where a text has a picture or video, and our key that lists them.
MARKS = {"<image>": "images", "<video>": "videos"}
# What conversations call a message's role and content.
_KEYS = (("from", "value"), ("role", "content"))
# Roles, as conversations call them.
ROLES = {
  **{"system": "system", "human": "user", "user": "user"},
  **{"gpt": "assistant", "assistant": "assistant"},
}


def text(row: Mapping[str, Any], key: str) -> str:
  """Returns a text, which isn't empty."""
  value = row.get(key)
  if not isinstance(value, str) or not value.strip():
    raise UserError(
      f"expected {key!r} as text that isn't empty, found {value!r:.80}"
    )
  return value


def one_of(row: Mapping[str, Any], keys: Sequence[str]) -> str:
  """Returns which of some keys a row has.

  Raises:
    UserError: if it has none or several of them.
  """
  found = [key for key in keys if key in row]
  if len(found) != 1:
    raise UserError(
      f"expected one of {', '.join(keys)}, found"
      f" {' and '.join(found) or 'none'}; a mapping of columns, format="
      '{"answer": COLUMN, ..}, says which one counts'
    )
  return found[0]


def shown(row: Mapping[str, Any], *keys: str) -> list[Any]:
  """Returns the pictures or videos under some keys, each one or a list."""
  found: list[Any] = []
  for key in keys:
    value = row.get(key, [])
    found += value if isinstance(value, list) else [value]
  return found


def media(**kinds: list[Any]) -> dict[str, list[Any]]:
  """Returns our keys of those kinds that there are some of."""
  return {key: values for key, values in kinds.items() if values}


def answer(value: Any) -> Any:
  """Takes a right answer, or each of a list, out of its <answer> tags."""
  if isinstance(value, list):
    return [answer(one) for one in value]
  if not isinstance(value, str) or not _TAG.search(value):
    return value
  blocks = _BLOCK.findall(value)
  if not blocks or _TAG.search(_BLOCK.sub("", value)):
    raise UserError(
      "expected <answer> and </answer> around the right answer, found"
      f" {value!r:.80}; close each block"
    )
  return blocks[-1].strip()


def refuse(row: Mapping[str, Any], keys: Sequence[str], why: str) -> None:
  """Refuses keys that hold something."""
  for key in keys:
    if row.get(key, "") not in ("", [], {}):
      raise UserError(
        f"expected rows without {key!r}, found {row[key]!r:.80}; {why}"
      )


def messages(values: Any, key: str) -> list[dict[str, Any]]:
  """Returns a conversation with the roles and keys of chat templates.

  Args:
    values: messages with `from` and `value`, or `role` and `content`.
    key: under which they stand.
  """
  if not isinstance(values, list) or not values:
    raise UserError(
      f"expected {key!r} as a list of messages, found {values!r:.80}"
    )
  found = []
  for value in values:
    for role, content in _KEYS:
      if (
        isinstance(value, dict)
        and len(value) == 2
        and role in value
        and content in value
      ):
        break
    else:
      raise UserError(
        f"expected messages in {key!r} with 'from' and 'value', or 'role' and"
        f" 'content', alone, found {value!r:.80}"
      )
    name = value[role]
    if not isinstance(name, str) or name not in ROLES:
      raise UserError(
        f"expected a role of {', '.join(ROLES)}, found {name!r:.80}"
      )
    found.append({"role": ROLES[name], "content": value[content]})
  return found


def split(
  conversation: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Splits a conversation into what is asked and what was answered last.

  Returns:
    (messages up to the user's last, `answer` and `answers` of the assistant's
    last message; nothing if the user's is the last).
  """
  if conversation[-1]["role"] != "assistant":
    return conversation, {}
  *asked, last = conversation
  target = spoken(last)
  return asked, {"answer": answer(target), "answers": [target]}


def spoken(message: Mapping[str, Any]) -> str:
  """Returns the text of a message of the assistant."""
  content = message["content"]
  if isinstance(content, list) and all(
    isinstance(part, dict)
    and part.keys() == {"type", "text"}
    and part["type"] == "text"
    and isinstance(part["text"], str)
    for part in content
  ):
    content = "".join([part["text"] for part in content])
  if message["role"] != "assistant" or not isinstance(content, str):
    raise UserError(
      "expected a text of the assistant at the end, found"
      f" {dict(message)!r:.80}"
    )
  if not content.strip():
    raise UserError("expected a text of the assistant, found an empty one")
  return content


def asked(
  conversation: list[dict[str, Any]], pictures: dict[str, list[Any]]
) -> dict[str, Any]:
  """Returns what is asked, as our own rows have it.

  A single message of the user becomes a `question`, to which the prompt of the
  config applies; others stay `messages`.
  """
  if len(conversation) != 1 or not isinstance(conversation[0]["content"], str):
    return {"messages": conversation} | pictures
  if conversation[0]["role"] != "user":
    raise UserError("expected a message of the user, found none")
  return question(conversation[0]["content"], pictures)


def question(asked: str, pictures: dict[str, list[Any]]) -> dict[str, Any]:
  """Returns a question with as many marks as pictures and videos."""
  for mark, key in MARKS.items():
    marks, count = asked.count(mark), len(pictures.get(key, ()))
    if marks != count:
      raise UserError(
        f"expected as many marks {mark} in the text as pictures or videos,"
        f" found {marks} and {count}; give one to each"
      )
  return {"question": asked} | pictures


def check_unmarked(asked: str) -> None:
  """Refuses marks in a text of a format that has none."""
  for mark in MARKS:
    if mark in asked:
      raise UserError(
        f"expected text without marks, found {mark!r}: pictures stand where"
        ' {"type": "image"} is, or in front; take it out'
      )
