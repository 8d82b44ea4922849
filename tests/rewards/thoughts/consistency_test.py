"""GRPO-CARE's bonus: the note's values, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import build, rewards
from mmrl.errors import UserError
from mmrl.rewards.thoughts import consistency

RIGHT = (1, 1, 0, 1)
LIKELY = (0.9, 0.4, 0.99, 0.6)


@pytest.mark.parametrize(
  ("accuracy", "likelihood", "margin", "wanted"),
  [
    (RIGHT, LIKELY, 0.0, (0.5, 0, 0, 0)),
    (RIGHT, LIKELY, 0.05, (0.5, 0, 0, 0.5)),
    # Capped before the mean, 0.762250.
    ((1, 1, 1, 1), (0.97, 0.99, 0.949, 0.2), 0.0, (0.5, 0.5, 0.5, 0)),
    ((0, 0, 0, 0), LIKELY, 0.0, (0, 0, 0, 0)),
    # Equal ones are at their mean.
    ((1, 1, 1, 0), (0.7, 0.7, 0.7, 0.9), 0.0, (0.5, 0.5, 0.5, 0)),
  ],
)
def test_golden(accuracy, likelihood, margin, wanted):
  found = consistency.bonus(
    *(jnp.array([x], jnp.float32) for x in (accuracy, likelihood)),
    coefficient=0.5,
    cap=0.95,
    margin=margin,
  )
  np.testing.assert_allclose(found, [wanted], atol=1e-7)


def test_groups_are_apart_and_tokens_are_those_of_the_block():
  logs = jnp.log(jnp.array([[[0.1, 0.9, 0.9], [0.9, 0.4, 0.4]]] * 2))
  tagged = jnp.array([[[0, 1, 1], [0, 1, 1]]] * 2, bool)
  mask = jnp.ones(tagged.shape, bool).at[1, 0, 2].set(False)
  accuracy = jnp.array([[1.0, 1.0], [1.0, 0.0]])
  found = rewards.consistency_bonus(accuracy, logs, tagged, mask)
  np.testing.assert_allclose(found, [[0.5, 0], [0.5, 0]])
  # A right answer without a token inside has none.
  tagged = tagged.at[0, 0].set(False)
  found = rewards.consistency_bonus(accuracy, logs, tagged, mask)
  np.testing.assert_allclose(found, [[0, 0.5], [0.5, 0]])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"cap": 0.0}, "cap: expected above 0 and at most 1"),
    ({"cap": 1.5}, "cap: expected above 0 and at most 1"),
    ({"margin": -0.1}, "margin: expected at least 0 and at most 1"),
    ({"coefficient": -1.0}, "coefficient: expected at least 0"),
  ],
)
def test_options_outside_of_their_range_are_refused(options, message):
  names = ["reward_accuracy", "logprobs_average", "tagged", "mask"]
  with pytest.raises(UserError, match=f"x.*{message}"):
    build.bind(
      rewards, {"name": "consistency_bonus", **options}, "x", provided=names
    )
