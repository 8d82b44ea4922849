"""Weights that read current scores, where a minibatch isn't whole."""

from contract_test import make_fields, normal
import jax
import numpy as np
import pytest

from mmrl import build, token_weights
from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.train import run as run_lib
from mmrl.train.step import reads_scores

# Options of late weights besides the defaults.
OPTIONS = {"future_kl": [{"row_filter": False}]}


def late_weights():
  provided = (*make_fields(), "key", "minibatch")
  for name in token_weights.__all__:
    for options in ({}, *OPTIONS.get(name, ())):
      spec = {"name": name, **options}
      bound = build.bind(token_weights, spec, name, provided=provided)
      if reads_scores(bound):
        yield bound


LATE = list(late_weights())


def make_data(bound: build.Bound, **options) -> dict:
  """Answers far from the behaviour policy: what may happen does."""
  fields = dict(make_fields())
  shape = fields["mask"].shape
  fields["logprobs"] = fields["logprobs_old"] + 3 * normal(*shape, seed=50)
  fields["minibatch"] = reduce.Minibatch(**options)
  return {name: fields[name] for name in bound.needs}


def in_halves(bound: build.Bound, **options):
  """The weight of each half of the prompts, side by side."""
  data = make_data(bound, **options)
  minibatch = data.pop("minibatch")
  halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), data)
  weigh = jax.vmap(
    lambda one: bound(one | {"minibatch": minibatch}), axis_name="data"
  )
  found = jax.jit(weigh)(halves)
  return found.reshape(-1, *found.shape[2:])


def whole(bound: build.Bound):
  data = make_data(bound)
  minibatch = data.pop("minibatch")
  found = jax.jit(lambda x: bound(x | {"minibatch": minibatch}))(data)
  assert len(np.unique(found)) > 2
  return found


@pytest.mark.full
@pytest.mark.parametrize("bound", LATE, ids=lambda x: f"{x.name}{x.options}")
def test_parts_have_the_weights_of_the_whole_or_are_refused(bound):
  try:
    found = in_halves(bound, parts=2)
  except UserError as error:
    message = "needs the whole minibatch, found 2 parts; set config.train.accu"
    assert message in str(error)
    # For a reason.
    assert not np.allclose(in_halves(bound), whole(bound))
    return
  np.testing.assert_array_equal(found, whole(bound))


@pytest.mark.full
@pytest.mark.parametrize("bound", LATE, ids=lambda x: f"{x.name}{x.options}")
def test_devices_have_the_weights_of_the_whole(bound):
  """Where the devices' axis has a name: `pmap` and `shard_map`."""
  found = in_halves(bound, axis_name="data")
  np.testing.assert_allclose(found, whole(bound), rtol=1e-6)


def bind(changes, **options):
  config = config_lib.get_config()
  config.token_weights.future = {"name": "future_kl", **options}
  config.shares.every = 0
  config.update_from_flattened_dict(changes)
  return run_lib.build_run(config, jax.devices()[:1])


@pytest.mark.full
@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"train.accumulate": 4},
      "row_filter needs the whole minibatch, found 4 parts; set"
      " config.train.accumulate to 1 or leave the option out",
    ),
    pytest.param(
      {"losses.policy.reduce": "sequence_mean"},
      "row_filter needs config.losses reduced by token_mean, found"
      " sequence_mean; change `reduce` or leave the option out",
      marks=pytest.mark.full,
    ),
  ],
)
def test_what_the_row_filter_cannot_count_is_refused_before_a_run(
  changes, message
):
  """Without the filter both are fine, and the KL may be reduced as it likes."""
  with pytest.raises(UserError) as error:
    bind(changes)
  assert str(error.value) == f"config.token_weights.future: {message}"
  assert bind(changes, row_filter=False)
  assert bind({"losses.kl.reduce": "sequence_mean"})
