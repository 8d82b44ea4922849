"""What a run prints of itself: as it begins, and of each step."""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax
import ml_collections

from mmrl import console, inspection, storage
from mmrl.machines.sharding import Layout
from mmrl.models.config import ModelConfig
from mmrl.types import PyTree
from mmrl.workdir import questions


def say(run: Any, workdir: epath.Path) -> None:
  """Prints what a run works with, if a console is open.

  Args:
    run: a `train.run.Run` with its parameters.
    workdir: its directory.
  """
  config = run.config
  lines = {
    "device": _device(run.layout),
    "model": _model(config, run.model_config, run.params),
    "data": _data(config, run.train_source, run.record),
    "steps": _steps(config),
    "benchmarks": ", ".join(
      f"{name} ({len(one):,} questions)" for name, one in run.benchmarks.items()
    ),
    "workdir": str(workdir),
    "programs": _programs(),
    "TensorBoard": _board(config, workdir),
  }
  for title, text in lines.items():
    if text:
      console.say(f"{title + ':':12} {text}")


def numbers(run: Any, values: Mapping[str, float]) -> str:
  """Formats rewards and attention on the region for the progress."""
  shown = {"reward": "reward/total"}
  shown |= {one.name: f"reward/{one.name}" for one in run.method.rewards}
  shown["on object"] = "attention/region"
  return ", ".join(
    f"{title} {values[name]:.2f}"
    for title, name in shown.items()
    if name in values
  )


def _device(layout: Layout) -> str:
  devices = layout.mesh.devices.ravel()
  first = devices[0]
  kind = first.device_kind
  kind = kind if kind == first.platform else f"{kind} ({first.platform})"
  axes = " x ".join(
    f"{size} {name}" for name, size in layout.mesh.shape.items() if size > 1
  )
  processes = jax.process_count()
  return f"{len(devices)} x {kind}" + "".join(
    f", {text}"
    for text in (axes, f"{processes} processes" if processes > 1 else "")
    if text
  )


def _model(
  config: ml_collections.ConfigDict, model: ModelConfig, params: PyTree
) -> str:
  settings = config.models.policy
  leaves = jax.tree.leaves(params)
  count = sum(leaf.size for leaf in leaves)
  size = sum(leaf.nbytes for leaf in leaves)
  return (
    f"{settings.path}, {model.family}, {short(count)} parameters in"
    f" {settings.param_dtype} ({short(size)}B), computed in {settings.dtype}"
  )


def _data(
  config: ml_collections.ConfigDict, source: Any, record: questions.Record
) -> str:
  sizes = config.data
  found = ""
  if record.skipped:
    found = (
      f"; {len(record.skipped):,} left out"
      f" ({inspection.counts(record.skipped)}, {questions.SKIPPED})"
    )
  return (
    f"{sizes.train.name}, {len(source):,} questions{found}; padded to"
    f" {_listed(sizes.lengths)} tokens and {_listed(sizes.patches)} patches"
  )


def _steps(config: ml_collections.ConfigDict) -> str:
  steps, rollout = config.train.steps, config.rollout
  return (
    f"{steps:,} of {rollout.prompts:,} prompts x {rollout.answers} answers of"
    f" {rollout.length:,} tokens at most"
  )


def _programs() -> str:
  """Says where compiled programs are kept: by JAX's own setting, or ours."""
  settings: Any = jax.config  # whose names JAX makes as it starts
  folder = settings.jax_compilation_cache_dir
  return f"kept for later runs in {folder}" if folder else "not kept"


def _board(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
  names = [spec["name"] for spec in config.trackers.to_dict().values()]
  if "tensorboard" not in names or storage.is_remote(workdir):
    return ""
  return f"tensorboard --logdir {workdir / 'tensorboard'}"


def _listed(sizes: Any) -> str:
  return " or ".join(f"{size:,}" for size in sizes)


def short(number: float | int) -> str:
  """Formats a number in thousands, millions or billions."""
  for unit in ("", "k", "M"):
    if number < 999.5:
      return f"{number:.3g} {unit}".rstrip()
    number /= 1000
  return f"{number:.3g} G"
