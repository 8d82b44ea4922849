"""Checkpoints survive what happens to disks."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.train import checkpoint, defaults
from mmrl.train.step import State


def make_state(step, size=8):
  key = jax.random.fold_in(jax.random.key(0), step)
  return State(
    step=jnp.asarray(step, jnp.int32),
    trainable={"text/a": jax.random.normal(key, (size, 4))},
    frozen={"vision/b": jnp.ones(3, jnp.bfloat16)},
    optimizer=({"mu": jnp.full(4, step, jnp.float32)}, ()),
  )


def test_restores_the_newest_bit_for_bit(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3):
    saved.save(make_state(step), {"next_index": step})
  saved.wait()
  saved.close()
  opened = checkpoint.Checkpoints(tmp_path, keep=2)
  assert opened.latest == 3
  state, data = opened.restore(make_state(0))
  jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
  assert state.frozen["vision/b"].dtype == jnp.bfloat16
  assert data == {"next_index": 3}
  kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"2", "3"}
  opened.close()


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
  """A limit on file size stands for the disk: writes fail half-way."""
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  saved.save(make_state(1, 4096), {"next_index": 1})
  saved.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
  try:
    with pytest.raises(UserError, match="could not write .*from step 1"):
      saved.save(make_state(2, 4096), {"next_index": 2})
      saved.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  opened = checkpoint.Checkpoints(tmp_path, keep=1)
  state, data = opened.restore(make_state(0, 4096))
  assert opened.latest == 1 and data == {"next_index": 1}
  jax.tree.map(np.testing.assert_array_equal, state, make_state(1, 4096))


def test_workdir_of_another_config(tmp_path):
  config = defaults.get_config()
  checkpoint.claim(tmp_path, config)
  checkpoint.claim(tmp_path, config)
  config.train.steps = 7
  with pytest.raises(
    UserError, match='belongs to .*another config.*"steps": 7'
  ):
    checkpoint.claim(tmp_path, config)


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="writable --workdir"):
    checkpoint.claim(tmp_path / "file", defaults.get_config())
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(UserError, match="writable folder"):
    checkpoint.Checkpoints(tmp_path, keep=1)
