"""Tests of grading: every reward is given what it names, once a batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import build, data, rewards
from mmrl.errors import UserError
from mmrl.rollouts import answers as answers_lib
from mmrl.rollouts.answers import Reward
from mmrl.train.method import bind_rewards
from mmrl.types import Prompt, Rollout

END, PAD = (small_models.IDS[f"{name}_token_id"] for name in ("eos", "pad"))
A, B, C, D = small_models.make_tokenizer().encode("abcd")
# Two questions with two answers: "ab" that ends, "abcd" that is cut off, one
# that ends at once, and "a".
TOKENS = np.array(
  [
    [[A, B, END, PAD], [A, B, C, D]],
    [[END, PAD, PAD, PAD], [A, END, PAD, PAD]],
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
  return answers_lib.grade(answers, rewards, processor)


def naming(function, *names, name="x"):
  return Reward(name, 1.0, build.Bound(name, function, names, {}))


def test_a_reward_gets_what_it_names_of_the_whole_batch_once():
  calls = []

  def reward(**context):
    calls.append(context)
    return np.zeros((2, 2))

  grade([naming(reward, *answers_lib.HOST_DATA)])
  (found,) = calls
  assert found["text"] == [["ab", "abcd"], ["", "a"]]
  assert found["answer"] == ["ab", "a"]
  assert found["example"] == EXAMPLES
  np.testing.assert_array_equal(found["length"], [[3, 4], [1, 2]])
  np.testing.assert_array_equal(found["ended"], [[True, False], [True, True]])


def bind(specs):
  sizes = {"P": 2, "G": 2, "R": 4}
  return bind_rewards(specs, ("entropies_old",), {}, sizes)


def test_parts_are_weighted_and_added():
  """By hand: exact answers are "ab" and "a"; 4 tokens are 1/2 too long."""
  parts = bind(
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
  # What names arrays alone is the devices' to compute.
  assert [reward.on_host for reward in parts] == [True, False]
  graded = grade(parts)
  assert set(graded.parts) == {"accuracy"}
  overlong = parts[1].bound({"length": jnp.asarray(MASK.sum(-1))})
  np.testing.assert_array_equal(overlong, [[0, -0.5], [0, 0]])
  accuracy = np.array([[1, 0], [0, 1]], np.float32)
  total = answers_lib.total(
    parts, {"accuracy": accuracy, "overlong": np.asarray(overlong)}
  )
  assert total.dtype == np.float32
  np.testing.assert_array_equal(total, [[2, -1.5], [0, 2]])


def test_answers_that_come_later_are_graded_alone():
  seen = []

  def length(text, length):
    seen.extend(length.ravel())
    return length

  reward = naming(length, "text", "length")
  first = grade([reward], tokens=TOKENS[:, :1])
  assert sorted(seen) == [1, 3]
  # What stands where the mask is emptied has been graded before.
  mask = MASK & np.array([[False], [True]])
  later = dataclasses.replace(first, tokens=TOKENS, mask=mask)
  whole = grade([reward], later)
  assert len(seen) == 4
  np.testing.assert_array_equal(whole.parts["x"], [[3, 4], [1, 2]])
  assert grade([reward], whole) is whole and len(seen) == 4


@pytest.mark.parametrize(
  "value, message",
  [
    (
      1.0,
      r"config.rewards.x: expected x to return a number for each of 2 x 2"
      r" answers, found shape \(\)",
    ),
    (np.zeros((2, 3)), r"of 2 x 2 answers, found shape \(2, 3\)"),
    (
      [[0, 1], [2, np.nan]],
      "config.rewards.x: expected numbers from x, found nan for answer 1 to"
      " question a$",
    ),
    ([[0, np.inf], [2, 1]], "found inf for answer 1 to question ab$"),
  ],
)
def test_no_number_for_each_answer_is_refused(value, message):
  with pytest.raises(UserError, match=message):
    grade([naming(lambda text: value, "text")])


def test_a_reward_is_not_called_while_a_run_is_built(monkeypatch):
  def judge(text, example, *, level: int = 1):
    raise AssertionError("called")

  monkeypatch.setattr(rewards, "judge", judge, raising=False)
  monkeypatch.setattr(rewards, "__all__", [*rewards.__all__, "judge"])
  (bound,) = bind({"x": {"name": "judge", "weight": 1.0}})
  assert bound.on_host


@pytest.mark.parametrize(
  "spec, message",
  [
    (
      {"name": "answer_format", "form": "essay"},
      "config.rewards.x.form: expected one of 'think', 'answer', found 'essay'",
    ),
    (
      {"name": "soft_overlong", "longest": 5, "buffer": 6},
      r"config.rewards.x: buffer must be in \[1, longest\], got buffer=6",
    ),
  ],
)
def test_options_are_checked_while_a_run_is_built(spec, message):
  with pytest.raises(UserError, match=message):
    bind({"x": spec | {"weight": 1.0}})


def test_data_of_the_other_side(monkeypatch):
  """A reward reads texts, or arrays that probes add."""

  def mixed(text, entropies_old):
    return entropies_old.mean(-1)

  monkeypatch.setattr(rewards, "mixed", mixed, raising=False)
  monkeypatch.setattr(rewards, "__all__", [*rewards.__all__, "mixed"])
  with pytest.raises(
    UserError,
    match=r"x: mixed needs entropies_old, which this run doesn't have; provided"
    " are answer, ended, example, length, text$",
  ):
    bind({"x": {"name": "mixed", "weight": 1.0}})
