"""Perception-R1: the note's values, judges, and the hacking that is known."""

import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import advantages, build, losses, rewards
from mmrl.benchmarks.intervals import mcnemar
from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.rewards.facts import judges, lines, stated, verdicts

FORMED = "<think>\nGE = 10\n</think>\n<answer>\nso \\boxed{5}\n</answer>"
EMPTY = "<think>\n\n</think>\n<answer>\n\\boxed{5}\n</answer>"
FACTS = ("GE = 10", "DF = 6", "GE is a chord")


@pytest.mark.parametrize(
  "text, formed",
  [
    (FORMED, 1),
    (FORMED + "\n", 0),
    (" " + FORMED, 0),
    (FORMED.replace("</think>\n", "</think>\n\n"), 0),
    ("<think>GE</think>\n<answer>\n\\boxed{5}\n</answer>", 0),
    (FORMED.replace(r"\boxed{5}", "5"), 0),
    (FORMED.replace("{5}", "{}"), 0),
    ("", 0),
    (EMPTY, 1),
  ],
)
def test_format_golden(text, formed):
  assert lines.lined_format([[text]]).tolist() == [[formed]]


def test_answer_golden():
  assert lines.given_answer(FORMED) == r"so \boxed{5}"
  assert lines.given_answer(FORMED, strict_upstream=True) == FORMED


def test_accuracy_of_a_block_or_of_the_whole_text():
  pytest.importorskip("math_verify")
  long = "word " * 200
  texts = [FORMED, EMPTY, f"{long}\\boxed{{5}}", "<answer>6</answer> 5", ""]
  found = lines.first_math_answer([texts], ["5"])
  assert found.tolist() == [[1, 1, 1, 0, 0]]
  found = lines.first_math_answer([texts], ["$5$"], strict_upstream=True)
  assert found.tolist() == [[1, 1, 1, 0, 0]]


def test_the_end_of_a_long_text_is_read(monkeypatch):
  """A thousand words, each letter a factor, would take seconds."""
  monkeypatch.setattr(lines, "_check_accuracy", lambda **_: None)
  read = []
  monkeypatch.setattr(
    lines.mathematics,
    "same",
    lambda given, right, longest: bool(read.append((given, longest))),
  )
  text = "word " * 1000 + r"\boxed{5}"
  closed = f"<answer>{text}</answer>"
  lines.first_math_answer([[text, closed, r"\boxed{5}"]], ["5"])
  assert read == [
    (text[-2000:], 2000),
    (text[-2000:], 2000),
    (r"\boxed{5}", 2000),
  ]


def test_repetition_golden():
  same, cycle = " ".join(["a"] * 40), " ".join(map(str, [*range(20)] * 3))
  texts = [same, cycle, " ".join(map(str, range(20))), "a " * 19, ""]
  found = 2 * lines.repeated_ngrams([texts])
  expected = [[-1.9047619, -1.0243902, 0, 0, 0]]
  np.testing.assert_allclose(found, expected, atol=1e-6)  # float32
  # LASER's, by hand: of a cycle of 10 in 60 words 53 8-grams are 10, 46 of 15
  # words, 21 of 40: 43/53, 36/46, 11/21; 8 equal words have one 8-gram, 9 two.
  texts = [" ".join(map(str, [*range(10)] * 6)), "a " * 8, "A a " * 4 + "a", ""]
  found = 5 * lines.repeated_ngrams([texts], n=(8, 15, 40))
  np.testing.assert_allclose(found, [[-5 * 43 / 53, 0, -2.5, 0]], atol=1e-6)


@pytest.mark.parametrize(
  "reply, expected, rate",
  [
    ("<info1>1</info1>\n<info2>0</info2> <info3>1</info3>", [1, 0, 1], 2 / 3),
    ("<info1>1</info1><info3>1</info3>", [1], 1),
    ("<info1>yes</info1><info2>0.5</info2><info3>7</info3>", [0, 0.5, 1], 0.5),
    ("Facts: <info1>GE = 10</info1>\nJudgement: <info1>1</info1>", [1], 1),
    ("<info1>nan</info1><info2>-3</info2>", [0, 0], 0),
    ("<info2>1</info2>", [], 0),
    ("all stated", [], 0),
    ("<info1></info1>", [], 0),
    ("<info1><info1>1</info1></info1>", [1], 1),
    ("<info1>1</info1", [], 0),
    ("", [], 0),
  ],
)
def test_verdicts_golden(reply, expected, rate):
  found = verdicts.parse(reply)
  assert found == expected
  # The published code adds 1e-6 to the number.
  assert verdicts.hit_rate(found, 3) == pytest.approx(rate, abs=1.1e-6)
  if expected and sum(expected):
    assert verdicts.hit_rate(found, 3) < rate


def test_hit_rate_golden():
  def rate(found, *options):
    return round(verdicts.hit_rate(found, 3, *options), 7)

  assert rate([1, 0, 1]) == 0.6666664
  assert rate([1]) == 0.9999990
  assert rate([0, 0.5, 1]) == 0.4999998
  assert rate([1], "all") == 0.3333332
  assert rate([0, 0, 0, 1], "all") == 0
  assert rate(None) == 0


def asked(table):
  """Asks a model whose verdicts on a text are written down."""

  def ask(conversations, **options):
    assert options == {"length": 512, "temperature": 0.0}
    found = []
    for system, user in conversations:
      assert system["role"] == "system"
      text = user["content"].partition("Response: ")[2].rpartition("\n")[0]
      given = table[text]
      found.append(
        given
        and "".join(f"<info{i}>{v}</info{i}>" for i, v in enumerate(given, 1))
      )
    return found

  return ask


def question(facts=FACTS, name="rows.jsonl:3"):
  return types.SimpleNamespace(name=name, extra={"facts": facts})


def test_total_golden():
  """alpha 0.1, beta 0.9, gamma 0.7 and the largest penalty 2."""
  pytest.importorskip("math_verify")
  wrong = FORMED.replace("{5}", "{6}")
  again = FORMED.replace("GE = 10", " ".join(["a"] * 40))
  table = {FORMED: [1, 0, 1], wrong: [1, 1, 1], again: [1, 0, 1], "no": None}
  texts = [[FORMED, wrong, again, "no"]]
  total = 0.1 * rewards.lined_format(texts)
  total += 0.9 * rewards.first_math_answer(texts, ["5"])
  total += 0.7 * rewards.judged_facts(texts, [question()], asked(table))
  total += 2 * rewards.repeated_ngrams(texts)
  # <think>, 40 words and the rest are 46 words: 27 n-grams, 20 of them alike.
  words = again.split()
  grams = {tuple(words[i : i + 20]) for i in range(len(words) - 19)}
  penalty = 2 * (1 - len(grams) / (len(words) - 19))
  expected = [1.4666665, 0.7999998, 1.4666665 - penalty, 0]
  np.testing.assert_allclose(total[0], expected, atol=1e-6)
  # The note's own: the penalty of the 40 words alone.
  assert pytest.approx(-0.4380954, abs=1e-7) == 1.4666665 - 1.9047619


def test_advantages_golden():
  rows = jnp.array([[1.0, *[0.0] * 7], [0.5] * 8])
  found = advantages.group_normalised(rows)
  expected = [[2.4748667, *[-0.3535524] * 7], [0] * 8]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  found = advantages.group_normalised(jnp.array([[1.5666665, 0.8, 0.1, 0.0]]))
  expected = [[1.3076678, 0.2523570, -0.7111878, -0.8488371]]
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_loss_golden():
  ratio = jnp.array([[[1.5, 0.5, 1], [1.5, 0.5, 4], [1.1, 9, 9]]])
  adv = jnp.array([[1.0, -1.0, 2.0]])
  mask = jnp.array([[[1, 1, 1], [1, 1, 1], [1, 0, 0]]], bool)
  old = jnp.zeros_like(ratio)

  def loss(logprobs):
    unreduced = losses.clipped_ratio(
      *(logprobs, old, adv, jnp.ones_like(old), mask),
      clip_low=0.2,
      clip_high=0.3,
      dual_clip=3.0,
    )
    coefficients = reduce.token_mean(mask)
    return reduce.total(unreduced, coefficients), unreduced

  (total, unreduced), gradient = jax.value_and_grad(loss, has_aux=True)(
    jnp.log(ratio)
  )
  expected = [[-1.3, -0.5, -1], [1.5, 0.8, 3], [-2.2, 0, 0]]
  np.testing.assert_allclose(
    jnp.where(mask, unreduced, 0)[0], expected, rtol=1e-6
  )
  np.testing.assert_allclose(total, 0.0428571, atol=1e-6)
  expected = [
    [0, -0.0714286, -0.1428571],
    [0.2142857, 0, 0],
    [-0.3142857, 0, 0],
  ]
  np.testing.assert_allclose(gradient[0], expected, atol=1e-6)


def test_mcnemar_golden():
  pairs = [(1, 5), (2, 4), (2, 10), (3, 3), (0, 0)]
  expected = [0.21875, 0.6875, 0.0385742, 1, 1]
  found = [mcnemar(*pair) for pair in pairs]
  np.testing.assert_allclose(found, expected, atol=5e-8)
  assert mcnemar(5, 1) == mcnemar(1, 5)


# Judges.


def test_substring_finds_whole_facts():
  text = "We see that ge = 10,\n and DF  = 60."
  assert judges.substring([(FACTS, text), (["A star."], "a starfish")]) == [
    [1, 0, 0],
    [0],
  ]


def test_table():
  judge = judges.Table({"a": [1, 0], "b": None})
  assert judge([(FACTS, t) for t in "abc"]) == [[1, 0], None, None]


@pytest.mark.full
def test_noise_turns_verdicts_over():
  facts = [f"fact {i}" for i in range(2000)]
  text = " ".join(facts[:1000])
  batch = [(facts, text)]
  right = judges.substring(batch)
  assert judges.Noisy(judges.substring, 0.0)(batch) == right
  turned = judges.Noisy(judges.substring, 1.0)(batch)
  assert turned == [[1 - v for v in right[0]]]
  noisy = judges.Noisy(judges.substring, 0.2)
  assert noisy(batch) == noisy(batch)
  assert judges.Noisy(judges.substring, 0.2, 1)(batch) != noisy(batch)
  share = np.mean(np.array(noisy(batch)) != np.array(right))
  assert 0.16 < share < 0.24  # four deviations of 2,000 flips
  table = judges.Table({text: None})
  assert judges.Noisy(table, 0.5)(batch) == [None]
  for flip in (-0.1, 1.1, float("nan")):
    with pytest.raises(UserError, match=r"flip: expected it in \[0, 1\]"):
      judges.Noisy(judges.substring, flip)


def test_stated_facts():
  texts = [["GE = 10. DF = 6.", "no", "GE is a chord"]]
  found = rewards.stated_facts(texts, [question()])
  np.testing.assert_allclose(found, [[2 / 3, 0, 1 / 3]], atol=1e-6)


def test_questions_without_facts():
  texts = [["GE = 10"], ["GE = 10"]]
  rows = [question(), question(())]
  with pytest.raises(UserError, match="rows.jsonl:3: expected 'facts' of ever"):
    rewards.stated_facts(texts, rows)
  found = rewards.stated_facts(texts, rows, without="zero")
  assert found[0, 0] > 0 and found[1, 0] == 0
  ask = asked({"GE = 10": [1, 0, 1]})
  found = rewards.judged_facts(texts, rows, ask, without="zero")
  np.testing.assert_allclose(found, [[0.6666664], [0]], rtol=1e-6)
  share = rewards.judged_share(texts, rows, ask)
  assert share[0, 0] == 1 and np.isnan(share[1, 0])


def test_share_of_verdicts():
  ask = asked({"a": [1], "b": None, "c": [1, 1, 1, 1]})
  found = rewards.judged_share([["a", "b", "c"]], [question()], ask)
  np.testing.assert_allclose(found, [[1 / 3, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("stated_facts", {"flip": 2.0}, r"flip: expected it in \[0, 1\], found 2"),
    ("judged_facts", {"length": 0}, "length: expected at least 1, found 0"),
    (
      "judged_facts",
      {"denominator": "some"},
      "one of 'returned', 'all', found",
    ),
    ("judged_facts", {"without": "some"}, "one of 'refuse', 'zero', found"),
    *(
      ("repeated_ngrams", {"n": n}, r"number of words from 1 on, .*, found")
      for n in (0, True, "8", 2.0, (), (8, 0), (8, "15"), None)
    ),
  ],
)
def test_options_are_checked(name, options, message):
  with pytest.raises(UserError, match=message):
    build.resolve(rewards, {"name": name, **options}, "config.rewards.x")


# What is gamed.


def test_an_unclosed_answer_is_right_and_states_all_unless_the_form_counts():
  """The published total pays 1.6 of 1.7 for it; `times` takes that away."""
  pytest.importorskip("math_verify")
  text = "<think>\nGE = 10. DF = 6. GE is a chord.\n<answer>\n\\boxed{5}"
  form = rewards.lined_format([[text]])
  right = rewards.first_math_answer([[text]], ["5"])
  seen = rewards.stated_facts([[text]], [question()])
  assert form == 0 and right == 1 and seen > 0.99
  assert 0.1 * form + 0.9 * right + 0.7 * seen == pytest.approx(1.6, abs=1e-5)
  assert 0.9 * right * form + 0.7 * seen * form == 0


def test_a_judge_that_repeats_everything_finds_no_verdicts_in_an_answer():
  """The last verdict of a number counts, and an answer comes after facts."""
  answer = "<info1>1</info1> <info2>1</info2> <info3>1</info3>"

  def echo(conversations, **options):
    return [user["content"] for _, user in conversations]

  found = rewards.judged_facts([[answer, "no"]], [question()], echo)
  np.testing.assert_array_equal(found, [[0, 0]])
  # As it would be if tags in answers were left as they are.
  assert verdicts.parse(f"<info1>a</info1> {answer}") == [1, 1, 1]


def test_any_text_is_read():
  pieces = [*"<>/infotaswerhk{}\\10. \n", "<info1>", "</info1>", "<think>\n"]
  pieces += ["\n</think>\n", "<answer>", "</answer>", r"\boxed{", "nan", "é"]
  generator = random.Random(0)
  for _ in range(1000):
    count = generator.randrange(30)
    text = "".join(generator.choice(pieces) for _ in range(count))
    assert all(0 <= v <= 1 for v in verdicts.parse(text))
    assert lines.is_formed(text) in (True, False)
    assert lines.given_answer(text) == lines.given_answer(text).strip()
    assert 0 <= lines.repetition(text, 2) < 1
    assert 0 <= judges.substring([(FACTS, text)])[0][0] <= 1
    stated.stated_facts([[text]], [question((text or "a",))])
