"""Spans of an answer by kind: reasoning, answer, and what is neither."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Int
import numpy as np

PADDING, REASONING, ANSWER, OTHER = range(4)


def find_spans(text: str) -> list[tuple[int, int, int]]:
  """Finds the blocks of a text as (kind, first character, one past the last).

  REASONING is up to the last `</think>`, from the first `<think>` before it,
  or from the beginning without one; without `</think>`, from `<think>` to the
  end. ANSWER, which comes later in the list and may lie in a thought that isn't
  closed, is the block that rewards read: the last closed one after the last
  `</think>`. Both hold their tags.
  """
  spans, end = [], 0
  close = text.rfind("</think>")
  if close >= 0:
    end = close + len("</think>")
    spans.append((REASONING, max(text.find("<think>", 0, close), 0), end))
  elif "<think>" in text:
    spans.append((REASONING, text.find("<think>"), len(text)))
  last = len(text)
  while (close := text.rfind("</answer>", end, last)) >= 0:
    previous = text.rfind("</answer>", end, close)
    start = text.rfind("<answer>", max(previous, end), close)
    if start >= 0:
      spans.append((ANSWER, start, close + len("</answer>")))
      break
    last = close
  return spans


def token_spans(
  tokens: Int[np.ndarray, "P G R"],
  mask: Bool[np.ndarray, "P G R"],
  tokenizer: Any,
  ends: Bool[np.ndarray, "P G R"],
) -> Int[np.ndarray, "P G R"]:
  """Finds the kind of each token of answers, given or sampled.

  Tokens have the places of their own texts, put one after the other; a
  character that several tokens share stands for one character of each. A token
  with characters of several kinds is ANSWER before REASONING before OTHER. An
  end of sequence is of the kind of the token before it.

  Args:
    tokens: ids of the answers.
    mask: True on answer tokens.
    tokenizer: a fast Transformers tokenizer.
    ends: True on ends of sequence.

  Returns:
    int8: PADDING, REASONING, ANSWER or OTHER.
  """
  ids, index = np.unique(tokens, return_inverse=True)
  pieces = tokenizer.batch_decode(ids[:, None], skip_special_tokens=False)
  index = index.reshape(tokens.shape)
  found = np.where(mask, OTHER, PADDING).astype(np.int8)
  for place in np.ndindex(tokens.shape[:2]):
    here = np.flatnonzero(mask[place] & ~ends[place])
    texts = [pieces[i] for i in index[place][here]]
    found[place][here] = _kinds(texts)
    for end in np.flatnonzero(mask[place] & ends[place]):
      if end and mask[place][end - 1]:
        found[place][end] = found[place][end - 1]
  return found


def _kinds(texts: Sequence[str]) -> np.ndarray:
  """Finds the kind of each piece of a text."""
  stops = np.cumsum([len(text) for text in texts], dtype=int)
  starts = stops - [len(text) for text in texts]
  kinds = np.full(len(texts), OTHER, np.int8)
  for kind, start, stop in find_spans("".join(texts)):
    kinds[(starts < stop) & (stops > start)] = kind
  return kinds
