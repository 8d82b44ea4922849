"""Tests of preference losses: numbers by hand, options, and TRL's numbers."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import compiled

from losses import preferences
from mmrl.errors import UserError
from mmrl.losses import preference

PATH = pathlib.Path(__file__).parents[1] / "testdata" / "preferences.npz"
# Two tokens and one of the first pair, one and two of the second; the second
# pair's chosen answer is its second.
MASK = jnp.array([[[1, 1], [1, 0]], [[1, 0], [1, 1]]], bool)
LOGPROBS = jnp.array([[[-1.0, -2], [-1, 9]], [[-4, 9], [-1, -1]]])
REFERENCE = jnp.array([[[-2.0, -2], [-0.5, 9]], [[-4, 9], [-1, -3]]])
CHOSEN = jnp.array([[True, False], [False, True]])
# Differences of the log-ratios: 1 - (-0.5), 2 - 0; of means 0.5 + 0.5, 1 - 0.
D, MEAN = np.array([1.5, 2.0]), np.array([1.0, 1.0])


dpo, simpo = map(compiled, (preference.dpo, preference.simpo))


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


@pytest.mark.parametrize(
  "options, expected",
  [
    ({}, -log_sigmoid(0.1 * D)),
    ({"tokens": "mean"}, -log_sigmoid(0.1 * MEAN)),
    (
      {"beta": 2.0, "label_smoothing": 0.1},
      -0.9 * log_sigmoid(2 * D) - 0.1 * log_sigmoid(-2 * D),
    ),
    (
      {"kind": "robust", "beta": 2.0, "label_smoothing": 0.1},
      (-0.9 * log_sigmoid(2 * D) + 0.1 * log_sigmoid(-2 * D)) / 0.8,
    ),
    ({"kind": "hinge", "beta": 0.6}, [0.1, 0.0]),  # 1 - 0.9, 1 - 1.2
    ({"kind": "ipo", "beta": 0.25}, [1.0, 1.0]),  # (1 - 2)^2
    ({"kind": "ipo", "beta": 0.25, "tokens": "sum"}, [0.25, 0.0]),
  ],
)
def test_dpo_by_hand(options, expected):
  found = dpo(LOGPROBS, REFERENCE, CHOSEN, MASK, **options)
  np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-7)


def test_numbers_to_log():
  found = dpo(LOGPROBS, REFERENCE, CHOSEN, MASK, beta=2.0).numbers
  expected = {
    "margin": 2 * D,
    "accuracy": [1, 1],
    "logprob_chosen": [-3, -2],
    "logprob_rejected": [-1, -4],
  }
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
  same = dpo(REFERENCE, REFERENCE, CHOSEN, MASK)
  assert not np.asarray(same.numbers["accuracy"]).any()  # a draw is not right


def test_simpo_by_hand():
  """Means -1.5 and -1; -4 and -1: d is -0.5 and 3."""
  found = simpo(LOGPROBS, CHOSEN, MASK, beta=2.0, margin=0.5)
  ahead = np.array([-1.0, 6.0])
  np.testing.assert_allclose(found.values, -log_sigmoid(ahead - 0.5), rtol=1e-5)
  np.testing.assert_allclose(found.numbers["margin"], ahead, rtol=1e-6)
  np.testing.assert_array_equal(found.numbers["accuracy"], [0, 1])


@pytest.mark.parametrize(
  "options, message",
  [
    ({"beta": 0.0}, "beta must be above 0, got 0.0"),
    ({"beta": -1.0}, "beta must be above 0, got -1.0"),
    ({"beta": float("nan")}, "beta must be above 0, got nan"),
    ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), got"),
    ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 0.5\), got"),
    (
      {"kind": "ipo", "label_smoothing": 0.1},
      "label_smoothing must be 0 for kind 'ipo', got 0.1",
    ),
    (
      {"kind": "hinge", "label_smoothing": 0.1},
      "label_smoothing must be 0 for kind 'hinge', got 0.1",
    ),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    preference.dpo(LOGPROBS, REFERENCE, CHOSEN, MASK, **options)
  if "kind" not in options:
    with pytest.raises(UserError, match=message):
      preference.simpo(LOGPROBS, CHOSEN, MASK, **options)


def test_a_margin_below_zero_and_three_answers_are_refused():
  with pytest.raises(UserError, match="margin must be at least 0, got -1"):
    preference.simpo(LOGPROBS, CHOSEN, MASK, margin=-1.0)
  three = [
    jnp.asarray(np.concatenate([x, np.asarray(x)[:, :1]], axis=1))
    for x in (LOGPROBS, CHOSEN, MASK)
  ]
  with pytest.raises(UserError, match="needs 2 answers per prompt, got 3"):
    preference.simpo(*three)


@functools.cache
def golden():
  """Inputs and TRL's results, made by testdata/make_preferences_goldens.py."""
  with np.load(PATH) as file:
    return dict(file)


@functools.cache
def found():
  names = ("logprobs", "logprobs_ref", "mask")
  inputs = {name: golden()[f"input: {name}"] for name in names}
  return jax.device_get(preferences.compute(inputs))


@pytest.mark.parametrize("name", preferences.LOSSES)
def test_goldens_of_trl(name):
  results = golden()
  preferences.check(
    {name: found()[name]},
    {name: (results[f"loss: {name}"], results[f"gradient: {name}"])},
  )


def test_every_golden_is_compared():
  theirs = {k[6:] for k in golden() if k.startswith("loss: ")}
  assert theirs == set(preferences.LOSSES)
