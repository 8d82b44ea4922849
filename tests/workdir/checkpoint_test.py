"""Checkpoints survive what happens to disks, and to processes."""

import dataclasses
import json
import shutil
import subprocess
import sys

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest
import runs
from runs import full_disk
import small_models

from mmrl.benchmarks.best import Best
from mmrl.errors import UserError
from mmrl.train.state import State, start_average
from mmrl.workdir import checkpoint


def make_state(step, size=8):
  key = jax.random.fold_in(jax.random.key(0), step)
  trainable = {"text/a": jax.random.normal(key, (size, 4))}
  return State(
    step=jnp.asarray(step, jnp.int32),
    trainable=trainable,
    frozen={"vision/b": jnp.ones(3, jnp.bfloat16)},
    optimizer=({"mu": jnp.full(4, step, jnp.float32)}, ()),
    running={"term": {"mean": jnp.full(2, step, jnp.float32)}},
    averages={"slow": start_average(jax.tree.map(lambda x: -x, trainable))},
    norms={},
  )


def save(path, *states, keep=3):
  saved = checkpoint.Checkpoints(path, keep=keep)
  for state in states:
    saved.save(state, {"next_index": int(state.step)})
    saved.wait()
  saved.close()


def restore(path, like, **options):
  """What a fresh reader finds: (state, position, its step)."""
  opened = checkpoint.Checkpoints(path, **{"keep": 3} | options)
  state, data = opened.restore(like)
  opened.close()
  return state, data, opened.restored


def assert_same(one, other):
  def check(x, y):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert x.tobytes() == y.tobytes()

  jax.tree.map(check, one, other)


def test_restores_the_newest_bit_for_bit(tmp_path):
  saved = checkpoint.Checkpoints(epath.Path(tmp_path), keep=2)
  for step in (1, 2, 3):
    saved.save(make_state(step), {"next_index": step})
  saved.wait()
  saved.close()
  state, data, step = restore(tmp_path, make_state(0), keep=2)
  assert_same(state, make_state(3))
  assert state.frozen["vision/b"].dtype == jnp.bfloat16
  assert data == {"next_index": 3} and step == 3
  assert names(tmp_path) == {"2", "3"}


def test_frozen_parameters_are_not_saved_again(tmp_path):
  """A large model's checkpoint has the size of what trains."""
  state = make_state(2)
  frozen = {"text/base": jnp.arange(2**16, dtype=jnp.float32) % 7}
  save(tmp_path, dataclasses.replace(state, frozen=frozen))
  files = (tmp_path / "checkpoints").rglob("*")
  assert sum(f.stat().st_size for f in files if f.is_file()) < 2**16
  like = dataclasses.replace(make_state(0), frozen=frozen)
  restored, _, _ = restore(tmp_path, like)
  assert_same(restored, dataclasses.replace(state, frozen=frozen))
  assert restored.frozen["text/base"] is frozen["text/base"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_goes_on_from_the_model_that_it_began_with(tmp_path, whole):
  """One bit of it is another one; this is no damage of the checkpoint."""
  state = make_state(2)
  save(tmp_path, state)
  other = {"vision/b": state.frozen["vision/b"].at[1].add(2**-7)}
  with pytest.raises(
    UserError, match="other values in 1 of 1, vision/b first; put that model"
  ) as error:
    if whole:
      restore(tmp_path, dataclasses.replace(state, frozen=other))
    else:
      opened = checkpoint.Checkpoints(tmp_path, read_only=True)
      opened.restore_params(state.trainable, other)
  assert "\n" not in str(error.value)
  assert names(tmp_path) == {"2"}


def names(path):
  return {p.name for p in (path / "checkpoints").iterdir()}


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
  """A limit on file size stands for the disk: writes fail half-way."""
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  saved.save(make_state(1, 4096), {"next_index": 1})
  saved.wait()
  with full_disk(8192), pytest.raises(UserError, match="write .* is of step 1"):
    saved.save(make_state(2, 4096), {"next_index": 2})
    saved.wait()
  state, data, step = restore(tmp_path, make_state(0, 4096), keep=1)
  assert step == 1 and data == {"next_index": 1}
  assert_same(state, make_state(1, 4096))


# The best step.


def save_as_best(path, best, steps, keep=1):
  """Saves these steps; `best` has the best one so far where that changes."""
  saved = checkpoint.Checkpoints(path, keep=keep)
  for step in steps:
    saved.best = best.get(step, saved.best)
    saved.save(make_state(step), {"next_index": step})
  saved.wait()
  saved.close()


def test_the_best_stays_until_another_is(tmp_path):
  save_as_best(tmp_path, {2: Best(2, 0.5)}, (1, 2, 3, 4))
  assert names(tmp_path) == {"2", "4"}
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  assert saved.best is None
  saved.restore(make_state(0))
  assert saved.best == Best(2, 0.5) == saved.find_best()
  saved.save(make_state(5), {"next_index": 5})
  saved.wait()
  assert names(tmp_path) == {"2", "5"}
  saved.best = Best(6, 0.75)
  for step in (6, 7):
    saved.save(make_state(step), {"next_index": step})
  saved.wait()
  saved.close()
  assert names(tmp_path) == {"6", "7"}


def test_the_best_survives_a_full_disk_and_odd_folders(tmp_path):
  save_as_best(tmp_path, {1: Best(1, 0.5)}, (1, 2))
  odd = tmp_path / "checkpoints" / "best"
  odd.mkdir()
  (odd / "mine").write_text("kept")
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  saved.restore(make_state(0))
  saved.best = Best(3, 0.75)
  with full_disk(64), pytest.raises(UserError, match="the newest .* of step 2"):
    saved.save(make_state(3), {"next_index": 3})
    saved.wait()
  opened = checkpoint.Checkpoints(tmp_path, keep=1)
  state, _ = opened.restore(make_state(0))
  assert int(state.step) == 2 and opened.best == Best(1, 0.5)
  opened.best = Best(3, 0.75)
  opened.save(make_state(3), {"next_index": 3})
  opened.wait()
  opened.close()
  assert names(tmp_path) == {"3", "best"}
  assert (odd / "mine").read_text() == "kept"


def test_a_best_one_that_is_gone_is_told_of_and_forgotten(tmp_path, capsys):
  save_as_best(tmp_path, {1: Best(1, 0.5)}, (1, 2))
  shutil.rmtree(tmp_path / "checkpoints" / "1")
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  saved.restore(make_state(0))
  assert saved.best is None
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: the best checkpoint, of step 1, isn't in")
  with pytest.raises(UserError, match="expected a best checkpoint .*leave out"):
    saved.find_best()
  saved.close()


def test_parameters_of_the_best(tmp_path):
  """Or none at all, where they are damaged."""
  save_as_best(tmp_path, {1: Best(1, 0.5)}, (1, 2))
  like = make_state(0)
  opened = checkpoint.Checkpoints(tmp_path, read_only=True)
  best = opened.find_best()
  found = opened.restore_params(like.trainable, like.frozen, best.step)
  wanted = make_state(1).trainable["text/a"]
  np.testing.assert_array_equal(found["text"]["a"], wanted)
  assert opened.restored == 1
  spoil(tmp_path, 1)
  with pytest.raises(UserError, match="only damaged ones .*leave out --best"):
    opened.restore_params(like.trainable, like.frozen, best.step)


def mesh(count):
  return Mesh(np.array(jax.devices()[:count]), ("fsdp",))


def placed(state, count):
  """Sharded over `count` devices; what can't be divided is on all of them."""

  def place(x):
    spec = PartitionSpec("fsdp" if x.ndim and x.shape[0] % count == 0 else None)
    return jax.device_put(
      x, NamedSharding(mesh(count), spec if x.ndim else P())
    )

  return jax.tree.map(place, state)


P = PartitionSpec


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("abstract", [False, True])
def test_restores_on_another_number_of_devices(tmp_path, count, abstract):
  wanted = placed(make_state(4, 64), 8)
  save(tmp_path, wanted)
  like = placed(make_state(0, 64), count)
  if abstract:
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      like,
    )
    like = dataclasses.replace(shapes, frozen=like.frozen)
  state, _, _ = restore(tmp_path, like)
  assert_same(state, wanted)
  assert len(state.trainable["text/a"].sharding.device_set) == count
  for array, other in zip(
    jax.tree.leaves(state), jax.tree.leaves(like), strict=True
  ):
    assert array.sharding == other.sharding
  # A step counter that nobody placed joins the mesh: on the first device it
  # would fit to no program over all.
  like = dataclasses.replace(like, step=jnp.zeros((), jnp.int32))
  state, _, _ = restore(tmp_path, like)
  assert len(state.step.sharding.device_set) == count


# Damage.

# The whole checkpoint is of step 3, the damaged one of step 5. An array of this
# many rows is large enough for a file of its own.
REAL, SIZE = 5, 1024


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A directory with checkpoints of steps 3 and 5."""
  path = tmp_path_factory.mktemp("two")
  save(path, make_state(3, SIZE), make_state(REAL, SIZE))
  return path


@pytest.fixture
def copy(two, tmp_path):
  """The same, to be damaged."""
  return shutil.copytree(two, tmp_path / "copy")


def spoil(path, step=REAL):
  empty(path / "checkpoints" / str(step) / "data" / "metadata")


def files(path):
  folder = path / "checkpoints" / str(REAL)
  return sorted(
    str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()
  )


def truncate(file):
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])


def empty(file):
  file.write_bytes(b"")


def flip(file):
  """Turns over a bit in the middle of every 16 bytes."""
  content = bytearray(file.read_bytes())
  for i in range(min(8, len(content) - 1), len(content), 16):
    content[i] ^= 4
  file.write_bytes(bytes(content))


def flip_one(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(bytes(content))


def remove(file):
  file.unlink()


@pytest.mark.parametrize(
  "damage", small_models.first(flip_one, remove, truncate, empty, flip)
)
def test_damage_to_any_file(two, tmp_path, capsys, damage):
  """It changes nothing, or it is reported and the one before it is used.

  Some of Orbax's files say twice what others say, or nothing that is read.
  """
  reported = set()
  for number, name in enumerate(files(two)):
    path = shutil.copytree(two, tmp_path / str(number))
    file = path / "checkpoints" / str(REAL) / name
    before = file.read_bytes()
    damage(file)
    assert not file.exists() or file.read_bytes() != before, name
    state, data, step = restore(path, make_state(0, SIZE))
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.startswith("warning")]
    if step == REAL:
      assert not lines, name
      assert_same(state, make_state(REAL, SIZE))
    else:
      reported.add(name)
      assert len(lines) == 1 and step == 3, name
      assert "step 5" in lines[0] and "one before it, of step 3" in lines[0]
      assert_same(state, make_state(3, SIZE))
      assert (path / "checkpoints" / "corrupt-5").is_dir()
    assert data == {"next_index": step}
  # A file of arrays that was superseded before the save was over may go.
  assert {"data/metadata", "state/manifest.ocdbt"} <= reported
  for folder in ("state/d/", "state/ocdbt.process_0/d/"):
    assert any(name.startswith(folder) for name in reported), reported


def position(text):
  return lambda folder: (folder / "data" / "metadata").write_text(text)


def another_position(folder):
  """It still is JSON, and would let the run go on elsewhere."""
  file = folder / "data" / "metadata"
  text = file.read_text()
  assert text.count('"next_index": 5') == 1
  file.write_text(text.replace('"next_index": 5', '"next_index": 4'))


def arrays_of_another_step(folder):
  """Every file is whole, but they don't belong together."""
  shutil.rmtree(folder / "state")
  shutil.copytree(folder.parent / "3" / "state", folder / "state")


@pytest.mark.parametrize(
  "damage, message",
  [
    *[
      (lambda folder, part=part: shutil.rmtree(folder / part), "")
      for part in ("state", "data", "state/d")
    ],
    *[
      (position(text), "")
      for text in ("", "[]", "{}", "{", "null", '{"digest": 1}', '{"step": 5}')
    ],
    (another_position, ""),
    (arrays_of_another_step, "checksums: averages/slow/values/text/a"),
  ],
)
def test_damage_is_told_and_the_one_before_used(copy, capsys, damage, message):
  damage(copy / "checkpoints" / str(REAL))
  state, data, step = restore(copy, make_state(0, SIZE))
  assert_same(state, make_state(3, SIZE))
  assert data == {"next_index": 3} and step == 3
  told = capsys.readouterr().err
  assert told.count("warning: ") == 1 and message in told


def test_the_step_is_saved_again(copy):
  """What was damaged doesn't stand in the way, not even twice."""
  for _ in range(2):
    spoil(copy)
    opened = checkpoint.Checkpoints(copy, keep=3)
    state, _ = opened.restore(make_state(0, SIZE))
    assert opened.latest == int(state.step) == 3
    for step in (4, REAL):
      opened.save(make_state(step, SIZE), {"next_index": 10 + step})
      opened.wait()
    opened.close()
    state, data, step = restore(copy, make_state(0, SIZE))
    assert step == REAL and data == {"next_index": 10 + REAL}
    assert_same(state, make_state(REAL, SIZE))
    shutil.rmtree(copy / "checkpoints" / "4")


def test_what_was_put_aside_goes_the_next_time(copy):
  """Damage again and again fills no disk."""
  for step in (REAL, REAL + 1, REAL + 2):
    save(copy, make_state(step, SIZE))
    spoil(copy, step)
    restore(copy, make_state(0, SIZE))
    assert names(copy) == {"3", f"corrupt-{step}"}


def test_only_damaged_ones(copy, capsys):
  for step in (3, REAL):
    spoil(copy, step)
  with pytest.raises(
    UserError, match="only damaged ones .*step 5.*step 3.*put"
  ):
    restore(copy, make_state(0, SIZE))
  assert "warning" not in capsys.readouterr().err
  assert names(copy) == {"3", "5"}, "nothing is put aside for nothing"


def test_another_model_is_not_damage(copy):
  with pytest.raises(
    UserError, match=r"found text/a in shape float32 \(1024, 4"
  ):
    restore(copy, make_state(0, 32))
  assert names(copy) == {"3", "5"}


def test_reading_leaves_the_folder_as_it_is(copy, capsys):
  spoil(copy)
  state = make_state(3, SIZE)
  opened = checkpoint.Checkpoints(copy, read_only=True)
  params = opened.restore_params(state.trainable, state.frozen)
  opened.close()
  assert_same(params["text"]["a"], state.trainable["text/a"])
  assert opened.restored == 3
  assert capsys.readouterr().err.count("warning: ") == 1
  assert names(copy) == {"3", "5"}


def test_no_checkpoint_to_read(tmp_path):
  opened = checkpoint.Checkpoints(tmp_path / "none", read_only=True)
  with pytest.raises(UserError, match="expected a checkpoint in .*found none"):
    opened.restore(make_state(0))
  assert not (tmp_path / "none").exists()


def test_a_half_written_save_is_cleared_away(copy):
  half = copy / "checkpoints" / "7.orbax-checkpoint-tmp"
  shutil.copytree(copy / "checkpoints" / "5", half)
  opened = checkpoint.Checkpoints(copy, keep=3)
  assert opened.latest == REAL
  opened.save(make_state(8, SIZE), {"next_index": 8})
  opened.wait()
  opened.close()
  assert not half.exists()


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(UserError, match="writable folder"):
    checkpoint.Checkpoints(tmp_path, keep=1)


def test_prepare_compiles_what_save_needs(tmp_path):
  count = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: count.append(event)
  )

  def compiled():
    return count.count("/jax/core/compile/backend_compile_duration")

  # A size that no other test has compiled for.
  state = placed(make_state(1, 56), 2)
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  before = compiled()
  saved.prepare(state)
  assert compiled() > before
  before = compiled()
  saved.save(dataclasses.replace(state, step=np.int32(1)), {})
  saved.wait()
  assert compiled() == before
  saved.close()


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize(
  "name",
  small_models.first(
    "٣", "²", "007", "-1", "5 ", "8.copy", "step_9", "notes.txt"
  ),
)
def test_what_is_not_named_as_a_step_is_left_alone(
  tmp_path, kind, name, capsys
):
  """Neither read, nor removed, nor a reason to stop."""
  save(tmp_path, make_state(3))
  own = tmp_path / "checkpoints" / name
  if kind == "folder":
    shutil.copytree(tmp_path / "checkpoints" / "3", own)
  else:
    own.write_text("mine")
  save(tmp_path, make_state(5), keep=1)
  _, data, step = restore(tmp_path, make_state(0), keep=1)
  assert step == 5 and data == {"next_index": 5}
  assert names(tmp_path) == {"5", name}
  assert "warning" not in capsys.readouterr().err


def test_a_save_that_fails_says_what_there_is(tmp_path):
  """No step 0 that never was."""
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  with full_disk(8192), pytest.raises(UserError, match="no checkpoint yet"):
    saved.save(make_state(2, 4096), {"next_index": 2})
    saved.wait()


# Several processes.

LATE = """
import asyncio, gc, logging

from mmrl import commands

loop = asyncio.new_event_loop()
loop.close()

class Late:
  def __del__(self):
    loop.call_soon_threadsafe(print)

class Fault:
  def __del__(self):
    raise ValueError("a fault of ours")

def main():
  Late()
  logging.getLogger("asyncio").error("Task exception was never retrieved")
  Fault()

commands.run(main, required=())
"""


@pytest.mark.full
def test_what_a_damaged_file_leaves_behind_is_not_told():
  """Other threads of Orbax's read find their event loop closed, now or then."""
  done = subprocess.run(
    [sys.executable, "-c", LATE], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "a fault of ours" in done.stderr
  assert "never retrieved" not in done.stderr
  assert "closed" not in done.stderr


MEMBER = """
import pathlib, sys

from absl import flags
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from mmrl import commands, storage
from mmrl.machines import processes
from mmrl.workdir import checkpoint, log
from mmrl.train.state import State

flags.FLAGS(sys.argv)
processes.join(
  commands.COORDINATOR.value, commands.PROCESSES.value, commands.PROCESS.value
)
mesh = Mesh(np.array(jax.devices()), ("fsdp",))
where = NamedSharding(mesh, PartitionSpec("fsdp"))

def make(step):
  values = np.random.default_rng(step).normal(size=(4096, 4))
  array = jax.make_array_from_callback(
    values.shape, where, lambda part: values[part].astype(np.float32)
  )
  return State(np.int32(step), {"text/a": array}, {}, (), {}, {}, {})

def same(state):
  found = state.trainable["text/a"]
  values = make(int(state.step)).trainable["text/a"].addressable_shards[0].data
  np.testing.assert_array_equal(found.addressable_shards[0].data, values)

index, path = jax.process_index(), pathlib.Path(commands.WORKDIR.value)
saved = checkpoint.Checkpoints(path, keep=3)
for step in (1, 2, 3):
  saved.save(make(step), {"next_index": step})
  saved.wait()
saved.close()
if index == 0:
  (path / "checkpoints/3/data/metadata").write_text("{}")
  # What only the second process has written and reads.
  for file in (path / "checkpoints/2/state/ocdbt.process_1/d").iterdir():
    file.write_bytes(file.read_bytes()[:9])
multihost_utils.sync_global_devices("damaged")
opened = checkpoint.Checkpoints(path, keep=3)
state, data = opened.restore(make(0))
same(state)
assert opened.restored == data["next_index"] == 1
opened.save(make(2), {"next_index": 22})
opened.wait()
opened.close()
again = checkpoint.Checkpoints(path, keep=3)
state, data = again.restore(make(0))
same(state)
assert again.restored == 2 and data["next_index"] == 22
again.close()
storage.write_text(path / "who.txt", str(index))
written = log.Log(path, step=2)
written.write(3, {"process": index})
written.close()
multihost_utils.sync_global_devices("written")
print("DONE", len(jax.devices()))
"""


@pytest.mark.full
def test_two_processes(tmp_path):
  """They agree on what is damaged, and one of them writes plain files."""
  path = tmp_path / "run"
  path.mkdir()
  done = runs.finish(
    runs.make_folder(tmp_path),
    path,
    2,
    program=("-c", MEMBER),
    flags="--xla_force_host_platform_device_count=2",
  )
  for index, text in enumerate(done.errors()):
    assert "DONE 4" in done.output(index)
    assert text.count("warning: the checkpoint") == (0 if index else 2)
  assert names(path) == {"1", "2", "corrupt-2", "corrupt-3"}
  assert (path / "who.txt").read_text() == "0"
  (row,) = (path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(row) == {"step": 3, "process": 0}
