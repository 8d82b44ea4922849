"""A run, built from its config."""

import jax
import pytest

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.train import run


@pytest.mark.full
def test_initial_state_is_bound_to_its_device():
  """As an updated one is: else the second update is compiled once more."""
  config = config_lib.get_config()
  config.shares.every = 0
  built = run.build_run(config, jax.devices()[:1])
  state = built.initial_state()
  leaves = jax.tree.leaves(state)
  assert all(leaf.committed for leaf in leaves)
  for leaf, sharding in zip(
    leaves, jax.tree.leaves(built.layout.of(state)), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert leaf.devices() == {jax.devices()[0]}


def test_a_question_without_the_right_answer_that_a_reward_reads(tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_text(
    '{"question": "q", "answer": "a"}\n{"question": "q", "answers": ["t"]}\n'
  )
  config = config_lib.get_config()
  config.data.train = {"name": "Files", "path": str(path)}
  with pytest.raises(UserError, match="config.rewards.accuracy: .*jsonl:2"):
    run.build_run(config, jax.devices()[:1])
