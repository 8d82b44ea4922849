"""Descriptions of pictures, scored by the objects that they name."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

from mmrl import build
from mmrl import data as data_lib
from mmrl.benchmarks.chosen import Chosen, check_count
from mmrl.benchmarks.contract import Answer, Values
from mmrl.data import Example
from mmrl.errors import UserError


def counts(
  mentioned: Bool[np.ndarray, "N O"], present: Bool[np.ndarray, "N O"]
) -> dict[str, Float[np.ndarray, "N"]]:
  """Counts objects of each response, of which one counts once.

  Args:
    mentioned: whether a response names an object.
    present: whether its picture has it.

  Returns:
    `false` and `named`: objects named that aren't there, and all named; `right`
    and `there`: those named that are, and all that are.
  """
  found = {
    "false": mentioned & ~present,
    "named": mentioned,
    "right": mentioned & present,
    "there": present,
  }
  return {name: x.sum(-1).astype(float) for name, x in found.items()}


def rates(values: Values) -> dict[str, np.ndarray]:
  """Computes shares over all responses from their counts; 0 of nothing.

      response = #(responses that name an absent object) / #(that name any)
      mention  = #(absent objects named) / #(objects named)
      recall   = #(present objects named) / #(objects present)

  The first two are Object HalBench's, lower is better; the third tells a model
  that names nothing from one that errs about nothing.

  Reference: RLHF-V, arXiv 2312.00849, section 4.1; CHAIR, arXiv 1809.02156.
  """
  false, named = values["false"], values["named"]

  def share(part, whole):
    part, whole = part.sum(-1), whole.sum(-1)
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)

  return {
    "response": share((false > 0).astype(float), (named > 0).astype(float)),
    "mention": share(false, named),
    "recall": share(values["right"], values["there"]),
  }


class Objects(Chosen):
  """Questions that are items of their own, answered by descriptions."""

  summarise = staticmethod(rates)

  def __init__(
    self,
    source: Any,
    indices: Sequence[int],
    objects: Mapping[str, Sequence[str]],
  ):
    """Chooses questions of a source.

    Args:
      source: of `mmrl.data`; right answers name all that is in the picture.
      indices: of the questions that are asked.
      objects: the words for each object.
    """
    super().__init__(source, indices)
    self._patterns = [
      re.compile(
        rf"\b(?:{'|'.join(map(re.escape, words))})(?:e?s)?\b", re.IGNORECASE
      )
      for words in objects.values()
    ]

  def grade(
    self, answers: Sequence[Answer], examples: Sequence[Example]
  ) -> Values:
    """Counts the objects that each answer names; see `counts`."""
    mentioned = self._named([answer.text for answer in answers])
    present = self._named([" ; ".join(e.right) for e in examples])
    return counts(mentioned, present)

  def baseline(self, train: Any, examples: Sequence[Example]) -> Values:
    """Returns nothing: there is no usual description of a picture unseen."""
    del train, examples
    return {}

  def _named(self, texts: Sequence[str]) -> Bool[np.ndarray, "N O"]:
    found = [[bool(p.search(text)) for p in self._patterns] for text in texts]
    return np.array(found, bool).reshape(len(texts), len(self._patterns))


def objects(
  *,
  data: Mapping[str, Any],
  objects: Sequence[str] | Mapping[str, Sequence[str]],
  questions: int = 0,
  field: str,
) -> Objects:
  """Builds a benchmark of what descriptions name that isn't there.

  Args:
    data: spec of `mmrl.data.sources`; the right answers to a question name all
      objects of its picture, or list them.
    objects: their names, or the words for each, synonyms; plurals in -s and -es
      are found as well.
    questions: how many, spread evenly over the source; 0 for all.
    field: the field of the config, for errors.

  Raises:
    UserError: naming the field of the config that is wrong, or a question
      without a right answer.
  """
  words = objects if isinstance(objects, Mapping) else {x: [x] for x in objects}
  if not words or not all(words.values()):
    raise UserError(
      f"{field}.objects: expected names of objects, or words for each, found"
      f" {dict(words) if words else 'none'}"
    )
  check_count(questions, "questions", f"{field}.questions")
  source = build.construct(data_lib.sources, data, f"{field}.data")
  pairs = source.pairs() if hasattr(source, "pairs") else ()
  for number, (_, right) in enumerate(pairs, 1):
    if right is None:
      raise UserError(
        f"{field}.data: expected the objects of each picture in 'answer', found"
        f" none in question {number}"
      )
  indices = data_lib.spread(len(source), questions or len(source))
  return Objects(source, indices, words)
