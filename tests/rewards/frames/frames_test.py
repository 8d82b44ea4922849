"""REACT: the note's values of rewards, advantages and masked learning."""

import json
import random
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import advantages, build, losses, rewards, token_weights
from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.rewards.frames import preference, reply

FIRST = (
  "<think>a hand too many</think><answer>"
  '{"labels": ["Extra Limb"], "score": 2.75}</answer>'
)
CLEAN = '<think>fine</think>\n<answer>{"labels": [], "score": 5}</answer>\n'


def said(*labels, score=3.0):
  body = json.dumps({"labels": labels, "score": score})
  return f"<think>x</think><answer>{body}</answer>"


def test_parse_golden():
  assert reply.parse(FIRST) == ({"extra limb"}, 2.75)
  assert reply.parse(CLEAN) == (set(), 5.0)
  assert reply.parse(said(" Motion Blur ", score=1)) == ({"motion blur"}, 1.0)


@pytest.mark.parametrize(
  "text",
  [
    FIRST.replace("<think>a hand too many</think>", ""),
    said(score=7),
    said(score="2.5"),
    said(score=True),
    said(score=0.99),
    said(score=None),
    "<think>x</think><answer>extra limb, 2.75</answer>",
    '<think>x</think><answer>{"score": 3}</answer>',
    '<think>x</think><answer>{"labels": []}</answer>',
    '<think>x</think><answer>{"labels": "a", "score": 3}</answer>',
    '<think>x</think><answer>{"labels": [1], "score": 3}</answer>',
    '<think>x</think><answer>{"labels": [], "score": NaN}</answer>',
    '<think>x</think><answer>{"labels": [], "score": 3, "score": 5}</answer>',
    '<think>x</think><answer>{"labels": [], "score": 3, "why": 1}</answer>',
    "<think>x</think><answer>[3]</answer>",
    f"<think>x</think><answer>{'[' * 99999}</answer>",
    FIRST + FIRST,
    FIRST + "<answer></answer>",
    FIRST.replace("a hand", "<think>"),
    f"Sure. {FIRST}",
    "",
  ],
)
def test_what_cannot_be_read(text):
  assert reply.parse(text) is None
  assert rewards.frame_format([[text, FIRST]]).tolist() == [[0, 1]]


def frame(*labels, side="A", pair=0, preference="A"):
  extra = {"labels": labels, "side": side, "pair": pair}
  return types.SimpleNamespace(
    name=f"rows.jsonl:{1 + pair}", extra=extra | {"preference": preference}
  )


def test_attribution_golden():
  two, none = ("extra limb", "torso deformation"), reply.CLEAN
  texts = [said("extra limb", "facial deformation"), said(*two), said()]
  found = rewards.label_attribution([[*texts, said(none)]], [frame(*two)])
  np.testing.assert_allclose(found, [[0.2, 1.2, -0.4, -0.6]], rtol=1e-6)
  texts = [said(none), said("motion blur"), said(), "nothing"]
  for clean in (frame(none), frame()):
    found = rewards.label_attribution([texts], [clean])
    np.testing.assert_allclose(found, [[0.6, -0.4, -0.2, -0.2]], rtol=1e-6)


def test_log_probs_golden():
  found = preference.log_probs(np.array([4.0, -4.0, 1.0, 0.0]))
  expected = [
    [-0.087625, -5.613094, -2.522665],
    [-5.613094, -0.087625, -2.522665],
    [-1.043592, -2.680433, -0.545971],
    [-1.791759, -1.791759, -0.405465],
  ]
  np.testing.assert_allclose(found, expected, atol=5e-7)
  probabilities = [0.916105, 0.003650, 0.080245]
  np.testing.assert_allclose(np.exp(found[0]), probabilities, atol=5e-7)
  differences = np.linspace(-50, 50, 41)
  total = np.exp(preference.log_probs(differences, 1.5)).sum(-1)
  np.testing.assert_allclose(total, 1.0, rtol=1e-12)


S = np.array([[[4.5, 3.0, 4.0]], [[2.0, 2.5, 3.5]]])
ALL = np.ones((2, 1, 3), bool)


def fail(*places):
  read = ALL.copy()
  for place in places:
    read[place] = False
  return read


@pytest.mark.parametrize(
  "preferred, read, expected",
  [
    (0, ALL, 2 * [[-0.343891, -1.394425, -1.394425]]),
    (1, ALL, 2 * [[-4.125722, -2.223932, -2.223932]]),
    (2, ALL, 2 * [[-1.291559, -0.440303, -0.440303]]),
    (
      0,
      fail((1, 0, 0)),
      [[-0.749362, -1.394425, -1.394425], [-5.613094, -1.394425, -1.394425]],
    ),
    (
      0,
      fail((1,)),
      [[-0.749362, -1.791759, -1.043592], 3 * [-5.613094]],
    ),
    (2, fail((0,), (1,)), 2 * [3 * [-2.522665]]),
  ],
)
def test_preference_golden(preferred, read, expected):
  scores = np.where(read, S, np.nan)
  found = preference.preference_reward(scores, read, np.array([preferred]))
  np.testing.assert_allclose(found[:, 0], expected, atol=5e-7)


def test_all_pairs_is_a_mean_over_the_other_frame():
  preferred = np.array([0])
  found = preference.preference_reward(S, ALL, preferred, mode="all_pairs")
  for i in range(3):
    logs = preference.log_probs(S[0, 0, i] - S[1, 0])[:, 0]
    assert found[0, 0, i] == pytest.approx(logs.mean())
    logs = preference.log_probs(S[0, 0] - S[1, 0, i])[:, 0]
    assert found[1, 0, i] == pytest.approx(logs.mean())
  # The same mean over a group as that of all cyclic pairings by index.
  turned = [
    preference.preference_reward(
      np.stack([S[0], np.roll(S[1], k, -1)]), ALL, preferred
    ).mean()
    for k in range(3)
  ]
  assert found.mean() == pytest.approx(np.mean(turned))
  read = fail((1, 0, 0))
  found = preference.preference_reward(S, read, preferred, mode="all_pairs")
  logs = preference.log_probs(S[0, 0, 0] - S[1, 0, 1:])[:, 0]
  assert found[0, 0, 0] == pytest.approx(logs.mean())
  assert found[1, 0, 0] == pytest.approx(-5.613094, abs=5e-7)
  found = preference.preference_reward(
    S, fail((1,)), preferred, mode="all_pairs"
  )
  expected = [[-0.749362, -1.791759, -1.043592], 3 * [-5.613094]]
  np.testing.assert_allclose(found[:, 0], expected, atol=5e-7)


def totals(read=ALL):
  """The sum of the three rewards, of texts, with lambda 1 each."""
  # Gold labels by which answers earn .6, .2, .6 and .2, -.4, .2.
  right = [["a"], ["a", "b"]]
  labels = [
    [["a"], ["a", "x", "y"], ["a"]],
    [["a", "x"], [], ["a", "x"]],
  ]
  texts = [
    [
      said(*labels[j][i], score=S[j, 0, i]) if read[j, 0, i] else "no"
      for i in range(3)
    ]
    for j in range(2)
  ]
  rows = [frame(*right[j], side="AB"[j]) for j in range(2)]
  found = rewards.frame_format(texts) + rewards.label_attribution(texts, rows)
  return found + rewards.pair_preference(texts, rows)


def test_totals_and_advantages_golden():
  """Advantages are of each frame, not of the pair."""
  found = totals()
  expected = [
    [1.256109, -0.194425, 0.205575],
    [0.856109, -0.794425, -0.194425],
  ]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  expected = [
    [1.112793, -0.823353, -0.289440],
    [1.077685, -0.897929, -0.179756],
  ]
  found = advantages.group_normalised(jnp.asarray(found))
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_totals_with_a_failure_golden():
  found = totals(fail((1, 0, 0)))
  assert found[0, 0] == pytest.approx(0.850638, abs=1e-6)
  expected = [-6.013094, -0.794425, -0.194425]
  np.testing.assert_allclose(found[1], expected, atol=1e-6)
  found = advantages.group_normalised(jnp.asarray(found))
  expected = [
    [1.068416, -0.913499, -0.154917],
    [-1.149616, 0.481067, 0.668549],
  ]
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_masked_learning_golden():
  """Spans are 1 of reasoning and 2 of the answer; epochs count from 1."""
  kind = jnp.array([[[0, 1, 1, 2, 2, 0]]])
  logprobs = -jnp.array([[[9, 0.5, 1, 2, 0.25, 9]]])
  mask = kind > 0
  for epoch, weights, loss in (
    (1, [1, 1, 1, 1], 0.9375),
    (2, [0, 0, 1, 1], 1.125),
  ):
    found = token_weights.span_weights(kind, jnp.array([epoch]), mask)
    assert found[0, 0].tolist() == [0, *weights, 0]
    terms = losses.likelihood(logprobs, mask)
    coefficients = reduce.weighted_token_mean(mask, found)
    assert reduce.total(terms, coefficients) == pytest.approx(loss)
  nothing = jnp.zeros_like(mask)
  weights = token_weights.span_weights(kind, jnp.array([2]), nothing)
  coefficients = reduce.weighted_token_mean(nothing, weights)
  assert reduce.total(losses.likelihood(logprobs, nothing), coefficients) == 0


@pytest.mark.parametrize(
  "rows, message",
  [
    ([frame(), frame(side="B", pair=1)], "rows.jsonl:1: expected frames A and"),
    (
      [frame(side="B"), frame()],
      "rows.jsonl:1: expected frames A and B of a p",
    ),
    ([frame()], "rows.jsonl:1: .* found it without the other"),
    (
      [frame(preference="C"), frame(side="B")],
      "rows.jsonl:1: expected a 'preference' of A, B or tie, found 'C'",
    ),
    ([types.SimpleNamespace(name="x:3", extra={})] * 2, "x:3: expected frames"),
  ],
)
def test_what_is_no_pair_is_refused(rows, message):
  with pytest.raises(UserError, match=message):
    rewards.pair_preference([["a", "b"]] * len(rows), rows)


def test_a_question_without_labels_is_refused():
  row = types.SimpleNamespace(name="rows.jsonl:7", extra={})
  with pytest.raises(
    UserError, match="rows.jsonl:7: expected the frame's 'lab"
  ):
    rewards.label_attribution([["a"]], [row])


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    (
      "pair_preference",
      {"theta": 1.0},
      "theta: expected it above 1, found 1.0",
    ),
    ("pair_preference", {"mode": "x"}, "expected one of 'index', 'all_pairs'"),
    (
      "label_attribution",
      {"hit": -1.0},
      "hit: expected at least 0, found -1.0",
    ),
  ],
)
def test_options_are_checked(name, options, message):
  with pytest.raises(UserError, match=message):
    build.resolve(rewards, {"name": name, **options}, "config.rewards.x")


def test_any_text_is_read():
  pieces = ["<think>", "</think>", "<answer>", "</answer>", '{"labels": ', "]"]
  pieces += [
    "[",
    '"a"',
    ', "score": ',
    "3",
    "}",
    "-",
    "1e999",
    "null",
    "\n",
    "é",
  ]
  pieces += [FIRST, CLEAN]
  generator = random.Random(0)
  read = 0
  for _ in range(1000):
    count = generator.randrange(12)
    text = "".join(generator.choice(pieces) for _ in range(count))
    found = reply.parse(text)
    read += found is not None
    assert found is None or 1 <= found.score <= 5
    row = frame("a")
    assert np.isfinite(rewards.label_attribution([[text]], [row])).all()
    pair = [row, frame(side="B")]
    assert (rewards.pair_preference([[text], [FIRST]], pair) <= 0).all()
  assert read
