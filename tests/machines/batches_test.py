"""What doesn't divide is refused with sizes that do."""

import dataclasses
import re
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.machines import batches, sharding
from mmrl.machines.batches import Sizes

# Of 32 chips: 64 prompts in 4 minibatches are 16 at a time. Their answers, an
# odd number, can't be shared out.
PODS = Sizes(
  prompts=64, answers=7, data=1, fsdp=32, heads=4, minibatches=4, accumulate=1
)


def test_each_proposal_changes_one_thing():
  assert batches.changes(PODS) == [
    {"prompts": 128},
    {"minibatches": 2},
    {"data": 1, "fsdp": 16, "tensor": 2},
  ]


@pytest.mark.parametrize(
  "changed, proposals",
  [
    # Nearer below than above.
    ({"prompts": 140}, {"prompts": 128}),
    ({"prompts": 1}, {"prompts": 128}),
    # One minibatch is none fewer; its parts may be.
    ({"minibatches": 1, "accumulate": 4}, {"accumulate": 2}),
    # What each chip holds of the parameters stays as much.
    ({"data": 2, "fsdp": 16}, {"data": 2, "fsdp": 8, "tensor": 2}),
    # What shares out answers is `fsdp`.
    (
      {"answers": 8, "data": 32, "fsdp": 1},
      {"data": 16, "fsdp": 2, "tensor": 1},
    ),
    # Heads of 2 leave `tensor` no room for 4.
    ({"prompts": 32, "heads": 2}, {"minibatches": 1}),
  ],
)
def test_what_is_proposed(changed, proposals):
  assert proposals in batches.changes(dataclasses.replace(PODS, **changed))


def test_a_mesh_that_nothing_helps():
  found = batches.changes(dataclasses.replace(PODS, prompts=33, heads=1))
  assert [*map(sorted, found)] == [["prompts"]]


@pytest.mark.parametrize(
  "changed, devices",
  [
    # No more than needed: each prompt's answers on two chips.
    ({"answers": 8}, 2),
    ({"answers": 8, "prompts": 16}, 8),
    ({"answers": 8, "prompts": 128}, 1),
    # Replicas of the parameters don't share answers.
    ({"answers": 8, "data": 32, "fsdp": 1}, 0),
    ({"answers": 8, "prompts": 8}, 0),
    ({"answers": 8, "minibatches": 0}, 0),
  ],
)
def test_devices_that_share_a_prompt(changed, devices):
  found = dataclasses.replace(PODS, **changed)
  assert found.shared == max(devices, 1)
  if found.parts:
    assert found.fit == bool(devices)


SMALL = st.integers(1, 6)


@given(
  prompts=st.integers(0, 200),
  answers=SMALL,
  data=SMALL,
  fsdp=SMALL,
  tensor=SMALL,
  heads=SMALL,
  minibatches=SMALL,
  accumulate=SMALL,
)
def test_every_proposal_fits_on_as_many_devices(**sizes):
  found = Sizes(**sizes)
  shards = found.parts * found.data * found.fsdp // found.shared
  assert found.fit == (found.prompts > 0 and found.prompts % shards == 0)
  assert found.answers % found.shared == found.fsdp % found.shared == 0
  if found.fit:
    return
  for changed in batches.changes(found):
    after = dataclasses.replace(found, **changed)
    assert after.fit and changed.items() != sizes.items()
    assert (
      after.data * after.fsdp * after.tensor
      == found.data * found.fsdp * found.tensor
    )
    if after.tensor != found.tensor:
      assert after.heads % after.tensor == 0


def test_the_refusal_is_one_line_with_flags():
  with pytest.raises(UserError) as found:
    batches.check(PODS)
  assert str(found.value) == (
    "config.rollout.prompts: expected a multiple of train.minibatches x"
    " train.accumulate x 32 shards of the mesh = 4 x 1 x 32, found 64; it fits"
    " with --config.rollout.prompts=128 or --config.train.minibatches=2 or"
    " --config.mesh.data=1 --config.mesh.fsdp=16 --config.mesh.tensor=2"
  )


def test_another_model_is_told_a_mesh_of_its_own():
  sizes = Sizes(prompts=4, answers=1, data=1, fsdp=8, heads=2)
  with pytest.raises(UserError) as found:
    batches.check_mesh(sizes, "config.models.teacher.mesh")
  flags = re.findall(r"--config\.(\S+)=(\d)", str(found.value))
  assert flags == [
    ("models.teacher.mesh.data", "1"),
    ("models.teacher.mesh.fsdp", "4"),
    ("models.teacher.mesh.tensor", "2"),
  ]
  with pytest.raises(UserError, match=r"rollout.prompts, 4, found 8$"):
    sizes = dataclasses.replace(sizes, heads=1)
    batches.check_mesh(sizes, "config.models.teacher.mesh")


def test_a_group_is_in_one_process():
  sizes = dataclasses.replace(PODS, answers=8)
  process = [SimpleNamespace(process_index=i // 4) for i in range(32)]
  devices = np.array(process).reshape(1, 16, 2, 1)
  batches._check_processes(devices, sizes)
  with pytest.raises(UserError, match="in one process, found processes 0, 4;"):
    batches._check_processes(devices.reshape(1, 2, 16, 1).swapaxes(1, 2), sizes)


def test_devices_of_a_process_stand_together():
  """As on a TPU, where neighbours on the mesh are chips of several hosts."""
  process = np.array([0, 0, 1, 1, 0, 0, 1, 1]).reshape(4, 2)[[0, 1, 3, 2]]
  devices = np.array(
    [SimpleNamespace(process_index=p, id=i) for i, p in enumerate(process.flat)]
  ).reshape(4, 2)
  found = sharding._by_process(devices)
  assert [[x.id for x in row] for row in found] == [
    [0, 1],
    [6, 7],
    [2, 3],
    [4, 5],
  ]


def test_groups_that_do_not_divide():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
  rollout = SimpleNamespace(prompts=2, answers=4)
  layout = batches.layout(mesh, rollout)
  assert dict(layout.mesh.shape) == {
    **{"data": 2, "fsdp": 1},
    **{"group": 4, "tensor": 1},
  }
  assert batches.check_group(layout, 8).group == 8
  with pytest.raises(UserError, match="over the 4 devices .* found 5"):
    batches.check_group(layout, 5)
