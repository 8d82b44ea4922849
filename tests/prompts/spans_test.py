"""Tests of the spans of an answer, as characters and as tokens."""

import numpy as np
import pytest
import small_models

from mmrl import hub
from mmrl.prompts import spans
from mmrl.rewards import answer

REASONING, ANSWER, OTHER = spans.REASONING, spans.ANSWER, spans.OTHER
# Each character of a text, by its kind: r, a, or a dot for neither.
TEXTS = [
  ("<think>x</think><answer>y</answer>", "r" * 16 + "a" * 18),
  (
    "so <think>x</think> - <answer>y</answer>!",
    "..." + "r" * 16 + "..." + "a" * 18 + ".",
  ),
  ("x</think>y", "r" * 9 + "."),
  ("<think>cut", "r" * 10),
  ("plain", "....."),
  ("", ""),
  ("<answer>open", "." * 12),
  ("</answer>", "." * 9),
  # A thought that mentions a block; two thoughts; two blocks; one not closed.
  (
    "<think><answer>n</answer></think><answer>y</answer>",
    "r" * 33 + "a" * 18,
  ),
  ("<think>a</think>b<think>c</think>d", "r" * 33 + "."),
  (
    "<answer>n</answer><answer>y</answer></answer>",
    "." * 18 + "a" * 18 + "." * 9,
  ),
  ("<think>t<answer>y</answer>", "r" * 8 + "a" * 18),
]


def kinds_of(text):
  found = ["."] * len(text)
  for kind, start, stop in spans.find_spans(text):
    letter = {REASONING: "r", ANSWER: "a"}[kind]
    found[start:stop] = [letter] * (stop - start)
  return "".join(found)


@pytest.mark.parametrize("text, expected", TEXTS)
def test_characters(text, expected):
  assert kinds_of(text) == expected


@pytest.mark.parametrize("text, _", TEXTS)
def test_the_answer_is_the_one_that_rewards_read(text, _):
  found = [text[a:b] for kind, a, b in spans.find_spans(text) if kind == ANSWER]
  block = answer.extract(text)
  assert found == ([] if block is None else [f"<answer>{block}</answer>"])


def token_kinds(processor, text):
  """The kind of each token, the end of sequence last, and then padding."""
  ids = processor.encode_answer(text, 400, "text")
  tokens = np.full(
    (1, 2, len(ids) + 2), processor.config.pad_token_id, np.int32
  )
  tokens[0, 1, : len(ids)] = ids
  mask = np.zeros(tokens.shape, bool)
  mask[0, 1, : len(ids)] = True
  ends = processor.config.ends(tokens)
  found = spans.token_spans(tokens, mask, processor.tokenizer, ends)
  assert found.dtype == np.int8 and found.shape == tokens.shape
  assert not found[0, 0].any() and not found[0, 1, len(ids) :].any()
  return ids, found[0, 1, : len(ids)]


@pytest.mark.parametrize("text, expected", TEXTS)
@pytest.mark.parametrize("kind", ["tiny", "characters"])
def test_tokens(kind, text, expected):
  """Where tags are tokens of their own, and where each character is one."""
  if kind == "tiny":
    processor = hub.load("tiny").processor
  else:
    processor = small_models.make_processor(small_models.small_config())
  ids, found = token_kinds(processor, text)
  numbers = [{"r": REASONING, "a": ANSWER, ".": OTHER}[x] for x in expected]
  pieces = [processor.tokenizer.decode([i]) for i in ids[:-1]]
  if "".join(pieces) != text:
    pytest.skip("the vocabulary lacks a character")
  place, wanted = 0, []
  for piece in pieces:
    inside = numbers[place : place + len(piece)]
    order = (ANSWER, REASONING, OTHER)
    wanted.append(min(inside, key=order.index))
    place += len(piece)
  wanted.append(wanted[-1] if wanted else OTHER)
  assert found.tolist() == wanted


def test_characters_of_several_tokens():
  """Each is several bytes of a byte-level tokenizer."""
  processor = hub.load("tiny").processor
  text = "<think>é漢字</think><answer>ü</answer>"
  ids, found = token_kinds(processor, text)
  assert len(ids) > 4 + 5
  close = processor.tokenizer.encode("</think>", add_special_tokens=False)
  stop = ids.index(close[0]) + 1
  assert (found[:stop] == REASONING).all() and (found[stop:] == ANSWER).all()
