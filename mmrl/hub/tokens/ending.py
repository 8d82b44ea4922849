"""Tokens that end an answer, from all files of a model directory that say so.

config.json names one or several, generation_config.json often more: a base
model's own end and that of the chat template. All of them end an answer.
"""

import json
from typing import Any

from etils import epath

from mmrl import json_files, storage
from mmrl.errors import UserError

FILE = "generation_config.json"
# More are a mistake; each is compared with every sampled token.
_MOST = 64


def read(named: Any, path: epath.Path) -> tuple[int, ...]:
  """Reads the ids that end an answer; the first closes answers of ours.

  That is the one that the chat template writes, else the tokenizer's
  `eos_token`, else the first that is named.

  Args:
    named: `eos_token_id` of config.json.
    path: the model directory.

  Raises:
    TypeError: if they aren't ids.
    UserError: if another file can't be read.
  """
  ids = _ids(named, "eos_token_id")
  file = path / FILE
  more = json_files.optional(file).get("eos_token_id")
  try:
    ids += _ids(more, "eos_token_id") if more is not None else ()
  except TypeError as error:
    raise UserError(f"{file}: {error}; mend or remove it") from error
  ids = tuple(dict.fromkeys(ids))
  if len(ids) == 1:
    return ids
  first = _closing(ids, path)
  return (first, *(i for i in ids if i != first))


def _ids(named: Any, field: str) -> tuple[int, ...]:
  found = tuple(named) if isinstance(named, list) else (named,)
  if not 0 < len(found) <= _MOST or not all(type(i) is int for i in found):
    raise TypeError(f"{field} is {named!r:.80}, not a token's id or a list")
  return found


def _closing(ids: tuple[int, ...], path: epath.Path) -> int:
  """Finds the id that closes an answer; the first if no file says."""
  settings = json_files.optional(path / "tokenizer_config.json")
  added = json_files.optional(path / "tokenizer.json").get("added_tokens")
  of_id = {
    token.get("id"): token.get("content")
    for token in (added if isinstance(added, list) else ())
    if isinstance(token, dict)
    and token.get("id") in ids
    and isinstance(token.get("content"), str)
  }
  template = path / "chat_template.jinja"
  try:
    json_files.check_regular(template)
    shown = storage.read_bytes(template).decode("utf-8", "replace")
  except FileNotFoundError:
    found = json_files.optional(path / "chat_template.json") or settings
    shown = str(found.get("chat_template"))
  except OSError as error:
    raise UserError(f"expected a readable {template}: {error}") from error
  end = settings.get("eos_token")
  end = end.get("content") if isinstance(end, dict) else end
  written = [i for i in ids if of_id.get(i) and str(of_id[i]) in shown]
  closing = [i for i in ids if end and of_id.get(i) == end]
  both = [i for i in closing if i in written]
  return (both or written or closing or ids)[0]


def write(ids: tuple[int, ...], pad: int, path: epath.Path) -> None:
  """Writes generation_config.json, which Transformers and vLLM obey."""
  settings = {"eos_token_id": to_json(ids), "pad_token_id": pad}
  storage.write_text(path / FILE, json.dumps(settings, indent=2) + "\n")


def to_json(ids: tuple[int, ...]) -> int | list[int]:
  """Returns one id as it is, several as a list."""
  return ids[0] if len(ids) == 1 else list(ids)
