"""Tests of the reward of an answer's length."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import build, rewards
from mmrl.advantages import group_normalised
from mmrl.errors import UserError
from mmrl.rewards import length, length_window


@pytest.mark.parametrize(
  ("tokens", "expected"),
  [
    (0, 0),
    (100, 0),
    (16384, 0),  # 20480 - 4096: the buffer begins
    (16385, -1 / 4096),
    (18432, -0.5),
    (20480, -1),
    (20481, -1),
    (99999, -1),
  ],
)
def test_golden(tokens, expected):
  value = length.soft_overlong(
    jnp.array([[tokens]]), longest=20480, buffer=4096
  )
  assert value == expected and value.dtype == jnp.float32


def test_the_buffer_may_be_all_of_the_length():
  value = length.soft_overlong(jnp.array([[1]]), longest=10, buffer=10)
  assert value == np.float32(-0.1)


@pytest.mark.parametrize("buffer", [0, -1, 11])
def test_buffer_outside_its_range_is_refused(buffer):
  message = rf"in \[1, longest\], got buffer={buffer}, longest=10"
  with pytest.raises(ValueError, match=message):
    length.soft_overlong(jnp.array([[5]]), longest=10, buffer=buffer)


@pytest.mark.parametrize(
  "count, wanted",
  [
    *((0, 0), (1, 0.01), (30, 0.3), (59, 0.59), (60, 1), (80, 1), (100, 1)),
    *((101, 0.594059), (110, 0.545455), (200, 0.3)),
  ],
)
def test_window_golden(count, wanted):
  found = length_window([["x <answer>B</answer>"]], np.array([[count]]))
  np.testing.assert_allclose(found, [[wanted]], atol=1e-6)


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("B", 0),
    ("<answer>B", 0),
    ("<answer>A</answer> hm <answer>B</answer>", 1),
    ("<answer>A</answer> hm <answer>B", 0),
    ("</answer><answer>B</answer> tail", 1),
    ("<answer></answer>", 1),
  ],
)
def test_window_wants_the_last_block_closed(text, wanted):
  assert length_window([[text]], np.array([[80]])).tolist() == [[wanted]]


@pytest.mark.parametrize(
  "options", [{"low": 0}, {"low": 101}, {"outside": 1.5}, {"outside": -0.1}]
)
def test_window_refuses(options):
  with pytest.raises(
    UserError, match="x: expected 0 < low <= high and outside"
  ):
    build.resolve(rewards, {"name": "length_window", **options}, "x")


def test_window_takes_any_text():
  rng = np.random.default_rng(0)
  pieces = [
    "<answer>",
    "</answer>",
    "<",
    ">",
    "\\boxed{",
    "}",
    "é",
    "\0",
    "a b",
  ]
  for _ in range(1000):
    text = "".join(rng.choice(pieces, rng.integers(0, 12)))
    ((found,),) = length_window([[text]], np.array([[70]]))
    assert found in (0, 1)


def test_sayos_total_and_advantages_golden():
  """r_v + r_f of four answers, with epsilon 1e-4."""
  looks = np.float32([[0.8, 0.6, -0.2, 0.1]])
  window = np.float32([[1, 0.594059, 1, 0]])
  found = group_normalised(jnp.asarray(looks + window), epsilon=1e-4)
  np.testing.assert_allclose(
    found, [[1.159100, 0.309301, -0.243345, -1.225056]], atol=2e-6
  )
