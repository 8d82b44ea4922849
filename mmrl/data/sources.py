"""Sources of questions: random access to `Example`s.

A source has `__len__` and `__getitem__`, and reads a picture only when its
example is asked for.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

from mmrl import storage
from mmrl.errors import UserError
from mmrl.types import Box


@dataclasses.dataclass(frozen=True)
class Example:
  """One question with a verifiable answer.

  Attributes:
    name: what errors and reports call it.
    question: as asked, for people to read.
    messages: the conversation that is put to the model; an image part may
      carry "region", a box x0, y0, x1, y1 in pixels of its picture.
    answer: the exact answer.
    kind: group of questions that scores are also reported for.
    answers: whole texts to learn from, where the data give some.
  """

  name: str
  question: str
  messages: Sequence[dict]
  answer: str
  kind: str = "all"
  answers: Sequence[str] = ()

  @property
  def picture(self) -> dict | None:
    """First image part of the messages; None if there is none."""
    for message in self.messages:
      if not isinstance(message["content"], str):
        for part in message["content"]:
          if part["type"] == "image":
            return part
    return None


def ask(question: str, prompt: str, shown: Sequence[dict]) -> list[dict]:
  """Builds one user turn: pictures, videos, then the question in its prompt."""
  text = {"type": "text", "text": prompt.replace("{question}", question)}
  return [{"role": "user", "content": [*shown, text]}]


def object_box(pixels: np.ndarray, threshold: int = 10) -> Box:
  """Finds the box of what differs from the colour of the top left corner.

  Args:
    pixels: uint8 [height, width, 3] with a one-colour ground.
    threshold: largest difference in a channel that still is ground.

  Returns:
    x0, y0, x1, y1; the whole picture if nothing differs.
  """
  ground = pixels[0, 0].astype(np.int16)
  differs = (np.abs(pixels.astype(np.int16) - ground) > threshold).any(-1)
  rows, columns = np.nonzero(differs.any(1))[0], np.nonzero(differs.any(0))[0]
  if not len(rows):
    return 0, 0, pixels.shape[1], pixels.shape[0]
  return (
    int(columns[0]),
    int(rows[0]),
    int(columns[-1]) + 1,
    int(rows[-1]) + 1,
  )


class EasyVQA:
  """easy-VQA: real published pictures of one shape, 13 exact answers.

  4,000 + 1,000 pictures and 38,575 + 9,673 questions, from the PyPI package
  `easy-vqa`. The object's box is the region of every picture.

  Attributes:
    rows: (question, answer, picture) of every example.
    paths: file of each picture.
  """

  _KINDS = {
    **dict.fromkeys(("yes", "no"), "yes/no"),
    **dict.fromkeys(("circle", "rectangle", "triangle"), "shape"),
  }

  def __init__(self, *, split: str, prompt: str = "{question}"):
    """Opens a split of the set.

    Args:
      split: "train" or "test".
      prompt: text of the user's turn, with "{question}" in it.

    Raises:
      UserError: if the package isn't installed or there is no such split.
    """
    try:
      import easy_vqa
    except ImportError as error:
      raise UserError(
        "expected the package easy-vqa, found none installed; run pip install"
        " 'mmrl[examples]'"
      ) from error
    if split not in ("train", "test"):
      raise UserError(f"expected split 'train' or 'test', found {split!r}")
    questions = getattr(easy_vqa, f"get_{split}_questions")()
    self.rows = list(zip(*questions, strict=True))
    self.paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    self._split, self._prompt = split, prompt

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    question, answer, picture = self.rows[index]
    with Image.open(self.paths[picture]) as image:
      pixels = np.asarray(image.convert("RGB"))
    part = {"type": "image", "image": pixels, "region": object_box(pixels)}
    return Example(
      name=self._name(index),
      question=question,
      messages=ask(question, self._prompt, [part]),
      answer=answer,
      kind=self._KINDS.get(answer, "colour"),
    )

  def pairs(self) -> Iterator[tuple[str, str]]:
    """Yields (question, answer) of every example, without opening a picture."""
    return ((question, answer) for question, answer, _ in self.rows)

  def names(self) -> Iterator[str]:
    """Yields the name of every example, without opening a picture."""
    return map(self._name, range(len(self)))

  def _name(self, index: int) -> str:
    return f"easy_vqa/{self._split}/{index}"


class JsonLines:
  """A JSON Lines file (local, or gs://) of questions about pictures and videos.

  Each line is an object with `answer`, and either `question` and optionally
  `images` and `videos` (paths, relative to the file), or `messages` in the
  form of chat templates, whose image and video parts hold paths. `region` (a
  box in pixels of the first picture), `kind` and `answers` (whole texts to
  learn from, as the policy is to write them) are optional.
  """

  def __init__(self, *, path: str, prompt: str = "{question}"):
    """Reads and checks every line; pictures are opened later.

    Args:
      path: the file.
      prompt: text of the user's turn, with "{question}" in it; unused where a
        line has messages.

    Raises:
      UserError: naming file and line of what is wrong.
    """
    self._path = storage.path(path)
    self._listed: dict[str, frozenset[str]] = {}
    try:
      lines = storage.read_text(self._path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f"expected a readable data file: {error}") from error
    self._examples = [
      self._parse(line, f"{path}:{number}", prompt)
      for number, line in enumerate(lines, 1)
      if line.strip()
    ]
    if not self._examples:
      raise UserError(f"expected at least one question in {path}, found none")

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def pairs(self) -> Iterator[tuple[str, str]]:
    """Yields (question, answer) of every example."""
    return ((e.question, e.answer) for e in self._examples)

  def names(self) -> Iterator[str]:
    """Yields the name of every example: file and line."""
    return (e.name for e in self._examples)

  def given(self) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields name and texts to learn from of every example."""
    return ((e.name, e.answers) for e in self._examples)

  def _parse(self, line: str, name: str, prompt: str) -> Example:
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f"{name}: expected a line of JSON: {error}") from error
    if not isinstance(row, dict) or "answer" not in row:
      raise UserError(
        f"{name}: expected an object with 'answer', found {line:.80}"
      )
    if ("question" in row) == ("messages" in row):
      raise UserError(
        f"{name}: expected either 'question' or 'messages', found {sorted(row)}"
      )
    if "question" in row:
      shown = [
        self._file({"type": kind, kind: path}, name)
        for kind in ("image", "video")
        for path in row.get(f"{kind}s", [])
      ]
      messages = ask(row["question"], prompt, shown)
    else:
      messages = [self._message(message, name) for message in row["messages"]]
      if not messages:
        raise UserError(f"{name}: expected at least one message, found none")
    example = Example(
      name=name,
      question=row.get("question") or _last_text(messages),
      messages=messages,
      answer=str(row["answer"]),
      kind=row.get("kind", "all"),
      answers=_texts(row.get("answers", ()), name),
    )
    # In the image part, so that it is scaled with its picture.
    if "region" in row and example.picture is not None:
      example.picture["region"] = _box(row["region"], name)
    return example

  def _file(self, part: Any, name: str) -> Any:
    """Resolves the path of a picture or video part against the data file."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("image", "video"):
      return part
    rest = dict(part)
    source = rest.pop(kind, None) or rest.pop("path", None)
    # A video may be given as its frames.
    listed = source if isinstance(source, list) else [source]
    found = [self._path.parent / str(path) for path in listed]
    for file in found:
      if not self._is_file(file):
        what = {"image": "a picture", "video": "a video"}[kind]
        raise UserError(f"{name}: expected {what} at {file}, found no file")
    files = [str(file) for file in found]
    return rest | {kind: files if listed is source else files[0]}

  def _is_file(self, file: epath.Path) -> bool:
    """Tells whether a file exists; in a store, by one request per folder."""
    if not storage.is_remote(file):
      return file.is_file()
    folder = str(file.parent)
    if folder not in self._listed:
      self._listed[folder] = storage.names(folder)
    return file.name in self._listed[folder]

  def _message(self, message: Any, name: str) -> dict:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
      raise UserError(
        f"{name}: expected messages with 'role' and 'content', found"
        f" {message!s:.80}"
      )
    content = message["content"]
    if isinstance(content, str):
      return message
    return message | {"content": [self._file(part, name) for part in content]}


def _texts(values: Any, name: str) -> tuple[str, ...]:
  """Checks the texts to learn from."""
  if not isinstance(values, list | tuple) or not all(
    isinstance(text, str) and text.strip() for text in values
  ):
    raise UserError(
      f"{name}: expected 'answers' as a list of texts that aren't empty, found"
      f" {values!s:.80}"
    )
  return tuple(values)


def _box(values: Any, name: str) -> Box:
  try:
    x0, y0, x1, y1 = map(float, values)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{name}: expected 'region' as four numbers x0, y0, x1, y1, found"
      f" {values!s:.80}"
    ) from error
  return x0, y0, x1, y1


def _last_text(messages: Sequence[dict]) -> str:
  content = messages[-1]["content"]
  if isinstance(content, str):
    return content
  return " ".join(p["text"] for p in content if p.get("type") == "text")
