"""Wrappers that draw nothing anew: tokens between tags, questions in pairs."""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from jaxtyping import Bool
import numpy as np

from mmrl.errors import UserError
from mmrl.rollouts.source import Request, Setup, Source, Wrapper


class Tagged(Wrapper):
  """Adds the field `tagged` to the answers of another source."""

  def __init__(self, setup: Setup, inner: Source, tag: str):
    super().__init__(inner)
    self._setup, self._tag, self._processor = setup, tag, None
    self.fields = (*inner.fields, "tagged")

  def open(self, questions, processor):
    super().open(questions, processor)
    self._processor = processor

  def calls(self, state, prompt, key, held=None):
    batch = yield from self._inner.calls(state, prompt, key, held)
    tagged = self._setup.shape(*batch.tokens.shape, dtype=bool)
    return batch.with_fields(tagged=tagged)

  def collect(self, request: Request):
    assert self._processor is not None, "open comes first"
    answers, values = self._inner.collect(request)
    ids, index = np.unique(answers.tokens, return_inverse=True)
    pieces = self._processor.tokenizer.batch_decode(
      ids[:, None].tolist(), clean_up_tokenization_spaces=False
    )
    found = np.zeros(answers.mask.shape, bool)
    index = index.reshape(answers.tokens.shape)
    for place in np.ndindex(answers.mask.shape[:2]):
      count = int(answers.mask[place].sum())
      texts = [pieces[i] for i in index[place][:count]]
      found[(*place, slice(count))] = between(texts, self._tag)
    tagged = self._setup.layout.put(found)
    batch = answers.batch.with_fields(tagged=tagged)
    return dataclasses.replace(answers, batch=batch), values


def tagged(setup: Setup, *, of: Mapping[str, Any], tag: str) -> Source:
  """Marks the tokens of each answer that stand between `<tag>` and `</tag>`.

  It is the outermost of wrappers.

  Args:
    setup: of the run.
    of: spec of where answers come from.
    tag: its name, of letters, such as "back".

  Raises:
    UserError: if the tag has other characters than letters.
  """
  if not re.fullmatch("[A-Za-z]+", tag):
    raise UserError(f"tag: expected a name of letters, found {tag!r}")
  return Tagged(setup, setup.inner(of, "config.rollout.of"), tag)


def between(pieces: Sequence[str], tag: str) -> Bool[np.ndarray, "R"]:
  """Marks the tokens that stand whole between a tag and its end.

  The tags are found in the joined text, as tokenizers cut them differently. A
  tag that is never closed marks nothing.

  Args:
    pieces: text of each token.
    tag: its name.
  """
  ends = np.cumsum([len(piece) for piece in pieces], dtype=int)
  starts = ends - np.array([len(piece) for piece in pieces], int)
  found = np.zeros(len(pieces), bool)
  for one in re.finditer(f"<{tag}>(.*?)</{tag}>", "".join(pieces), re.DOTALL):
    first, last = one.span(1)
    found |= (starts >= first) & (ends <= last) & (ends > starts)
  return found


class Paired(Wrapper):
  """Asks each question's partner after it."""

  def __init__(self, setup: Setup, inner: Source):
    super().__init__(inner)
    del setup
    self.together = 2

  def open(self, questions, processor):
    super().open(questions, processor)
    first = questions[0]
    if first.partner is None:
      raise UserError(
        f"config.rollout: expected data with pairs of questions, found none to"
        f" {first.name}; take a source that has them, such as Figures with"
        " pairs=True, or take 'paired' out"
      )


def paired(setup: Setup, *, of: Mapping[str, Any]) -> Source:
  """Asks about both of a pair, one after the other: P prompts are P / 2 pairs.

  Each is a group of its own; a reward may read both. It is the outermost of
  wrappers, and holds none that draws groups again.

  Args:
    setup: of the run.
    of: spec of where answers come from.

  Raises:
    UserError: if P isn't even, or single groups are drawn again.
  """
  if setup.prompts % 2:
    raise UserError(
      "config.rollout.prompts: expected an even number, two for each pair,"
      f" found {setup.prompts}"
    )
  inner = setup.inner(of, "config.rollout.of")
  if inner.draws or inner.together != 1:
    raise UserError(
      "config.rollout.of: expected answers to single questions that are drawn"
      f" once, found {of.get('name')!r}; pairs would be torn apart"
    )
  return Paired(setup, inner)
