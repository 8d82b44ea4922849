"""Where an answer begins, and the right one in its place."""

import numpy as np
import pytest
import small_models

from mmrl.crosstable import texts


@pytest.mark.parametrize(
  ("text", "place"),
  [
    ("red", ("", "")),
    ("<think>a</think>red", ("<think>a</think>", "")),
    (
      "<think>a <answer>b</answer></think> <answer>red</answer>",
      ("<think>a <answer>b</answer></think> <answer>", "</answer>"),
    ),
    ("a</think>\\boxed{red}", ("a</think>\\boxed{", "}")),
    ("<answer>red", ("<answer>", "</answer>")),
    (
      "<answer>a</answer> <answer>b",
      ("<answer>a</answer> <answer>", "</answer>"),
    ),
    # The thought goes on, whatever it mentions; or nothing has begun.
    ("<think>so <answer>a</answer>", ("<think>so <answer>", "</answer>")),
    ("<think>so", None),
  ],
)
def test_where_an_answer_begins(text, place):
  assert texts.before_answer(text) == place


def test_the_right_answer_follows_the_text_as_written():
  """A token of the small tokenizer is a byte."""
  processor = small_models.make_processor(small_models.small_config())
  tokens, counts = texts.with_right(
    [["<think>b</think><answer>no</answer>", "<think>b"], ["no", "no"]],
    ["<answer> yes</answer>", None],
    processor,
  )
  assert tokens.shape == counts.shape == (2, 2, 64)
  whole = "<think>b</think><answer>yes</answer>"
  mask = np.arange(64) <= len(whole)
  assert processor.decode(tokens[:1, :1], mask[None, None]) == [whole]
  assert tokens[0, 0, len(whole)] == processor.config.eos_token_id
  assert processor.decode(tokens[:1, :1], counts[:1, :1]) == ["yes</answer>"]
  assert counts[0, 0].sum() == len("yes</answer>") + 1
  assert not counts[0, 1].any() and not counts[1].any()
