"""Chat templates: found in a model directory, and rendered.

A template is a program of the model's author: whatever it raises is said in
one line that names its file.
"""

from collections.abc import Mapping, Sequence
import contextlib
import threading
from typing import Any

from mmrl import json_files, storage
from mmrl.errors import UserError

# Characters that a template may write besides the texts that it is given.
_MOST = 10**6
# Seconds that it may take for one short message, which takes microseconds.
_SECONDS = 10.0


def read(path: storage.Name, tokenizer: Any) -> str:
  """Gives a tokenizer the chat template of a directory.

  Returns:
    The file that holds it.

  Raises:
    UserError: if there is none, or it isn't a text.
  """
  path = storage.path(path)
  file, apart = path / "chat_template.jinja", path / "chat_template.json"
  if not file.exists():
    file = path / "tokenizer_config.json"
    if apart.exists():
      file = apart
      template = json_files.read(apart, "a chat template")
      tokenizer.chat_template = template.get("chat_template")
  found = tokenizer.chat_template
  if found is None:
    raise UserError(
      f"expected a chat template in {path}, found none; add chat_template.jinja"
    )
  # Of several by name, Transformers takes the one called "default".
  named = isinstance(found, dict) and found.get("default")
  if not isinstance(named or found, str):
    raise UserError(
      f"{file}: expected a chat template, a text or one called 'default',"
      f" found {found!r:.80}; download the model's files again"
    )
  _check_ends(tokenizer, str(file))
  return str(file)


def _check_ends(tokenizer: Any, file: str) -> None:
  """Checks that a template comes to an end.

  Once, for one message: a thread for each conversation would take longer than
  all else of a prompt.
  """
  message = {"role": "user", "content": [{"type": "text", "text": "hello"}]}

  def write() -> None:
    # What it can't write is said of the conversation that has it.
    with contextlib.suppress(Exception):
      tokenizer.apply_chat_template([message], tokenize=False)

  thread = threading.Thread(target=write, daemon=True)
  thread.start()
  thread.join(_SECONDS)
  if thread.is_alive():
    raise UserError(
      f"{file}: expected a chat template that writes a message at once, found"
      f" one that takes more than {_SECONDS:.0f} seconds; mend the template"
    )


def render(
  tokenizer: Any,
  conversation: Sequence[Mapping[str, Any]],
  *,
  open_answer: bool,
  name: str,
  file: str,
) -> str:
  """Renders a conversation with a tokenizer's chat template.

  Args:
    tokenizer: has the template.
    conversation: the messages.
    open_answer: whether the assistant's turn is opened at the end.
    name: what errors call the conversation.
    file: the template's.

  Raises:
    UserError: if the template fails, or writes without end.
  """
  try:
    text = tokenizer.apply_chat_template(
      list(conversation), tokenize=False, add_generation_prompt=open_answer
    )
  except Exception as error:  # It may divide by zero, or call itself.
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise UserError(
      f"{name}: expected the chat template in {file} to write the messages, it"
      f" failed with {reason:.200}; mend the template, or give it messages of"
      " the kinds and in the order that it takes"
    ) from error
  given = sum(len(str(message["content"])) for message in conversation)
  if len(text) > _MOST + given:
    raise UserError(
      f"{name}: expected the chat template in {file} to write at most {_MOST}"
      f" characters of its own, found {len(text) - given}; mend the template"
    )
  return text
