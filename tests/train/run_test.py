"""A run, built from its config."""

import jax

from mmrl.train import defaults, run


def test_initial_state_is_bound_to_its_device():
  """As an updated one is: else the second update is compiled once more."""
  built = run.build_run(defaults.get_config())
  state = built.initial_state()
  leaves = jax.tree.leaves(state)
  assert all(leaf.committed for leaf in leaves)
  assert {leaf.sharding for leaf in leaves} == {
    jax.sharding.SingleDeviceSharding(jax.devices()[0])
  }
