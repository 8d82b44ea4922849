"""The source HdEpic: multiple choice about videos of kitchens."""

from collections.abc import Iterator, Mapping, Sequence
import os
import sys
from typing import Any

from mmrl import json_files, storage
from mmrl.chains import parsing, writing
from mmrl.data import lines
from mmrl.data.example import Example, ask, check_prompt
from mmrl.data.hd_epic import facts as facts_lib
from mmrl.data.hd_epic.annotations import Annotations
from mmrl.data.media import Media
from mmrl.errors import UserError
from mmrl.worlds.items import Asked

_PREFIXES = ("3d_perception_", "object_motion_")
_ENTRY = ("inputs", "question", "choices", "correct_idx", "metadata")
_CHOICES = 5


class HdEpic:
  """Questions of HD-EPIC's `vqa-benchmark`, of the kinds of `chains.writing`.

  The answer is the letter of the right choice, and a question is followed by a
  line for each. `extra` has "choices", "asked" (`mmrl.worlds.items`), and those
  of `chains.writing.FACTS` that are known: of question and right choice; of
  annotations, where their folder is given; of the key "metadata" of an entry,
  which files of `mmrl.worlds` have and which comes first.

  A picture in `inputs` is a frame of the video, and isn't shown apart.

  Attributes:
    paths: the files.
  """

  def __init__(
    self,
    path: str,
    *,
    media: str,
    annotations: str | None = None,
    thoughts: bool = False,
    prompt: str = "{question}",
  ):
    """Reads and checks every question; videos are opened later.

    Args:
      path: a file such as `3d_perception_fixture_location.json`, or a folder
        with such files; those of other kinds in it are left out.
      media: folder of the videos, `ID.mp4` or, as downloaded, `P01/ID.mp4`.
      annotations: folder with `assoc_info.json` and `mask_info.json`, or, as
        first published, `frame_info.json`.
      thoughts: whether there are texts to learn from, chains written from
        facts; questions whose facts don't tell all of one are left out, and
        counted on stderr.
      prompt: text of the user's turn, with "{question}" in it.

    Raises:
      UserError: naming file and entry of what is wrong first.
    """
    check_prompt(prompt)
    self._prompt, self._thoughts = prompt, thoughts
    self._media, self._folder = Media(storage.path(media)), media
    known = Annotations(annotations) if annotations else None
    self.paths: Sequence[str] = _paths(path)
    self._examples: list[Example] = []
    left = 0
    for file in self.paths:
      kind = _kind(os.path.basename(file))
      assert kind is not None
      for key, entry in json_files.optional(file).items():
        name = f"{file}[{key}]"
        try:
          example = self._example(name, kind, entry, known)
        except UserError as error:
          raise UserError(f"{name}: {error}") from error
        if thoughts and writing.lacking(kind, example.extra):
          left += 1
        else:
          self._examples.append(example)
    self._say(path, left)

  def _say(self, path: str, left: int) -> None:
    """Says how much is known of the questions."""
    if not self._examples:
      more = f" whose chain can be written; {left} lack facts" if left else ""
      raise UserError(f"expected questions in {path}{more}, found none")
    timed = sum("windows" in one.extra for one in self._examples)
    said = f"{path}: {len(self):,} questions, times are known of {timed:,}"
    if left:
      said += (
        f"; {left:,} are left out, as their facts don't tell a whole chain"
      )
    print(said, file=sys.stderr)

  def _example(
    self, name: str, kind: str, entry: Any, known: Annotations | None
  ) -> Example:
    question, choices, right = _checked(entry)
    video = _video(entry["inputs"])
    facts = facts_lib.READ[kind](question, choices[right])
    if known:
      facts |= known.facts(kind, video, question, choices[right])
    facts = _joined(facts, _metadata(entry.get("metadata", {})))
    letter = "ABCDE"[right]
    text = "\n".join(
      [question, *(f"{a}. {b}" for a, b in zip("ABCDE", choices, strict=True))]
    )
    part = self._media.part("video", self._file(video))
    chance = 1 / len(choices)
    answers: tuple[str, ...] = ()
    if self._thoughts and not writing.lacking(kind, facts):
      answers = (writing.render_chain(kind, facts, letter),)
    return Example(
      name=name,
      question=text,
      messages=ask(text, self._prompt, [part]),
      answer=letter,
      kind=kind,
      answers=answers,
      extra={
        "choices": choices,
        # Places and times make every text another: what is asked is the kind.
        "asked": Asked(kind, kind, choices[right], choices, chance),
        **facts,
      },
    )

  def _file(self, video: str) -> str:
    """Returns where a video is: with others, or in its kitchen's folder."""
    nested = f"{video.partition('-')[0]}/{video}.mp4"
    there = (storage.path(self._folder) / nested).exists()
    return nested if there else f"{video}.mp4"

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def pairs(self) -> Iterator[tuple[str, str | None]]:
    """Yields (question, letter of the right choice) of every example."""
    return ((one.question, one.answer) for one in self._examples)

  def names(self) -> Iterator[str]:
    """Yields the name of every example: file and entry."""
    return (one.name for one in self._examples)

  def given(self) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields name and texts to learn from of every example."""
    return ((one.name, one.answers) for one in self._examples)

  def extras(self) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields name and names in `extra` of every example."""
    return ((one.name, list(one.extra)) for one in self._examples)

  def asked(self) -> Iterator[Asked]:
    """Yields every question as one sees it who can't see the video."""
    return (one.extra["asked"] for one in self._examples)


def _kind(name: str) -> str | None:
  """Returns the kind of questions that a file's name tells; None of others."""
  stem = name.removesuffix(".json")
  for prefix in _PREFIXES:
    stem = stem.removeprefix(prefix)
  return stem if stem in writing.TEMPLATES and name.endswith(".json") else None


def _paths(path: str) -> list[str]:
  """Lists the files that a path names."""
  root = storage.path(path)
  if storage.is_dir(path):
    names = sorted(name for name in storage.names(path) if _kind(name))
    if names:
      return [os.fspath(root / name) for name in names]
  elif root.exists() and _kind(root.name):
    return [os.fspath(root)]
  raise UserError(
    "path: expected a file of HD-EPIC's vqa-benchmark such as"
    f" 3d_perception_fixture_location.json, or a folder of them, of the kinds"
    f" {', '.join(writing.TEMPLATES)}, found none at {path}"
  )


def _checked(entry: Any) -> tuple[str, tuple[str, ...], int]:
  """Checks an entry; returns question, choices, and index of the right one."""
  if not isinstance(entry, dict):
    raise UserError(f"expected an object, found {entry!r:.80}")
  lines.check_keys(entry, _ENTRY, "an entry")
  question, choices = entry.get("question"), entry.get("choices")
  if not isinstance(question, str) or not question.strip():
    raise UserError(f"expected a question as text, found {question!r:.80}")
  if (
    not isinstance(choices, list)
    or not all(isinstance(text, str) and text.strip() for text in choices)
    or len({*choices}) != _CHOICES
    or len(choices) != _CHOICES
  ):
    raise UserError(
      f"expected {_CHOICES} different choices, A to E, found {choices!r:.120}"
    )
  right = entry.get("correct_idx")
  if type(right) is not int or not 0 <= right < _CHOICES:
    raise UserError(
      f"expected 'correct_idx' from 0 to {_CHOICES - 1}, found {right!r:.80}"
    )
  for text in (question, *choices):
    lines.check_text(text)
    tag = parsing.unreadable_time(text)
    if tag:
      raise UserError(
        "expected times such as <TIME 00:03:1.8 video 1>, found"
        f" {tag!r:.80}; mend it, or leave the entry out"
      )
  return question, tuple(choices), right


def _video(inputs: Any) -> str:
  """Returns the id of the one video that a question is about."""
  found = inputs if isinstance(inputs, dict) else {}
  ids = [
    one.get("id") if isinstance(one, dict) and {*one} <= {"id", "time"} else one
    for one in found.values()
  ]
  names = {one for one in ids if isinstance(one, str) and one}
  if (
    "video 1" not in found
    or len(names) != 1
    or len(names | {*map(str, ids)}) > 1
  ):
    raise UserError(
      "expected 'inputs' with one whole video and frames of it, found"
      f" {inputs!r:.120}"
    )
  return names.pop()


def _joined(read: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
  """Joins facts of question, choice and annotations with those of 'metadata'.

  Raises:
    UserError: where they contradict each other.
  """
  for name in ("count", "clock", "threshold"):
    if name in read and read[name] != said.get(name, read[name]):
      raise UserError(
        f"expected {name!r} in 'metadata' as question and right choice have it,"
        f" {read[name]}, found {said[name]}"
      )
  found = dict(read) | dict(said)
  windows, moves = found.get("windows"), found.get("moves")
  if windows is not None and moves is not None and len(windows) != len(moves):
    raise UserError(
      "expected as many 'windows' as 'moves', found"
      f" {len(windows)} and {len(moves)}"
    )
  return found


def _metadata(raw: Any) -> Mapping[str, Any]:
  """Checks what an entry says to rewards; see `chains.writing.FACTS`."""
  if not isinstance(raw, dict):
    raise UserError(f"expected 'metadata' as an object, found {raw!r:.80}")
  lines.check_keys(raw, writing.FACTS, "'metadata'")
  for name, value in raw.items():
    if not _fits(name, value):
      raise UserError(
        f"expected {name!r} in 'metadata' as {writing.FACTS[name]}, found"
        f" {value!r:.80}"
      )
  return raw


def _fits(name: str, value: Any) -> bool:
  """Tells whether a fact is of its kind."""

  def pair(one: Any, kind: Any) -> bool:
    return (
      isinstance(one, list | tuple)
      and len(one) == 2
      and all(isinstance(x, kind) and not isinstance(x, bool) for x in one)
    )

  def each(one: Any, fits: Any) -> bool:
    return isinstance(one, list | tuple) and all(map(fits, one))

  number = (int, float)
  if name == "names":
    return each(value, lambda x: isinstance(x, str))
  if name == "windows":
    return each(value, lambda x: pair(x, number) and x[0] <= x[1])
  if name == "moves":
    return each(value, lambda x: pair(x, str))
  if name == "rest":
    return pair(value, number) and value[0] <= value[1]
  if name in ("words", "fixture"):
    return isinstance(value, str) and bool(value.strip())
  if type(value) not in number:
    return False
  if name == "threshold":
    return value > 0
  return type(value) is int and (
    value >= 0 if name == "count" else 1 <= value <= 12
  )
