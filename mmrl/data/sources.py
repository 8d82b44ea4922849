"""Sources of questions: random access to `Example`s.

A source has `__len__` and `__getitem__`, and reads a picture only when its
example is asked for. One that reads data files names them (`FromFiles`).
"""

from collections.abc import Iterator, Mapping, Sequence
import pathlib
import sys
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from mmrl import build, errors, python_files
from mmrl.data.causal_halbench import CausalHalBench
from mmrl.data.example import Example, ask, check_prompt
from mmrl.data.files import Files
from mmrl.data.hd_epic import HdEpic
from mmrl.data.worlds import Counterfactuals, Figures, Kitchens, Scenes
from mmrl.errors import UserError, not_installed
from mmrl.types import Box

# What `config.data` and benchmarks may name.
__all__ = [
  "CausalHalBench",
  "Counterfactuals",
  "EasyVQA",
  "Figures",
  "Files",
  "HdEpic",
  "Kitchens",
  "Scenes",
]
# What a run calls of a source: number, an example, (question, answer) of all.
_READ = ("__len__", "__getitem__", "pairs")


@runtime_checkable
class FromFiles(Protocol):
  """Questions that are read from data files.

  Attributes:
    paths: the files, local or gs://.
  """

  paths: Sequence[str]


def paths_of(source: Any) -> Sequence[str]:
  """Returns the data files that a source names; none if it has none."""
  return source.paths if isinstance(source, FromFiles) else ()


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


def make(spec: Mapping[str, Any], where: str) -> Any:
  """Makes the source of a spec, one of this module or of a user's file.

  Args:
    spec: "name" and options.
    where: the config field, for errors.

  Raises:
    UserError: if it can't be made, or one of a file lacks what a run reads.
  """
  source = build.construct(sys.modules[__name__], spec, where)
  if file := build.file_of(spec["name"]):
    lacking = [name for name in _READ if not hasattr(source, name)]
    if lacking:
      raise UserError(
        f"{where}: expected {spec['name']} to have {', '.join(_READ)}, found no"
        f" {', '.join(lacking)}"
      )
    with errors.of_field(where), python_files.mistakes(file):
      first = source[0] if len(source) else None
    if first is not None and not isinstance(first, Example):
      raise UserError(
        f"{where}: expected {spec['name']} to hold mmrl.data.Example, found"
        f" {type(first).__name__}"
      )
  return source


class EasyVQA:
  """easy-VQA: real published pictures of one shape, 13 exact answers.

  4,000 + 1,000 pictures and 38,575 + 9,673 questions, from the PyPI package
  `easy-vqa`. The object's box is the region of every picture.

  Attributes:
    rows: (question, answer, picture) of every example.
    pictures: file of each picture.
    paths: the data file of its questions.
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
      raise not_installed("the package easy-vqa", "examples") from error
    if split not in ("train", "test"):
      raise UserError(f"expected split 'train' or 'test', found {split!r}")
    questions = getattr(easy_vqa, f"get_{split}_questions")()
    self.rows = list(zip(*questions, strict=True))
    self.pictures = getattr(easy_vqa, f"get_{split}_image_paths")()
    folder = pathlib.Path(easy_vqa.__file__).parent / "data" / split
    self.paths = [str(folder / "questions.json")]
    check_prompt(prompt)
    self._split, self._prompt = split, prompt

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    question, answer, picture = self.rows[index]
    with Image.open(self.pictures[picture]) as image:
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
