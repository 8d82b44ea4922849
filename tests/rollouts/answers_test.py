"""Tests of grading: every reward is given what it names, once a batch."""

import dataclasses
import fractions
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import small_models

from mmrl import build, data, losses, names, rewards
from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.rewards import needs, words
from mmrl.rollouts import answers as answers_lib
from mmrl.rollouts.answers import Reward
from mmrl.train import collect, walk
from mmrl.train import parts as parts_lib
from mmrl.types import Prompt

END, PAD = (small_models.IDS[f"{name}_token_id"] for name in ("eos", "pad"))
CONFIG = small_models.small_config()
LAYOUT = sharding.on_one(jax.devices()[0])
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


def make_answers(tokens=TOKENS):
  ended = jnp.asarray((tokens == END).any(-1))
  batch = small_models.make_batch(
    Prompt(*7 * [None]), tokens, tokens != PAD, ended=ended
  )
  return answers_lib.Answers.of(EXAMPLES, batch, LAYOUT)


def grade(rewards, answers=None):
  processor = small_models.make_processor(CONFIG)
  answers = answers or make_answers()
  return answers_lib.grade(answers, rewards, processor, LAYOUT)


def naming(function, *names, name="x"):
  where = f"config.rewards.{name}"
  return Reward(name, 1.0, build.Bound(name, function, names, {}, where))


def test_a_reward_gets_what_it_names_of_the_whole_batch_once():
  calls = []

  def reward(text, answer, example, length, ended):
    calls.append(locals())
    return np.zeros((2, 2))

  needs = [*names.given(names.TEXTS), "ended"]
  grade([naming(reward, *needs)])
  (found,) = calls
  assert found["text"] == [["ab", "abcd"], ["", "a"]]
  assert found["answer"] == ["ab", "a"]
  assert found["example"] == EXAMPLES
  np.testing.assert_array_equal(found["length"], [[3, 4], [1, 2]])
  np.testing.assert_array_equal(found["ended"], [[True, False], [True, True]])


def make_config(specs):
  """Of two questions and two answers of four tokens."""
  config = config_lib.get_config()
  config.rollout.update(prompts=2, answers=2, length=4)
  config.train.minibatches = 1
  config.shares.every = 0
  del config.losses["kl"], config.models["reference"]
  config.rewards = specs
  return config


def build_parts(specs):
  """All of a run but weights and data, which is checked."""
  parts = parts_lib.build_parts(make_config(specs), CONFIG, LAYOUT, {})
  walk.check(parts)
  return parts


def add_reward(monkeypatch, function):
  """A function of a test's own beside those of the library."""
  name = function.__name__
  monkeypatch.setattr(rewards, name, function, raising=False)
  monkeypatch.setattr(rewards, "__all__", [*rewards.__all__, name])


def test_parts_are_weighted_and_added():
  """By hand: exact answers are "ab" and "a"; 4 tokens are 1/2 too long."""
  parts = build_parts(
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
  rewards = parts.method.rewards
  # What names arrays alone is the devices' to compute.
  assert [reward.on_host for reward in rewards] == [True, False]
  answers = make_answers()
  graded = grade(rewards, answers)
  assert set(graded.parts) == {"accuracy"}
  state = parts.first_state(small_models.make_params(CONFIG))
  found = parts.programs.reward(state, {}, answers.batch)
  assert set(found) == {"overlong"}
  overlong = found["overlong"]
  np.testing.assert_array_equal(overlong, [[0, -0.5], [0, 0]])
  accuracy = np.array([[1, 0], [0, 1]], np.float32)
  total = answers_lib.total(
    rewards,
    dataclasses.replace(
      graded, parts={"accuracy": accuracy, "overlong": np.asarray(overlong)}
    ),
    step=1,
  )
  assert total.dtype == np.float32
  np.testing.assert_array_equal(total, [[2, -1.5], [0, 2]])


def test_answers_that_come_later_are_graded_alone():
  seen = []

  def length(text, length):
    seen.extend(length.ravel())
    return length

  reward = naming(length, "text", "length")
  first = grade([reward], make_answers(TOKENS[:, :1]))
  assert sorted(seen) == [1, 3]
  # What stands where the mask is emptied has been graded before.
  mask = MASK & np.array([[False], [True]])
  later = dataclasses.replace(make_answers(), mask=mask, parts=first.parts)
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
    ([[0, 1], [2]], r"of 2 x 2 answers, found shape \(2,\)"),
    ([[[0], [1]], [[2], [3]]], r"of 2 x 2 answers, found shape \(2, 2, 1\)"),
    (None, r"of 2 x 2 answers, found None; return a list of numbers"),
    (
      [[0, 1], [2, np.nan]],
      "config.rewards.x: expected x to return a number, found nan for answer 1"
      " to question a, 'a'; return 0.0 where it doesn't apply$",
    ),
    ([[0, np.inf], [2, 1]], "found inf for answer 1 to question ab, 'abcd';"),
    ([[0, 1e39], [2, 1]], "found inf for answer 1 to question ab, 'abcd';"),
    ([[0, 1], [None, 1]], "found None for answer 0 to question a, '';"),
    ([[0, 1], ["1", 1]], "found '1' for answer 0 to question a, '';"),
    ([["1", "2"], ["1", "1"]], "found '1' for answer 0 to question ab, 'ab';"),
    ([[0, 1], [[2], 1]], r"found \[2\] for answer 0 to question a, '';"),
    ([[0, 1j], [2, 1]], "found 1j for answer 1 to question ab, 'abcd';|0j"),
  ],
)
def test_no_number_for_each_answer_is_refused(value, message):
  with pytest.raises(UserError, match=message) as error:
    grade([naming(lambda text: value, "text")])
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "value",
  [
    [[True, False], [0, 1]],
    np.array([[1, 0], [0, 1]], bool),
    np.array([[1, 0], [0, 1]], np.int64),
    jnp.array([[1, 0], [0, 1]], jnp.bfloat16),
    [[jnp.ones(()), 0], [0.0, np.float64(1)]],
    [[fractions.Fraction(1), 0], [0, np.True_]],
  ],
)
def test_any_kind_of_number_is_taken(value):
  found = grade([naming(lambda text: value, "text")]).parts["x"]
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, [[1, 0], [0, 1]])


def test_only_the_text_s_first_characters_are_shown():
  examples, texts = EXAMPLES[:1], [[80 * "a" + "b"]]
  bound = naming(len, "text").bound
  with pytest.raises(UserError, match=f"question ab, '{80 * 'a'}'; return"):
    answers_lib.checked(bound, [[None]], examples, 1, texts=texts)
  with pytest.raises(UserError, match="answer 0 to question ab; return"):
    answers_lib.checked(bound, [[None]], examples, 1)


def test_a_value_may_be_nan_where_that_is_said():
  bound, values = naming(len, "text").bound, [[np.nan, 1]]
  found = answers_lib.checked(bound, values, EXAMPLES[:1], 2, nan=True)
  np.testing.assert_array_equal(found, values)
  with pytest.raises(UserError, match="found inf"):
    answers_lib.checked(bound, [[np.inf, 1]], EXAMPLES[:1], 2, nan=True)


def test_an_exception_in_a_reward_names_the_answer():
  def raising(text, answer, length):
    for group in text:
      for one in group:
        if one == "abcd":
          raise KeyError("no\nkey")
    return np.zeros((len(text), len(text[0])))

  with pytest.raises(
    UserError,
    match="^config.rewards.x: expected x to return numbers, found KeyError:"
    r" .*key.* for answer 1 to question ab, 'abcd'; repair it$",
  ) as error:
    grade([naming(raising, "text", "answer", "length")])
  assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("seconds", [10.0, -1.0])
def test_an_exception_that_no_answer_causes(seconds, monkeypatch):
  """Or one whose cause isn't found in time."""

  def raising(text):
    if len(text) > 1 or seconds < 0:
      raise OSError("no server")
    return [[0.0]]

  monkeypatch.setattr(answers_lib, "_SEARCH", seconds)
  with pytest.raises(UserError, match="found OSError: no server; repair it$"):
    grade([naming(raising, "text")])


def test_a_user_s_mistake_in_a_reward_is_told_as_it_is():
  def raising(text):
    raise UserError("expected a key")

  with pytest.raises(UserError, match=r"^config.rewards.x: expected a key$"):
    grade([naming(raising, "text")])


def print_hints(value: float, hint):
  """Grades the answers by a reward with a hint, and prints it."""

  def reward(text, *, level: int = 1):
    return np.full((2, 2), value) * [0, 1]

  reward.hint = hint
  one = naming(reward, "text")
  processor = small_models.make_processor(small_models.small_config())
  collect.print_hints([one], grade([one]), processor)


def test_a_hint_is_printed_if_all_answers_have_none(capsys):
  print_hints(0.0, lambda *, level=1: f"level {level} is too high")
  assert capsys.readouterr().out == (
    "config.rewards.x: x is 0 for all 4 answers of the first batch; level 1 is"
    " too high. The first answer begins 'ab'\n"
  )
  print_hints(1.0, "one answer has some")
  assert capsys.readouterr().out == ""


def test_a_hint_may_be_a_text(capsys):
  print_hints(0.0, "no reason")
  assert "first batch; no reason. The" in capsys.readouterr().out


def test_a_reward_is_not_called_while_a_run_is_built(monkeypatch):
  def judge(text, example, *, level: int = 1):
    raise AssertionError("called")

  add_reward(monkeypatch, judge)
  parts = build_parts({"x": {"name": "judge", "weight": 1.0}})
  (bound,) = parts.method.rewards
  assert bound.on_host


@pytest.mark.parametrize(
  "spec, message",
  [
    (
      {"name": "answer_format", "form": "essay"},
      "config.rewards.x.form: expected one of 'think', .*, found 'essay'",
    ),
    (
      {"name": "soft_overlong", "longest": 5, "buffer": 6},
      r"config.rewards.x: buffer must be in \[1, longest\], got buffer=6",
    ),
  ],
)
def test_options_are_checked_while_a_run_is_built(spec, message):
  with pytest.raises(UserError, match=message):
    build_parts({"x": spec | {"weight": 1.0}})


@pytest.mark.parametrize(
  "spec, package",
  [
    ({"name": "math_answer"}, "math_verify"),
    ({"name": "accuracy", "kinds": {"all": "math_answer"}}, "math_verify"),
    ({"name": "rouge"}, "rouge_score"),
  ],
)
def test_missing_packages_are_refused_while_a_run_is_built(
  spec, package, monkeypatch
):
  words._scorer.cache_clear()
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UserError, match=r"^config.rewards.x: .* pip install -e"):
    build_parts({"x": spec | {"weight": 1.0}})


def test_shapes_are_checked_while_a_run_is_built(monkeypatch):
  """Of what the devices compute; the host's rewards aren't called."""

  def whole(length):
    return length.sum(-1)

  add_reward(monkeypatch, whole)
  with pytest.raises(
    UserError,
    match="config.rewards.x: expected whole to return a number for each of 2 x"
    r" 2 answers, found shape \(2,\)",
  ):
    build_parts({"x": {"name": "whole", "weight": 1.0}})


def test_data_of_the_other_side(monkeypatch):
  """A reward reads texts, or arrays that probes add."""

  def mixed(text, entropies_old):
    return entropies_old.mean(-1)

  add_reward(monkeypatch, mixed)
  with pytest.raises(
    UserError,
    match=r"x: mixed needs entropies_old, which this run doesn't have; provided"
    " are answer, ended, example, length, text$",
  ):
    build_parts({"x": {"name": "mixed", "weight": 1.0}})


def test_questions_without_a_region_are_named_before_a_run(tmp_path):
  """By file and line, for a function that says it needs them."""
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  rows = [
    {"region": [0, 0, 4, 4], "images": ["a.png"]},
    {"images": ["a.png"]},
    {},
  ]
  path = tmp_path / "rows.jsonl"
  text = [json.dumps({"question": "?", "answer": "a"} | row) for row in rows]
  path.write_text("\n".join(text))
  source = data.Files(path=str(path))
  assert [there for _, there in source.regions()] == [True, False, False]

  def bound(**options):
    spec = {"name": "evidence_kl", **options}
    names_ = ("attention", "prompt", "rewards", "tokens", "mask")
    return build.bind(losses, spec, "config.losses.x", provided=names_)

  with pytest.raises(UserError, match="x: expected .*rows.jsonl:2 and 1 more;"):
    needs.require_all([bound()], source)
  needs.require_all([bound(without="skip")], source)


@pytest.mark.parametrize(
  "name, good, message",
  [
    ("choice", "B", "the letter of a choice as right answer"),
    ("first_option", "B", "a letter A to E as right answer"),
    ("inferred_choice", "B", "a letter of its choices"),
    ("number", "3", "a number as right answer"),
    ("closeness", "3", "a number as right answer"),
  ],
)
def test_every_answer_s_form_is_checked_before_a_run(
  tmp_path, name, good, message
):
  """Not only that of the questions which a run happens to draw."""
  rows = [
    {"question": "?\nA. red\nB. blue", "answer": good},
    {"question": "?\nA. red\nB. blue", "answer": "purple"},
  ]
  path = tmp_path / "rows.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  spec = {"name": name}
  bound = build.bind(
    rewards, spec, "config.rewards.a", provided=["text", "answer", "example"]
  )
  source = data.Files(path=str(path))
  where = f"config.rewards.a: {path}:2: expected {message}, .*purple"
  with pytest.raises(UserError, match=where):
    needs.require_all([bound], source)
  path.write_text(json.dumps(rows[0]))
  needs.require_all([bound], data.Files(path=str(path)))


def test_rewards_count_from_a_step_on_and_times_others():
  bound = build.bind(
    rewards, {"name": "exact_answer"}, "x", provided=("text", "answer")
  )
  parts = {
    "accuracy": np.float32([[1, 1, 0, 0]]),
    "format": np.float32([[1, 0, 1, 0]]),
    "looks": np.float32([[0.5, 0.5, 0.5, 0.5]]),
    "logged": np.float32([[np.nan, 1, 1, 1]]),
  }
  weighed = [
    Reward("accuracy", 1.0, bound),
    Reward("format", 0.3, bound),
    Reward("looks", 0.1, bound, times=("accuracy", "format"), start=20),
    Reward("logged", 0.0, bound),
  ]
  prompt = Prompt(*7 * [None])
  batch = small_models.make_batch(prompt, TOKENS[:1, :1].repeat(4, 1))
  answers = answers_lib.Answers.of(EXAMPLES[:1], batch, LAYOUT)
  answers = dataclasses.replace(answers, parts=parts)
  for step, gain in ((1, 0), (19, 0), (20, 0.05), (21, 0.05)):
    found = answers_lib.total(weighed, answers, step)
    np.testing.assert_allclose(found, [[1.3 + gain, 1, 0.3, 0]], rtol=1e-6)
  of = [answers_lib.is_measure(one, weighed) for one in weighed]
  assert of == [False, False, False, True]
  factor = Reward("last", 1.0, bound, times=("logged",))
  assert not answers_lib.is_measure(weighed[-1], [*weighed, factor])


def test_a_reward_counts_by_its_placebo():
  """The total has it, with what it is multiplied by; the part stays.

  Of the answers "ab", "abab", "b" and "a" the longest has the largest.
  """
  bound = build.Bound("x", len, (), {}, "config.rewards.x")
  answers = make_answers()
  lengths = answers.mask.sum(-1)
  values = -lengths.astype(np.float32)
  parts = {"a": values, "b": np.full(values.shape, 2.0, np.float32)}
  graded = dataclasses.replace(answers, parts=parts)
  reward = Reward("a", 0.5, bound, times=("b",), placebo="length")
  found = answers_lib.total([reward], graded, 1)
  for group, real, longest in zip(found, values, lengths, strict=True):
    assert sorted(group) == sorted(real) and group.argmax() == longest.argmax()
  assert graded.parts["a"] is values
