"""Notes of a checkpoint: shapes and checksums of the arrays it was made of.

What is restored, and what it is restored beside, is checked against them.
"""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from mmrl import storage
from mmrl.benchmarks.best import Best
from mmrl.errors import UserError
from mmrl.models import parameters
from mmrl.types import PyTree
from mmrl.workdir.checksums import checksums, everywhere


def leaves(tree: PyTree) -> dict[str, Any]:
  """Returns a tree's arrays by path, without `step`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(
      {name: part for name, part in tree.items() if name != "step"}
    )[0]
  }


def shape(leaf: Any) -> str:
  """Formats type and shape of an array."""
  return f"{jnp.dtype(leaf.dtype)} {tuple(leaf.shape)}"


def digest(notes: Mapping[str, Any]) -> str:
  """Computes a digest of notes."""
  text = json.dumps(json.loads(json.dumps(notes)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read(folder: epath.Path) -> dict[str, Any]:
  """Reads a checkpoint's notes: data position, shapes, checksums, best step.

  Args:
    folder: of the checkpoint; its name is its step.

  Raises:
    OSError, ValueError, KeyError, TypeError: if it is damaged.
  """
  notes = json.loads(storage.read_text(folder / "data" / "metadata"))
  if notes.pop("digest") != digest(notes) or notes["step"] != int(folder.name):
    raise ValueError("data/metadata differs from its digest")
  return notes


def best(notes: Mapping[str, Any]) -> Best | None:
  """Returns the best step when a checkpoint was saved; None if there was none.

  Raises:
    TypeError: if it is damaged.
  """
  found = notes.get("best")
  return Best(**found) if found else None


def check_frozen(
  folder: epath.Path, frozen: Mapping[str, Any], stored: Mapping[str, str]
) -> None:
  """Raises UserError if frozen parameters aren't those of a checkpoint."""
  found = checksums(leaves({"frozen": frozen}))
  other = [name for name, value in found.items() if stored[name] != value]
  if other:
    raise UserError(
      f"{folder}: expected the model that the run began with, of which frozen"
      f" parameters aren't saved again, found other values in {len(other)} of"
      f" {len(found)}, {min(other).partition('/')[2]} first; put that model"
      " back at config.models.policy.path"
    )


def check_same(
  folder: epath.Path, wanted: Mapping[str, PyTree], stored: Mapping[str, str]
) -> None:
  """Raises UserError if a checkpoint holds other arrays than wanted.

  Where only a model's parameters are wanted, those of loss terms don't count.
  """
  whole = "step" in wanted
  # Parameters come first: what else there is follows from them.
  for part in (
    *("trainable", "frozen", "optimizer", "running", "averages", "norms"),
  ):
    if part not in wanted:
      continue
    ours = {k: shape(x) for k, x in leaves({part: wanted[part]}).items()}
    theirs = {
      k: v
      for k, v in stored.items()
      if k.split("/")[0] == part
      and (whole or not parameters.is_of_term(k.split("/", 1)[1]))
    }
    if ours == theirs:
      continue
    name, _ = min(ours.items() ^ theirs.items())
    raise UserError(
      f"{folder}: expected the arrays of the run's config.json and its model,"
      f" found {name.split('/', 1)[-1]} in shape {theirs.get(name)} instead of"
      f" {ours.get(name)}; restore the config and model of the run"
    )


def abstract(tree: PyTree) -> PyTree:
  """Returns shapes and types of arrays, each with the sharding to restore to.

  Arrays without a sharding, such as a counter, are replicated on all devices of
  the others.
  """
  mesh = everywhere(jax.tree.leaves(tree))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def abstract(leaf):
    where = getattr(leaf, "sharding", None)
    if where is None or not getattr(leaf, "committed", True):
      where = mesh or where or here
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(abstract, tree)
