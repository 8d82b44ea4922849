"""Checkpoints of a run with Orbax, and the guard of its working directory."""

import difflib
import json
import pathlib
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

from mmrl.errors import UserError
from mmrl.train import optimizer
from mmrl.train.step import State
from mmrl.types import PyTree


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Makes a working directory a run's own, or checks that it is.

  Raises:
    UserError: if it can't be written, or belongs to another config.
  """
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      path.write_text(text)
      return
    found = path.read_text()
  except OSError as error:
    raise UserError(
      f"expected a writable --workdir, found {workdir}: {error.strerror}; pass"
      " another directory"
    ) from error
  if found != text:
    changes = difflib.unified_diff(
      found.splitlines(), text.splitlines(), n=0, lineterm=""
    )
    lines = [
      " ".join(c.split()) for c in changes if c[:3] not in ("---", "+++")
    ]
    shown = "; ".join(line for line in lines if not line.startswith("@@"))
    raise UserError(
      f"{workdir} belongs to a run with another config ({shown:.300}); pass a"
      " new --workdir, or the config it began with"
    )


class Checkpoints:
  """Saves and restores state and data position.

  A save is written beside the older ones and becomes visible when it is
  whole; only then are older ones removed.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int):
    """Opens `workdir/checkpoints`, of which the newest `keep` are kept."""
    self._path = workdir.absolute() / "checkpoints"
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, enable_async_checkpointing=True
    )
    try:
      self._path.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(self._path, options=options)
    except OSError as error:
      raise UserError(
        f"expected a writable folder at {self._path}: {error}; pass another"
        " --workdir"
      ) from error

  @property
  def latest(self) -> int | None:
    """Newest step that is whole on disk."""
    # Orbax's own list counts a save that failed; the folder doesn't.
    return max(self._manager.all_steps(read=True), default=None)

  def save(self, state: State, data: dict[str, Any]) -> None:
    """Saves state and data position in the background.

    Raises:
      UserError: if this save or the one before it couldn't be written.
    """
    step = int(state.step)
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(vars(state)), data=ocp.args.JsonSave(data)
    )
    try:
      self._manager.save(step, args=args)
    except Exception as error:  # Orbax wraps what the file system says.
      raise self._failed(step, error) from error

  def wait(self) -> None:
    """Waits until what was saved is on disk.

    Raises:
      UserError: if it couldn't be written.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failed(None, error) from error

  def _failed(self, step: int | None, error: Exception) -> UserError:
    what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
    reason = " ".join(str(error).split())
    return UserError(
      f"could not write {what} to {self._path}: {reason:.200}; free some"
      f" space, then run the same command again: it resumes from step"
      f" {self.latest or 0}"
    )

  def restore(self, like: State) -> tuple[State, dict[str, Any]]:
    """The newest checkpoint.

    Args:
      like: a state with the shapes, types and placement to restore to.

    Returns:
      (state, data position).
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, vars(like))
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
    )
    restored = self._manager.restore(self.latest, args=args)
    return State(**restored.state), restored.data

  def restore_params(
    self, trainable: dict[str, Any], frozen: dict[str, Any]
  ) -> PyTree:
    """The model's parameters of the newest checkpoint, nested.

    Args:
      trainable, frozen: shapes, types and placement, as `partition` splits
        them.

    Raises:
      UserError: if the checkpoint holds other parameters.
    """
    wanted = {"trainable": trainable, "frozen": frozen}
    folder = self._path / str(self.latest) / "state"
    stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    for part, leaves in wanted.items():
      ours, theirs = (
        {path: tuple(leaf.shape) for path, leaf in found.items()}
        for found in (leaves, stored[part])
      )
      if ours != theirs:
        path, _ = min(ours.items() ^ theirs.items())
        raise UserError(
          f"{folder}: expected the parameters of the run's config.json and its"
          f" model, found {path} in shape {theirs.get(path)} instead of"
          f" {ours.get(path)}; restore the config and model of the run"
        )
    args = ocp.args.PyTreeRestore(
      item=wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=True,
    )
    restored = self._manager.restore(
      self.latest, args=ocp.args.Composite(state=args)
    )
    return optimizer.merge(
      restored.state["trainable"], restored.state["frozen"]
    )

  def close(self) -> None:
    """Waits and frees the manager's threads."""
    self._manager.close()
