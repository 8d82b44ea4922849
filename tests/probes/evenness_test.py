"""How evenly answers attend to visual tokens: golden values."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import compiled, marked_prompt

from mmrl.benchmarks import greedy
from mmrl.probes import evenness

visual_entropy = compiled(evenness.visual_entropy)


def test_entropy_golden():
  """Of tokens 1 to 4 of five, and two answer keys: what is on others is out."""
  rows = np.array(
    [
      [0.4, 0.1, 0.1, 0.1, 0.1, 0.2, 0.0],  # even: 1
      [0.5, 0.0, 0.3, 0.0, 0.0, 0.1, 0.1],  # one of them: 0
      [0.1, 0.2, 0.2, 0.0, 0.0, 0.1, 0.4],  # two of four: 1/2
      [0.9, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0],  # none: doesn't count
    ],
    np.float32,
  )
  attention = jnp.asarray(np.stack([rows, rows])[:, None])
  prompt = marked_prompt([[0, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
  mask = np.ones((2, 1, 4), bool)
  found = visual_entropy(attention, prompt, jnp.asarray(mask))
  assert float(found[0]) == pytest.approx(0.5, abs=1e-6)
  # (0.8, 0.2), (1, 0), (1/3, 2/3), (1, 0), each over log 2.
  assert float(found[1]) == pytest.approx((0.721928 + 0.918296) / 4, abs=1e-6)
  mask[:, :, 0] = False
  found = visual_entropy(attention, prompt, jnp.asarray(mask))
  assert float(found[0]) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("visual", [[0, 0, 0], [0, 1, 0]])
def test_without_two_visual_tokens_there_is_no_entropy(visual):
  attention = jnp.full((1, 1, 2, 5), 0.2)
  mask = jnp.ones((1, 1, 2), bool)
  assert np.isnan(
    visual_entropy(attention, marked_prompt([visual]), mask)
  ).all()


def test_border_golden():
  """Of 3 x 4 tokens ten are on the border, in every frame of a video."""
  cells = np.ones((2, 3, 4))
  assert greedy.border(cells) == pytest.approx(10 / 12)
  cells[:, 1, 1] = 11
  assert greedy.border(cells) == pytest.approx(10 / 22)


@pytest.mark.parametrize(
  "cells", [np.zeros(0), np.ones((1, 2, 5)), np.zeros((1, 3, 3))]
)
def test_nothing_inside_has_no_border(cells):
  assert np.isnan(greedy.border(cells))
