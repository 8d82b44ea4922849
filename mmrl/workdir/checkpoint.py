"""Checkpoints of a run with Orbax, verified by checksums."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import re
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from mmrl import storage
from mmrl.benchmarks.best import Best
from mmrl.errors import UserError, tell
from mmrl.machines import processes
from mmrl.models import parameters
from mmrl.types import PyTree
from mmrl.workdir import notes as notes_lib
from mmrl.workdir.checksums import checksums
from mmrl.workdir.sound import newest


class Checkpoints:
  """Saves and restores state and data position.

  Frozen parameters aren't saved: they are those of the model's directory. Their
  checksums are, so that a run goes on from the model that it began with.

  A checkpoint is written beside the older ones and becomes visible when it is
  complete; only then are older ones removed. It stores a checksum of every
  array and a digest of the rest, and both are verified when it is read. A
  checkpoint that disk or network have damaged is reported and renamed to
  `corrupt-STEP`, and the one before it is used. The renamed one is kept until
  damage is found again.

  The best step's checkpoint stays beside the newest ones. Each checkpoint
  stores which that was when it was saved, so that a run that resumes knows.

  All processes of a run call the same methods in the same order.

  Attributes:
    restored: step of the checkpoint restored last; None before.
    best: the best step so far, whose checkpoint isn't removed; None if there
      is none.
  """

  def __init__(
    self,
    workdir: storage.Name,
    *,
    keep: int = 1,
    read_only: bool = False,
    fault: Callable[[Mapping[str, Any]], str] | None = None,
  ):
    """Opens `workdir/checkpoints`.

    Args:
      workdir: of the run.
      keep: number of newest checkpoints to keep.
      read_only: whether to leave the folder unchanged; a run may be using it.
      fault: describes what is wrong with a state, given its fields; '' if
        nothing is. Such a state isn't saved, and one that was counts as
        damaged. None finds nothing.

    Raises:
      UserError: if it can't be written.
    """
    workdir = storage.path(workdir)
    self._remote = storage.is_remote(workdir)
    if not self._remote:
      workdir = workdir.absolute()
    self._path = workdir / "checkpoints"
    self.restored: int | None = None
    self.best: Best | None = None
    self._fault = fault or (lambda state: "")
    self._manager: Any = None  # Orbax has no types
    if read_only:
      return
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_Kept(keep, lambda: self.best),
      enable_async_checkpointing=True,
      # Removes a killed run's partial saves; in a store another may be writing.
      cleanup_tmp_directories=not self._remote,
    )
    try:
      with storage.errors(self._path):
        self._path.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self._path, options=options)
    except OSError as error:
      raise UserError(
        f"expected a writable folder at {self._path}: {error}; pass another"
        " --workdir"
      ) from error

  @property
  def latest(self) -> int | None:
    """Returns the newest completely saved step; None if there is none."""
    # Orbax's own list includes a save that failed; the folder doesn't.
    return max(self._steps(), default=None)

  def _steps(self) -> set[int]:
    if not self._path.is_dir():
      return set()
    return {
      int(folder.name)
      for folder in self._path.iterdir()
      # As `save` names them; what else is there is somebody's own.
      if re.fullmatch("[1-9][0-9]*", folder.name, re.ASCII)
      and ocp.path.step.is_path_finalized(folder)
    }

  def prepare(self, state: PyTree) -> None:
    """Compiles the programs of `save`, so that no later step has to."""
    checksums(notes_lib.leaves(vars(state)))
    self._fault(vars(state))

  def save(self, state: PyTree, data: dict[str, Any]) -> None:
    """Saves state and data position in the background.

    Raises:
      UserError: if something is wrong with the state, or this save or the one
        before it couldn't be written.
    """
    step = int(state.step)
    if wrong := self._fault(vars(state)):
      self.wait()  # An earlier save may still be under way.
      raise UserError(
        f"{wrong} after step {step}, which isn't saved: {newest(self.latest)},"
        " and the same command goes on from there. Lower the learning rate or"
        " clip_norm; where there is a checkpoint, python -m mmrl.export makes"
        " the model of it with which a new --workdir can begin"
      )
    arrays = vars(state) | {"step": np.int32(step)}
    leaves = notes_lib.leaves(arrays)
    notes = {
      "step": step,
      "data": data,
      "best": dataclasses.asdict(self.best) if self.best else None,
      "shapes": {name: notes_lib.shape(leaf) for name, leaf in leaves.items()},
      "checksums": checksums(leaves),
    }
    del arrays["frozen"]
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(arrays),
      data=ocp.args.JsonSave(notes | {"digest": notes_lib.digest(notes)}),
    )
    try:
      self._manager.save(step, args=args)
    except Exception as error:  # Orbax wraps errors of the file system.
      raise self._failed(step, error) from error

  def wait(self) -> None:
    """Waits until all saves are on disk.

    Raises:
      UserError: if one couldn't be written.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failed(None, error) from error

  def _failed(self, step: int | None, error: Exception) -> Exception:
    if (
      isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1
    ):
      return error  # Another process has ended: not an error of the disk.
    what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
    reason = " ".join(str(error).split())
    return UserError(
      f"could not write {what} to {self._path}: {reason:.200}; free some"
      f" space, then run the same command again: {newest(self.latest)}"
    )

  def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Restores the newest checkpoint that isn't damaged.

    Args:
      like: a state with the shapes, types and shardings to restore to, whatever
        devices it was saved from; leaves may be `jax.ShapeDtypeStruct`s, but
        those of `frozen`, which are kept.

    Returns:
      (state, data position).

    Raises:
      UserError: if there is none, it holds other arrays, or the state it was
        of had other frozen parameters.
    """
    wanted = notes_lib.abstract(vars(like))
    del wanted["frozen"]

    def read(folder):
      args = ocp.args.StandardRestore(wanted)
      return ocp.StandardCheckpointHandler().restore(folder, args=args)

    state, data, damaged = self._newest(read, wanted, like.frozen, self._fault)
    if damaged and self._manager is not None:
      processes.first_only(lambda: self._put_aside(damaged))
      self._manager.reload()
    self._forget_lost()
    return dataclasses.replace(like, **state), data

  def _forget_lost(self) -> None:
    """Forgets a best step whose checkpoint somebody has removed."""
    lost = self.best is not None and self.best.step not in self._steps()
    if processes.any_of(lost) and self.best is not None:
      if jax.process_index() == 0:
        tell(
          f"warning: the best checkpoint, of step {self.best.step}, isn't in"
          f" {self._path} any more; the best of the steps to come is kept"
        )
      self.best = None

  def find_best(self) -> Best:
    """Reads which step is best, as the newest readable checkpoint has it.

    Raises:
      UserError: if there is none.
    """
    steps = self._steps()
    for step in sorted(steps, reverse=True):
      # A damaged one is told of when it is restored.
      with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        best = notes_lib.best(notes_lib.read(self._path / str(step)))
        if best and best.step in steps:
          return best
        break
    raise UserError(
      f"expected a best checkpoint in {self._path}, found none; let python -m"
      " mmrl.train reach an evaluation that gives config.checkpoint.best a"
      " number, or leave out --best to have the newest"
    )

  def restore_params(
    self,
    trainable: dict[str, Any],
    frozen: dict[str, Any],
    step: int | None = None,
  ) -> PyTree:
    """Restores the model's nested parameters from a checkpoint.

    Args:
      trainable: shapes, types and shardings, as `partition` splits them.
      frozen: the other parameters, of the run's model.
      step: of the checkpoint; the newest that isn't damaged if None.

    Raises:
      UserError: if there is none, or it is of other parameters.
    """
    wanted = notes_lib.abstract({"trainable": trainable})

    def read(folder):
      args = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      )
      return ocp.PyTreeCheckpointHandler().restore(folder, args=args)

    parts, _, _ = self._newest(read, wanted, frozen, only=step)
    return parameters.merge(parts["trainable"], frozen)

  def _newest(
    self,
    read: Callable[[epath.Path], PyTree],
    wanted: PyTree,
    frozen: Mapping[str, Any],
    fault: Callable[[PyTree], str] = lambda tree: "",
    only: int | None = None,
  ) -> tuple[PyTree, dict[str, Any], list[int]]:
    """Reads checkpoints, from the newest back, until one is undamaged.

    Args:
      read: reads arrays from a checkpoint's folder `state`.
      wanted: their shapes.
      frozen: frozen parameters, which must be those that it was saved beside.
      fault: see `__init__`.
      only: the one step to read; any if None.

    Returns:
      (arrays, data position, steps of the damaged ones).
    """
    damaged: dict[int, str] = {}
    while True:
      # All processes must try the same step, whatever each one's folder shows.
      there = self._steps() & ({only} if only else self._steps())
      newest = np.int32(max(there - set(damaged), default=-1))
      step = int(multihost_utils.broadcast_one_to_all(newest))
      if step < 0:
        break
      tree, notes, reason = self._attempt(step, read, wanted, frozen)
      if reason := reason or fault(tree):
        damaged[step] = reason
        continue
      self.restored, self.best = step, notes_lib.best(notes)
      if jax.process_index() == 0:
        for other, reason in damaged.items():
          tell(
            f"warning: the checkpoint of step {other} in {self._path} is"
            f" damaged ({reason}); the one before it, of step {step}, is used"
          )
      return tree, notes["data"], list(damaged)
    if not damaged:
      raise UserError(
        f"expected a checkpoint in {self._path}, found none; let python -m"
        " mmrl.train reach its first one"
      )
    found = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
    do = "leave out --best" if only else "begin anew with another --workdir"
    raise UserError(
      f"expected a whole checkpoint in {self._path}, found only damaged ones"
      f" ({found:.400}); put back a copy of that folder, or {do}"
    )

  def _attempt(
    self,
    step: int,
    read: Callable[[epath.Path], PyTree],
    wanted: PyTree,
    frozen: Mapping[str, Any],
  ) -> tuple[PyTree, dict[str, Any], str]:
    """Reads one checkpoint: (arrays, notes, damage; '' if none)."""
    folder, reason, notes = self._path / str(step), "", {}
    tree: PyTree = None
    try:
      notes = notes_lib.read(folder)
      notes_lib.check_same(
        folder, {**wanted, "frozen": frozen}, notes["shapes"]
      )
      tree = read(folder / "state")
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
      raise
    except (
      Exception
    ) as error:  # Orbax and TensorStore raise errors of any kind.
      cause: BaseException = error
      while cause.__cause__ is not None:
        cause = cause.__cause__
      reason = f"{type(cause).__name__}: {' '.join(str(cause).split()):.150}"
    # Checksums run on all processes, so each must have read its part.
    if processes.mean({"damaged": float(bool(reason))})["damaged"] > 0:
      return None, {}, reason or "another process could not read it"
    notes_lib.check_frozen(folder, frozen, notes["checksums"])
    found = checksums(notes_lib.leaves(tree))
    wrong = [k for k, v in found.items() if notes["checksums"][k] != v]
    if "step" in tree and int(tree["step"]) != step:
      wrong.append("step")
    if wrong:
      reason = f"{len(wrong)} arrays differ from their checksums: {wrong[0]}"
    return tree, notes, reason

  def _put_aside(self, damaged: list[int]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again.

    Those renamed earlier are deleted: they never need more space than `keep`
    checkpoints.
    """
    try:
      with storage.errors(self._path):
        for folder in list(self._path.iterdir()):
          if folder.name.startswith("corrupt-"):
            folder.rmtree()
        for step in damaged:
          (self._path / str(step)).rename(self._path / f"corrupt-{step}")
    except OSError as error:
      raise UserError(
        f"could not rename the damaged checkpoints of {self._path} to"
        f" corrupt-STEP: {error.strerror or error}; delete them yourself"
      ) from error

  def close(self) -> None:
    """Waits for pending saves and frees the manager's threads."""
    if self._manager is not None:
      self._manager.close()


class _Kept:
  """Orbax's policy for what stays: the newest checkpoints, and the best.

  Orbax removes others once a newer one is complete.
  """

  def __init__(self, keep: int, best: Callable[[], Best | None]):
    self._keep, self._best = keep, best

  def should_preserve(self, checkpoints: Sequence[Any], **_) -> list[bool]:
    """Tells of each checkpoint, from the oldest on, whether it stays."""
    best = self._best()
    older = len(checkpoints) - self._keep
    return [
      number >= older or (best is not None and one.step == best.step)
      for number, one in enumerate(checkpoints)
    ]
