"""Texts with the right answer in the place of the one that was written."""

from collections.abc import Sequence

from jaxtyping import Bool, Int
import numpy as np

from mmrl.prompts.processor import Processor
from mmrl.rewards import answer as answer_lib

_BLOCKS = (("<answer>", "</answer>"), ("\\boxed{", "}"))


def before_answer(text: str) -> tuple[str, str] | None:
  """Finds where the answer of a text begins.

  Behind the last opening of a block, `<answer>` or `\\boxed{`, after the
  thought that the last `</think>` ends; without such a block, behind the
  thought. A text without a thought and a block is all answer.

  Returns:
    (the text up to there, what closes the block); None if a thought isn't
    closed, so that no answer has begun.
  """
  thought, tag, after = text.rpartition("</think>")
  for opening, closing in _BLOCKS:
    head, found, _ = after.rpartition(opening)
    if found:
      return thought + tag + head + opening, closing
  if not tag and "<think>" in text:
    return None
  return thought + tag, ""


def with_right(
  texts: Sequence[Sequence[str]],
  rights: Sequence[str | None],
  processor: Processor,
) -> tuple[Int[np.ndarray, "P G R"], Bool[np.ndarray, "P G R"]]:
  """Tokenises texts whose answer is replaced by the right one.

  The text before the answer is tokenised anew, by itself: the right answer
  begins with a token of its own. What closes its block and the end of sequence
  follow it.

  Args:
    texts: P lists of G.
    rights: the right answer of each question, bare or in a block of its own;
      None where there is none.
    processor: of both models.

  Returns:
    (tokens, True from the right answer on). R is a power of two, so that few
    shapes occur. A text that has no answer, or whose question has no right one,
    has no such token.
  """
  rows: list[tuple[list[int], int]] = []
  for group, right in zip(texts, rights, strict=True):
    for text in group:
      place = before_answer(text)
      if place is None or right is None:
        rows.append(([], 0))
        continue
      head, closing = place
      encode = processor.tokenizer.encode
      before = encode(head, add_special_tokens=False)
      after = encode(
        answer_lib.label(right) + closing, add_special_tokens=False
      )
      ids = [*before, *after, processor.config.eos_token_id]
      rows.append((ids, len(before)))
  longest = max(len(ids) for ids, _ in rows)
  length = 1 << max(longest - 1, 7).bit_length()
  tokens = np.full((len(rows), length), processor.config.pad_token_id, np.int32)
  counts = np.zeros(tokens.shape, bool)
  for row, (ids, start) in enumerate(rows):
    tokens[row, : len(ids)] = ids
    counts[row, start : len(ids)] = True
  shape = len(texts), -1, length
  return tokens.reshape(shape), counts.reshape(shape)
