"""Rows of our own format to examples: each is used whole, or refused."""

import dataclasses
import re
from typing import Any

from etils import epath

from mmrl.data import lines, media
from mmrl.data.example import Example, ask
from mmrl.errors import UserError

_ROLES = ("system", "user", "assistant")
_MESSAGE = frozenset(("role", "content"))
_MARK = re.compile("<(image|video)>")
_KEYS = {"image": "images", "video": "videos"}
# Most visual facts of a question.
_FACTS = 16


def _is_marked(text: str) -> bool:
  """Tells whether a text has marks, sooner than `_MARK` does."""
  return "<image>" in text or "<video>" in text


class _Shown:
  """Pictures and videos of a row, which its marks take in order."""

  def __init__(self, parts: dict[str, list[dict]]):
    self._parts, self._taken = parts, {"image": 0, "video": 0}

  def take(self, kind: str) -> dict:
    """Returns the next part; an empty one where there are too few."""
    at = self._taken[kind]
    self._taken[kind] += 1
    parts = self._parts[kind]
    return parts[at] if at < len(parts) else {"type": kind}

  def check(self) -> None:
    """Refuses marks without a picture, and pictures without a mark."""
    for kind, parts in self._parts.items():
      if self._taken[kind] != len(parts):
        raise UserError(
          f"expected as many marks <{kind}> in the text as '{kind}s', found"
          f" {self._taken[kind]} and {len(parts)}; give one to each"
        )

  def split(self, text: str) -> list[dict]:
    """Splits a text at its marks, which become pictures and videos."""
    found = []
    for i, piece in enumerate(_MARK.split(text)):
      if i % 2:
        found.append(self.take(piece))
      elif piece:
        found.append({"type": "text", "text": piece})
    return found


class Reader:
  """Makes examples of the rows of a file.

  Attributes:
    unprompted: number of rows made so far that don't use a prompt other than
      "{question}", as they have messages.
  """

  def __init__(self, folder: epath.Path, prompt: str):
    """Reads rows.

    Args:
      folder: of the file; paths are relative to it.
      prompt: text of the user's turn, with "{question}" in it.
    """
    self._media, self._prompt = media.Media(folder), prompt
    self.unprompted = 0

  def example(self, row: dict[str, Any], name: str) -> Example:
    """Makes an example of a row, which has our own keys only and no nulls.

    Raises:
      UserError: naming the row and what of it is wrong.
    """
    try:
      return self._example(row, name)
    except UserError as error:
      raise UserError(f"{name}: {error}") from error

  def _example(self, row: dict[str, Any], name: str) -> Example:
    if row.keys().isdisjoint(("answer", "answers", "labels")):
      raise UserError(
        "expected an object with 'answer', or with 'answers' to learn, found"
        f" {sorted(row)}; null counts as absent"
      )
    if ("question" in row) == ("messages" in row):
      raise UserError(
        f"expected either 'question' or 'messages', found {sorted(row)}"
      )
    parts = {
      kind: self._parts(kind, key, row[key]) if key in row else []
      for kind, key in _KEYS.items()
    }
    messages, question = self._read(row, parts)
    self.unprompted += "messages" in row and self._prompt != "{question}"
    other: list[dict] = []
    if "rejected_images" in row:
      other, _ = self._read(row, parts | {"image": self._rejected(row, parts)})
    right = _right(row["answer"]) if "answer" in row else (None,)
    example = Example(
      name=name,
      question=question,
      messages=messages,
      answer=right[0],
      also=right[1:],
      kind=_word(row["kind"], "kind") if "kind" in row else "all",
      answers=_answers(row["answers"]) if "answers" in row else (),
      other=other,
      extra=_extra(row),
    )
    if "region" in row:
      _mark(example.picture, row["region"])
    if "focus_area" in row:
      _mark(example.picture, {"tokens": row["focus_area"]})
    if "compared" in row or "preference" in row:
      return self._pair(row, example, parts)
    return example

  def _pair(
    self, row: dict[str, Any], example: Example, parts: dict[str, list[dict]]
  ) -> Example:
    """Returns a question about frame A, with that about B as its partner."""
    compared, preference = row.get("compared"), row.get("preference")
    keys = {"images", "labels"}
    if "labels" not in row or preference not in ("A", "B", "tie"):
      raise UserError(
        "expected 'labels' and a 'preference' of A, B or tie beside 'compared',"
        f" found {sorted(row)} and {preference!r:.80}"
      )
    if not isinstance(compared, dict) or compared.keys() != keys:
      raise UserError(
        "expected 'compared' with the 'images' and 'labels' of the other frame,"
        f" found {compared!r:.80}"
      )
    shown = self._parts("image", "images", compared["images"])
    if len(shown) != len(parts["image"]) or not shown:
      raise UserError(
        "expected as many 'images' in 'compared' as in the row, found"
        f" {len(shown)} and {len(parts['image'])}"
      )
    messages, _ = self._read(row, parts | {"image": shown})
    known = {"pair": example.name, "preference": preference}
    other = {"side": "B", "labels": _sentences(compared["labels"], "labels")}
    partner = dataclasses.replace(
      example,
      name=f"{example.name} (compared)",
      messages=messages,
      extra=known | other,
    )
    extra = {**example.extra, **known, "side": "A"}
    return dataclasses.replace(example, extra=extra, partner=partner)

  def _read(
    self, row: dict[str, Any], parts: dict[str, list[dict]]
  ) -> tuple[list[dict], str]:
    """Returns a row's conversation about these parts, and its question."""
    if "question" in row:
      return self._asked(row["question"], parts), row["question"]
    return self._conversation(row["messages"], _Shown(parts))

  def _rejected(
    self, row: dict[str, Any], parts: dict[str, list[dict]]
  ) -> list[dict]:
    """Returns the pictures that take the place of a row's own."""
    found = self._parts("image", "rejected_images", row["rejected_images"])
    if not found or len(found) != len(parts["image"]):
      raise UserError(
        "expected 'rejected_images' with one for each of 'images', found"
        f" {len(found)} and {len(parts['image'])}; leave the key out where"
        " there is none"
      )
    return found

  def _parts(self, kind: str, key: str, values: Any) -> list[dict]:
    """Returns the parts of a row's pictures or videos."""
    if not isinstance(values, list):
      raise UserError(
        f"expected {key!r} as a list of paths, found {values!r:.80}; put it in"
        " brackets"
      )
    return [self._media.part(kind, value) for value in values]

  def _asked(self, question: Any, parts: dict[str, list[dict]]) -> list[dict]:
    """Asks a question about pictures and videos, at its marks or in front."""
    if not isinstance(question, str) or not question.strip():
      raise UserError(
        f"expected 'question' as text that isn't empty, found {question!r:.80}"
      )
    text = self._prompt.replace("{question}", question)
    if not _is_marked(text):
      return ask(question, self._prompt, parts["image"] + parts["video"])
    shown = _Shown(parts)
    content = shown.split(text)
    shown.check()
    return [{"role": "user", "content": content}]

  def _conversation(
    self, messages: Any, shown: _Shown
  ) -> tuple[list[dict], str]:
    """Checks messages and puts pictures and videos where their marks are.

    Returns:
      (messages, text of the last one).
    """
    if not isinstance(messages, list) or not messages:
      raise UserError(
        "expected at least one message in a list 'messages', found"
        f" {messages!r:.80}"
      )
    found = [self._message(message, shown) for message in messages]
    shown.check()
    last = found[-1]
    if last["role"] != "user":
      raise UserError(
        "expected the user's message at the end, found one of role"
        f" {last['role']!r}; take it out, since the model is to write the"
        " answer"
      )
    text, content = _text(last["content"]), last["content"]
    if not text.strip() and _is_text(content):
      raise UserError("expected a question in the last message, found none")
    return found, text

  def _message(self, message: Any, shown: _Shown) -> dict:
    if not isinstance(message, dict) or not message.keys() >= _MESSAGE:
      raise UserError(
        f"expected messages with 'role' and 'content', found {message!r:.80}"
      )
    if len(message) > 2:
      lines.check_keys(message, ("role", "content"), "a message")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
      raise UserError(
        f"expected a role of {', '.join(_ROLES)}, found {role!r:.80}"
      )
    if isinstance(content, str):
      if _is_marked(content):
        content = shown.split(content)
      return {"role": role, "content": content}
    if not isinstance(content, list) or not content:
      raise UserError(
        f"expected 'content' as text or a list of parts, found {content!r:.80}"
      )
    parts: list[dict] = []
    for part in content:
      parts += self._message_parts(part, shown)
    return {"role": role, "content": parts}

  def _message_parts(self, part: Any, shown: _Shown) -> list[dict]:
    """Checks one part; a text may have marks, and so become several."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image", "video"):
      raise UserError(
        "expected message parts of type 'text', 'image' or 'video', found"
        f" {part!r:.80}"
      )
    if kind != "text":
      if len(part) == 1:
        return [shown.take(kind)]
      if media.has_source(part):
        return [self._media.part(kind, part)]
      return [shown.take(kind) | self._media.options(kind, part)]
    if len(part) > 2:
      lines.check_keys(part, ("type", "text"), "a part of type 'text'")
    text = part.get("text")
    if not isinstance(text, str):
      raise UserError(
        f"expected the text of a part of type 'text', found {text!r:.80}"
      )
    return shown.split(text) if _is_marked(text) else [part]


def _right(value: Any) -> tuple[Any, ...]:
  """Returns a row's right answers, of which there may be a list."""
  if not isinstance(value, list):
    return (_word(value, "answer"),)
  if not value:
    raise UserError(
      "expected 'answer' as a text or a list of texts that are all right, found"
      " an empty list; leave the row out"
    )
  return tuple([_word(one, "answer") for one in value])


def _word(value: Any, key: str) -> str:
  """Returns the text of a row's answer or kind; whole numbers have one."""
  if isinstance(value, str) and value.strip():
    return value
  if type(value) is int:
    return str(value)
  if isinstance(value, list):
    raise UserError(
      f"expected one {key!r}, found a list, {value!r:.80}; write one text"
    )
  raise UserError(
    f"expected {key!r} as text that isn't empty or a whole number, found"
    f" {value!r:.80}; write it as the text that is meant"
  )


def _answers(values: Any) -> tuple[str, ...]:
  """Checks the texts to learn from."""
  if not isinstance(values, list) or not all(
    isinstance(text, str) and text.strip() for text in values
  ):
    raise UserError(
      "expected 'answers' as a list of texts that aren't empty, found"
      f" {values!r:.80}"
    )
  return tuple(values)


def _extra(row: dict[str, Any]) -> dict[str, Any]:
  """Returns what rewards read of a row besides its answer."""
  found: dict[str, Any] = {}
  if "labels" in row:
    found["labels"] = _sentences(row["labels"], "labels")
  if "facts" in row:
    found["facts"] = _sentences(row["facts"], "facts")
    count = len(found["facts"])
    if not count:
      raise UserError(
        "expected 'facts' with at least one sentence, found an empty list;"
        " leave the key out where there is none"
      )
    if count > _FACTS:
      raise UserError(
        f"expected at most {_FACTS} different 'facts', found {count}; keep"
        " those that the answer depends on"
      )
  if "looks" in row:
    found["looks"] = _looks(row["looks"])
  return found


def _looks(values: Any) -> tuple[int, ...]:
  """Checks the numbers of pictures that latent segments are about."""
  if not isinstance(values, list) or not all(
    type(one) is int and one >= 0 for one in values
  ):
    raise UserError(
      "expected 'looks' as a list of numbers of pictures, from 0, found"
      f" {values!r:.80}"
    )
  return tuple(values)


def _sentences(values: Any, key: str) -> tuple[str, ...]:
  """Checks a list of texts, of which equal ones count once."""
  if not isinstance(values, list) or not all(
    isinstance(text, str) and text.strip() for text in values
  ):
    raise UserError(
      f"expected {key!r} as a list of texts that aren't empty, found"
      f" {values!r:.80}"
    )
  return tuple(dict.fromkeys(text.strip() for text in values))


def _mark(picture: dict | None, region: Any) -> None:
  """Marks a region in the image part, so that it is scaled with its picture."""
  region = media.region(region)
  if picture is None or "region" in picture:
    raise UserError(
      "expected 'region' beside a picture without one, found"
      f" {'no picture' if picture is None else 'one of its own'}; leave it out"
    )
  picture["region"] = region


def _text(content: str | list[dict]) -> str:
  """Returns the text of a message."""
  if isinstance(content, str):
    return content
  return " ".join([p["text"] for p in content if p["type"] == "text"])


def _is_text(content: str | list[dict]) -> bool:
  """Tells whether a message shows neither picture nor video."""
  return isinstance(content, str) or all(p["type"] == "text" for p in content)
