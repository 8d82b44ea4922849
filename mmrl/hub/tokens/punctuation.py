"""Tokens that are punctuation, by a tokenizer."""

from collections.abc import Callable
import dataclasses
from typing import Any

from mmrl.errors import UserError
from mmrl.models.config import ModelConfig

# Characters of each kind of punctuation.
MARKS = {
  "en": ".,;:!?",
  "en+zh": ".,;:!?。，；：！？、",
}


def is_punctuation(text: str, marks: str) -> bool:
  """Tells whether a token's text is punctuation, white space left out.

  Every character must be one of `marks`: "?!" is, "a." isn't, and neither is
  white space alone.
  """
  text = text.strip()
  return bool(text) and set(text) <= set(marks)


def token_ids(
  decode: Callable[[list[int]], str], size: int, kind: str
) -> tuple[int, ...]:
  """Finds the tokens that are punctuation.

  Args:
    decode: turns ids into text.
    size: entries of the tokenizer.
    kind: key of `MARKS`.

  Raises:
    UserError: if there is none.

  Reference: arXiv 2601.02819, whose list of punctuation isn't known.
  Reconstructed: the marks, and tokens of several characters.
  """
  marks = MARKS[kind]
  found = tuple(i for i in range(size) if is_punctuation(decode([i]), marks))
  if not found:
    raise UserError(
      f"expected a tokenizer with tokens of {' '.join(marks)}, of which"
      f" punctuation_sparse pools keys, found none among its {size:,}; choose"
      " other marks or other attention"
    )
  return found


def with_punctuation(config: ModelConfig, tokenizer: Any) -> ModelConfig:
  """Adds to sparse attention that reads punctuation which tokens that is.

  Raises:
    UserError: see `token_ids`.
  """
  sparse = config.sparse
  if sparse is None or not sparse.marks:
    return config
  ids = token_ids(tokenizer.decode, len(tokenizer), sparse.marks)
  sparse = dataclasses.replace(sparse, punctuation=ids)
  return dataclasses.replace(config, sparse=sparse)
