"""Look-Back: the note's values, and loops over dense maps."""

import random
import re

import jax
import jax.numpy as jnp
import looks
import numpy as np
import pytest

from mmrl import build, rewards
from mmrl.errors import UserError
from mmrl.losses import likelihood, reduce
from mmrl.probes.shares import attention_shares, parts_of, shares
from mmrl.rewards.looks import back
from mmrl.rollouts.wrapped import between

G = r"<think>a</think> <back>b</back> <think>c</think> \boxed{4}"
TABLE = [
  (G, 1, "4"),
  (f"\n {G} \n", 1, "4"),
  (f"{G} done.", 1, "4"),
  (f"Sure. {G}", 0, "4"),
  (G.replace("<back>b</back> ", ""), 0, "4"),
  (G.replace("</back>", ""), 0, "4"),
  (G.replace("</back>", "</back> <back>d</back>"), 0, "4"),
  (r"<back>b</back> <think>a</think> <think>c</think> \boxed{4}", 0, "4"),
  (r"<think>a</think> <back>b</back> \boxed{4}", 0, "4"),
  (r"<think>a \boxed{4}</think> <back>b</back> <think>c</think> 4", 0, "4"),
  (G.replace(" <back>", " so <back>"), 0, "4"),
  (r"<think>a <back>b</back> c</think> \boxed{4}", 0, "4"),
  (r"<think>a</think><back></back><think>c</think>\boxed{}", 1, ""),
  (G[:-1], 0, None),
]


@pytest.mark.parametrize("text, formed, boxed", TABLE)
def test_golden(text, formed, boxed):
  assert back.back_format([[text]]).tolist() == [[formed]]
  assert back.boxed(text) == boxed


def test_boxed_golden():
  assert back.boxed(r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
  assert back.boxed(r"\boxed{1} then \boxed{2}") == "2"
  assert back.boxed(r"\boxed{1} then \boxed{2") is None
  assert back.boxed("4") is None
  texts = [[r"\boxed{Red}", r"\boxed{}", "red", r"\boxed{red} \boxed{blue}"]]
  assert back.boxed_accuracy(texts, ["red"]).tolist() == [[1, 0, 0, 0]]


def test_further_segments_can_be_allowed():
  twice = G.replace("</back>", "</back> <back>d</back>")
  assert back.is_formed(twice, exactly_one=False)
  assert back.count_segments(twice) == 2
  assert back.back_segment([[twice, G, "<back>", ""]]).tolist() == [
    [1, 1, 0, 0]
  ]


def test_accuracy_and_format_golden():
  for accuracy, form, tenth, half in (
    (1, 1, 1, 1),
    (1, 0, 0.9, 0.5),
    (0, 1, 0.1, 0.5),
    (0, 0, 0, 0),
  ):
    text = G if form else G.replace("<back>", "")
    found = [
      back.boxed_accuracy([[text]], ["4" if accuracy else "5"])[0, 0],
      back.back_format([[text]])[0, 0],
    ]
    for w, wanted in ((0.1, tenth), (0.5, half), (0.0, accuracy)):
      assert (1 - w) * found[0] + w * found[1] == pytest.approx(wanted)


def test_any_text_has_a_reward():
  draw = random.Random(0)
  pieces = [
    *("<think>", "</think>", "<back>", "</back>", "\\boxed{", "}", "{", "\\"),
    *("<", ">", " ", "\n", "a", "é", "\0", "4"),
  ]
  drawn = [draw.choices(pieces, k=draw.randrange(14)) for _ in range(1000)]
  texts = ["".join(one) for one in drawn]
  (form,), (hit,) = back.back_format([texts]), back.back_segment([texts])
  (accuracy,) = back.boxed_accuracy([texts], ["4"])
  assert {*form, *hit, *accuracy} <= {0, 1}
  assert (form <= hit).all() and form.shape == (1000,)
  for one in drawn:
    assert between(one, "back").shape == (len(one),)


def test_what_is_composed_has_the_form():
  text = back.compose("a b", "c", " d ", "4")
  assert text == r"<think>a b</think> <back>c</back> <think>d</think> \boxed{4}"
  assert back.is_formed(text)
  control = back.compose("a b", "c", "d", "4", segment=False)
  assert control == r"<think>a b c d</think> \boxed{4}"
  # The same words, without the segment.
  plain = [re.sub(r"</?\w+>", " ", one).split() for one in (text, control)]
  assert plain[0] == plain[1]
  assert back.split("a b c d e") == ("a b", "c d e")
  assert back.split("a b c", 2) == ("a b", "c")


@pytest.mark.parametrize(
  "part", ["", " ", "a <back> b", "</think>", r"so \boxed{3}"]
)
@pytest.mark.parametrize("at", range(4))
def test_parts_of_another_form_are_refused(part, at):
  parts = ["a", "b", "c", "d"]
  parts[at] = part
  name = ("first", "check", "second", "answer")[at]
  with pytest.raises(UserError, match=f"{name}: expected a text without tags"):
    back.compose(*parts)


@pytest.mark.parametrize("trace, at", [("a", None), ("", None), ("a b", 2)])
def test_a_place_outside_of_the_trace_is_refused(trace, at):
  with pytest.raises(UserError, match="expected a place within"):
    back.split(trace, at)


@pytest.mark.parametrize(
  "pieces, wanted",
  [
    (["a", "<", "back", ">", "b", " c", "</", "back", ">", "d"], [4, 5]),
    # Cut otherwise: tokens that hold a part of a tag aren't inside.
    (["a<back>", "b", "c<", "/back>", "d"], [1]),
    (["<back>b</back>"], []),
    (["<back>", "b", "</back>", "x", "<back>", "c", "", "</back>"], [1, 5]),
    (["<back>", "b", "c"], []),
    (["</back>", "b", "<back>"], []),
    ([], []),
  ],
)
def test_tokens_between_tags(pieces, wanted):
  assert np.flatnonzero(between(pieces, "back")).tolist() == wanted


LAYERS = np.array(
  [
    [
      [0.30, 0.10, 0.12, 0.08, 0.10, 0.05, 0.10, 0.05, 0.10, 0],
      [0.20, 0.10, 0.05, 0.05, 0.10, 0.10, 0.10, 0.10, 0.10, 0.10],
    ],
    [
      [0.50, 0, 0.10, 0.10, 0.10, 0, 0.05, 0.05, 0.10, 0],
      [0.90, 0.10, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
  ]
)


def golden_prompt(left: int = 0):
  """Picture 2 to 4, its end 5, question 6 and 7; padding before."""
  place = np.arange(-left, 8)
  image = (place >= 2) & (place <= 4)
  return looks.dataclasses.replace(
    looks.ask(),
    mask=jnp.asarray((place >= 0)[None]),
    visual_index=jnp.asarray(np.where(image, place - 2, -1)[None]),
  )


@pytest.mark.parametrize("left", [0, 3])
def test_shares_golden(left):
  parts = np.asarray(jax.jit(parts_of)(golden_prompt(left)))[0]
  on_prompt = np.pad(LAYERS[..., :8], ((0, 0), (0, 0), (left, 0)))
  sums = np.einsum("ars,sn->ran", on_prompt, parts)
  own = LAYERS[..., 8:].sum(-1).T[..., None]
  sums = np.concatenate([sums, own], -1).astype(np.float32)
  found = np.asarray(jax.jit(shares)(sums[None, None]))[0, 0]
  np.testing.assert_allclose(found[:, 0], [0.55, 0.142857], atol=1e-6)
  np.testing.assert_allclose(found[:, 1], [0.225, 0.142857], atol=1e-6)
  np.testing.assert_allclose(found[:, 2], [0.183333, 0.142857], atol=1e-6)
  np.testing.assert_allclose(found.sum(-1), [0.958333, 0.428571], atol=1e-6)


def test_gain_golden():
  image = jnp.array([0.05, 0.04, 0.15, 0.13, 0.03])
  values = jnp.stack([image] * 3, -1)[None, None]
  mask = jnp.array([[[1, 1, 1, 1, 0]]], bool)
  tagged = jnp.array([[[0, 0, 1, 1, 0]]], bool)
  found = back.refocus_gain(values, tagged, mask)
  assert float(found[0, 0]) == pytest.approx(0.095, abs=1e-7)
  # None inside, none outside, no token at all.
  for inside, counted in ((False, mask), (True, mask), (tagged, mask & False)):
    assert np.isnan(back.refocus_gain(values, tagged & False | inside, counted))


def plain(stage):
  """Shares of picture, question and answer, in loops over dense maps."""
  start = stage.prompt.tokens.shape[1]
  found = np.zeros((*stage.mask.shape, 3))
  for p, g, t in np.argwhere(stage.mask):
    seen = np.flatnonzero(np.asarray(stage.prompt.visual_index[p]) >= 0)
    for row in stage.rows[p, g, t]:
      z = row[seen[0] :].sum()
      parts = row[seen], row[seen[-1] + 2 : start], row[start:]
      found[p, g, t] += [x.sum() / z / len(stage.rows[p, g, t]) for x in parts]
  return found


def shares_of(stage):
  arguments = stage.params, stage.prompt, stage.visual, stage.tokens
  return jax.jit(attention_shares, static_argnums=0)(
    stage.scorer(), *arguments
  )[0]


@pytest.mark.full
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_equal_plain_ones_over_dense_maps(family):
  stage = looks.make(family)
  found, wanted = shares_of(stage), plain(stage)
  mask = np.asarray(stage.mask)
  np.testing.assert_allclose(found[mask], wanted[mask], atol=1e-5)
  for at, of in enumerate(("image", "question", "answer")):
    mean = back.attention_share(found, stage.prompt, stage.mask, of=of)
    for p, g in np.ndindex(mask.shape[:2]):
      part = wanted[p, g, mask[p, g], at]
      if len(part):
        np.testing.assert_allclose(mean[p, g], part.mean(), atol=1e-5)
      else:
        assert np.isnan(mean[p, g])


@pytest.mark.full
def test_gain_equals_a_plain_one_over_dense_maps():
  """Of segments that begin and end at other tokens in each answer."""
  stage = looks.make()
  tagged, wanted = np.zeros(stage.mask.shape, bool), plain(stage)[..., 0]
  gains = np.full(stage.mask.shape[:2], np.nan)
  for p, g in np.ndindex(gains.shape):
    length, first = int(stage.mask[p, g].sum()), 1 + p + g
    # Beyond the answer as well, where there is nothing.
    tagged[p, g, first : first + 5] = tagged[p, g, length + 1 :] = True
    inside = [wanted[p, g, t] for t in range(length) if first <= t < first + 5]
    outside = [wanted[p, g, t] for t in range(length) if not tagged[p, g, t]]
    if inside and outside:
      gains[p, g] = sum(inside) / len(inside) - sum(outside) / len(outside)
  found = back.refocus_gain(shares_of(stage), jnp.asarray(tagged), stage.mask)
  assert 0 < np.isnan(gains).sum() < 4
  np.testing.assert_allclose(found, gains, atol=1e-5)


@pytest.mark.full
def test_padding_never_matters():
  one, other = looks.make(), looks.make(left=4, room=5)
  found = np.where(one.mask[..., None], shares_of(one), 0)
  padded = np.where(other.mask[..., None], shares_of(other), 0)
  np.testing.assert_allclose(padded[:, :, : looks.R], found, atol=1e-5)


def test_first_stage_golden():
  """Token losses of two texts, their mean, and the mean of their means."""
  logits = jnp.array(
    [[[1, 0, -1], [0, 2, 0], [0, 0, 0]], [[3, 0, 0], [0, 0, 1], [1, 1, 1]]],
    jnp.float32,
  )
  labels = jnp.array([[0, 1, 2], [0, 0, 0]])
  mask = jnp.array([[1, 1, 1], [1, 1, 0]], bool)[:, None]
  logs = jax.nn.log_softmax(logits)
  logs = jnp.take_along_axis(logs, labels[..., None], -1)[:, None, :, 0]
  values = likelihood(logs, mask)
  wanted = [[[0.407606, 0.239545, 1.098612]], [[0.094923, 1.551445, 0]]]
  np.testing.assert_allclose(values, wanted, atol=1e-6)
  for reduction, mean in (
    (reduce.token_mean, 0.678426),
    (reduce.sequence_mean, 0.702552),
  ):
    found = reduce.total(values, reduction(mask))
    np.testing.assert_allclose(found, mean, atol=1e-6)
    assert reduce.total(values, reduction(mask & False)) == 0


def test_options_outside_their_range_are_refused():
  for spec, message in (
    ({"name": "boxed_accuracy", "compare": "exact"}, "'lenient', 'math'"),
    (
      {"name": "attention_share", "of": "text"},
      "'image', 'question', 'answer'",
    ),
  ):
    with pytest.raises(UserError, match=f"expected one of {message}"):
      build.resolve(rewards, spec, "x")
