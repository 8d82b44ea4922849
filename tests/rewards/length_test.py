"""Tests of the reward of an answer's length."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.rewards import length


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
