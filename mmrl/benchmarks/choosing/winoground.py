"""Winoground: two pictures, two captions of the same words, which is which.

Reference: arXiv 2204.03162. There a model scores pairs of picture and caption;
here it is asked, so that each of the paper's two comparisons within a score is
one question with two choices.
"""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from mmrl import data as data_lib
from mmrl import errors, storage
from mmrl.benchmarks.chosen import check_count
from mmrl.benchmarks.contract import Answer, Values, by_kind, means
from mmrl.data import Example, lines, texts
from mmrl.data.example import ask, check_prompt
from mmrl.data.media import Media
from mmrl.errors import UserError
from mmrl.rewards.answer import extract
from mmrl.rewards.choices import letter

NEEDED = ("image_0", "image_1", "caption_0", "caption_1")
UNUSED = ("id", "tag", "secondary_tag", "num_main_preds")
_KIND = "collapsed_tag"
_CAPTIONS = "Which caption fits the picture?\nA. {0}\nB. {1}"
_PICTURES = "Which picture fits the caption: {0}\nA. the first\nB. the second"


class Winoground:
  """Four questions an item: of each picture, then of each caption.

  Attributes:
    paths: the file.
  """

  def __init__(self, rows: Sequence[dict[str, Any]], path: str, prompt: str):
    """Takes checked rows, whose pictures are message parts."""
    self._rows, self._prompt = rows, prompt
    self.paths = [path]

  def __len__(self) -> int:
    return 4 * len(self._rows)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"question {index} of {len(self)}")
    at, which = divmod(index, 4)
    row = self._rows[at]
    shown = [row["image_0"], row["image_1"]]
    captions = row["caption_0"], row["caption_1"]
    if which < 2:
      question, shown = _CAPTIONS.format(*captions), [shown[which]]
    else:
      question = _PICTURES.format(captions[which - 2])
    return Example(
      name=f"{row['name']}, {('picture', 'caption')[which // 2]} {which % 2}",
      question=question,
      messages=ask(question, self._prompt, shown),
      answer="AB"[which % 2],
      kind=row.get(_KIND, "all"),
    )

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Tells of each item what is right: see `winoground`."""
    said = [_said(answer.text) for answer in answers]
    return self._values(said, examples)

  summarise = staticmethod(means)

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Grades the same letter to all: never right about both of two."""
    del train
    return self._values(["A"] * len(examples), examples)

  def _values(
    self, said: Sequence[str | None], examples: Sequence[Example]
  ) -> Values:
    right = np.array(
      [one == e.answer for one, e in zip(said, examples, strict=True)], float
    ).reshape(-1, 4)
    text, image = right[:, :2].min(-1), right[:, 2:].min(-1)
    found = {
      "group": text * image,
      "text": text,
      "image": image,
      "accuracy": right.mean(-1),
    }
    return by_kind(found, [example.kind for example in examples[::4]])


def _said(text: str) -> str | None:
  found = extract(text)
  return letter(text.rpartition("</think>")[2] if found is None else found)


def winoground(
  *,
  path: str,
  media: str | None = None,
  prompt: str = "{question}",
  items: int = 0,
  field: str,
) -> Winoground:
  """Builds Winoground from its `examples.jsonl`.

  Numbers: `text`, the share of items where the right caption is chosen for both
  pictures; `image`, where the right picture is for both captions; `group`,
  where all four are right; `accuracy`, the share of right choices. Guesses get
  1/4, 1/4, 1/16 and 1/2. Parts are by `collapsed_tag`.

  Args:
    path: JSON Lines with image_0, image_1, caption_0 and caption_1; a picture
      is a file's name, ".png" where it has no ending, as the released file has
      it.
    media: folder of the pictures; `images` beside the file if None.
    prompt: text of the user's turn, with "{question}" in it.
    items: how many, spread evenly over the file; 0 for all.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config, or file and line of what is
      wrong.
  """
  check_count(items, "items", f"{field}.items")
  with errors.of_field(field):
    check_prompt(prompt)
    folder = storage.path(
      media or os.path.join(os.path.dirname(path), "images")
    )
    shown = Media(folder)
    rows = texts.each(path, "Winoground", lambda raw, at: _row(raw, at, shown))
    if not rows:
      raise UserError(f"expected at least one item in {path}, found none")
  chosen = data_lib.spread(len(rows), items or len(rows))
  return Winoground([rows[i] for i in chosen], path, prompt)


def _row(raw: Any, name: str, media: Media) -> dict[str, Any]:
  """Checks a row; its pictures become message parts."""
  if not isinstance(raw, dict):
    raise UserError(f"{name}: expected an object, found {raw!r:.80}")
  try:
    lines.check_keys(raw, (*NEEDED, _KIND, *UNUSED), "an item of Winoground")
    for key in (*NEEDED, *([_KIND] if _KIND in raw else [])):
      if not isinstance(raw.get(key), str) or not raw[key].strip():
        raise UserError(
          f"expected {key!r} as text that isn't empty, found"
          f" {raw.get(key)!r:.80}"
        )
    found: dict[str, Any] = dict(raw) | {"name": name}
    for key in NEEDED[:2]:
      file = raw[key] if os.path.splitext(raw[key])[1] else f"{raw[key]}.png"
      found[key] = media.part("image", file)
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  return found
