"""Tests of grading: every reward is given what it names."""

import concurrent.futures
import dataclasses

import numpy as np
import pytest
import small_models

from mmrl import build, data
from mmrl.rollouts import answers as answers_lib
from mmrl.train.method import bind_rewards
from mmrl.types import Prompt, Rollout

END, PAD = (small_models.IDS[f"{name}_token_id"] for name in ("eos", "pad"))
# Two questions with two answers: "ab" that ends, "abcd" that is cut off, one
# that ends at once, and "a".
TOKENS = np.array(
  [
    [[97, 98, END, PAD], [97, 98, 99, 100]],
    [[END, PAD, PAD, PAD], [97, END, PAD, PAD]],
  ],
  np.int32,
)
MASK = TOKENS != PAD
EXAMPLES = [data.Example(name, "?", [], name) for name in ("ab", "a")]


def grade(rewards, answers=None, tokens=TOKENS):
  processor = small_models.make_processor(small_models.small_config())
  nothing = Prompt(*7 * [None]), Rollout(*5 * [None])
  answers = answers or answers_lib.Answers(
    EXAMPLES, *nothing, tokens, tokens != PAD
  )
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return answers_lib.grade(answers, rewards, processor, pool)


def naming(name, function):
  return name, 1.0, build.Bound(name, function, (name,), {})


@pytest.mark.parametrize(
  "name, function, expected",
  [
    ("length", float, [[3, 4], [1, 2]]),
    ("ended", float, [[1, 0], [1, 1]]),
    ("text", len, [[2, 4], [0, 1]]),
    ("answer", len, [[2, 2], [1, 1]]),
    ("example", lambda x: x.answer == "a", [[0, 0], [1, 1]]),
  ],
)
def test_a_reward_gets_what_it_names(name, function, expected):
  def checked(**context):
    return function(context[name])

  graded = grade([naming(name, checked)])
  np.testing.assert_array_equal(graded.parts[name], expected)
  np.testing.assert_array_equal(graded.rewards, expected)


def test_parts_are_weighted_and_added():
  """By hand: exact answers are "ab" and "a"; 4 tokens are 1/2 too long."""
  graded = grade(
    bind_rewards(
      {
        "accuracy": {"name": "exact_answer", "weight": 2.0},
        "overlong": {
          "name": "soft_overlong",
          "weight": 3.0,
          "longest": 5,
          "buffer": 2,
        },
      }
    )
  )
  assert graded.rewards.dtype == np.float32
  np.testing.assert_array_equal(graded.parts["overlong"], [[0, -0.5], [0, 0]])
  expected = 2 * graded.parts["accuracy"] + 3 * graded.parts["overlong"]
  np.testing.assert_array_equal(graded.rewards, expected)


def test_answers_that_come_later_are_graded_alone():
  seen = []

  def length(length):
    seen.append(length)
    return float(length)

  rewards = [naming("length", length)]
  first = grade(rewards, tokens=TOKENS[:, :1])
  assert sorted(seen) == [1, 3]
  # What stands where the mask is emptied has been graded before.
  mask = MASK & np.array([[False], [True]])
  later = dataclasses.replace(first, tokens=TOKENS, mask=mask)
  whole = grade(rewards, later)
  assert len(seen) == 4
  np.testing.assert_array_equal(whole.rewards, [[3, 4], [1, 2]])
  np.testing.assert_array_equal(whole.parts["length"], whole.rewards)
  assert grade(rewards, whole) is whole and len(seen) == 4
