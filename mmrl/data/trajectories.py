"""Answers that stronger models wrote to the questions of a source."""

from collections.abc import Iterable, Sequence
import sys
from typing import Any, NamedTuple

from jaxtyping import Bool, Int
import numpy as np

from mmrl import storage
from mmrl.data import lines, texts
from mmrl.data.example import Example
from mmrl.errors import UserError
from mmrl.models.passes import segments
from mmrl.prompts.processor import Processor


class Rows(NamedTuple):
  """Expert answers to a batch of questions, with equally many rows each.

  Attributes:
    tokens: ids, the pad id after the end.
    mask: True on answer tokens, the closing end of sequence included; False
      throughout where there is no trajectory.
    texts: texts that were tokenised; None where there is no trajectory.
  """

  tokens: Int[np.ndarray, "P experts R"]
  mask: Bool[np.ndarray, "P experts R"]
  texts: list[list[str | None]]


class Trajectories:
  """A JSON Lines file (local, or gs://) of expert trajectories.

  Each line is an object with `name`, that of a question (`Example.name`), and
  `text`, a whole answer to it in the form in which the policy is asked to
  answer. A question may have several lines or none. The text is tokenised by
  the policy's tokenizer and closed like a sampled answer.

  Trajectories of more than `length` tokens are left out, and of the others of
  a question those after the first `count`; both are counted.

  Attributes:
    trajectories: number of those kept.
    questions: number of questions that have one.
    too_long: number of those left out for their length.
    surplus: number of those left out for their number.
  """

  def __init__(
    self,
    path: storage.Name,
    *,
    known: Iterable[str],
    processor: Processor,
    length: int,
    count: int,
  ):
    """Reads, checks and tokenises every line.

    Args:
      path: the file.
      known: names of the questions; see `names` of the sources.
      processor: the policy's.
      length: R, at least 1; the end of sequence counts.
      count: rows of each question, at least 1.

    Raises:
      UserError: naming file and line of what is wrong, or if no trajectory
        fits.
    """
    if min(length, count) < 1:
      raise UserError(
        "expected at least 1 token and 1 expert per question, found"
        f" {length} and {count}"
      )
    known = frozenset(known)
    self._config, self._length, self._count = processor.config, length, count
    self._kept: dict[str, list[tuple[str, Sequence[int]]]] = {}
    self.too_long = self.surplus = 0

    def tokenised(row: Any, where: str) -> tuple[str, str, Sequence[int]]:
      name, text = _checked(row, known, where)
      return name, text, processor.encode_text(text, sys.maxsize, where)

    what = "a readable file of expert trajectories"
    for trajectory in texts.each(path, what, tokenised):
      self._add(*trajectory)
    self.questions = len(self._kept)
    self.trajectories = sum(map(len, self._kept.values()))
    if not self.trajectories:
      raise UserError(
        f"expected at least one trajectory of at most {length} tokens in"
        f" {path}, found none and {self.too_long} longer ones; raise the answer"
        " length or shorten them"
      )

  def __str__(self) -> str:
    return (
      f"{self.trajectories} expert trajectories of {self.questions} questions;"
      f" left out: {self.too_long} of more than {self._length} tokens,"
      f" {self.surplus} beyond {self._count} per question"
    )

  def _add(self, name: str, text: str, ids: Sequence[int]) -> None:
    if len(ids) > self._length:
      self.too_long += 1
    elif len(self._kept.get(name, ())) == self._count:
      self.surplus += 1
    else:
      self._kept.setdefault(name, []).append((text, ids))

  def rows(self, examples: Sequence[Example]) -> Rows:
    """Returns a batch of questions' expert rows, in the order of the file."""
    shape = len(examples), self._count, self._length
    tokens = np.full(shape, self._config.pad_token_id, np.int32)
    mask = np.zeros(shape, bool)
    texts: list[list[str | None]] = [[None] * self._count for _ in examples]
    for p, example in enumerate(examples):
      for k, (text, ids) in enumerate(self._kept.get(example.name, ())):
        tokens[p, k, : len(ids)] = ids
        mask[p, k, : len(ids)] = True
        texts[p][k] = text
    if self._config.latent:
      mask &= np.asarray(segments.chosen(tokens, self._config.latent))
    return Rows(tokens, mask, texts)


def _checked(row: Any, known: frozenset[str], where: str) -> tuple[str, str]:
  """Returns name and text of a row."""
  if not isinstance(row, dict) or not all(
    isinstance(row.get(key), str) for key in ("name", "text")
  ):
    raise UserError(
      f"{where}: expected an object with strings 'name' and 'text', found"
      f" {row!r:.80}"
    )
  if len(row) > 2:
    try:
      lines.check_keys(row, ("name", "text"), "a trajectory")
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
  name, text = row["name"], row["text"]
  if name not in known:
    raise UserError(
      f"{where}: expected the name of a question, such as"
      f" {min(known, default='')!r}, found {name!r:.80}; write the names of the"
      " training questions or leave the line out"
    )
  if not text.strip():
    raise UserError(
      f"{where}: expected a trajectory, found empty text; leave the line out"
    )
  return name, text
