"""A run's programs, compiled from shapes alone."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import inspect
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmrl import build, losses, sharding
from mmrl.errors import UserError
from mmrl.models import checkpoint, config_json, flops, parameters
from mmrl.models.config import ModelConfig
from mmrl.plan import chips, hlo
from mmrl.sharding import Layout
from mmrl.train import run as run_lib
from mmrl.train.run import Parts
from mmrl.types import Batch, Patches, Prompt, PyTree

# "Used 20.51G of 15.75G hbm", as XLA refuses to compile for a TPU.
_REFUSED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", re.I)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
  """What one compiled program needs on each chip.

  Attributes:
    name: as in `train.step.Programs`.
    memory: bytes of arguments, temporaries, output and (part of the output)
      alias, and of what else of the run stays on the chip meanwhile
      (`resident`).
    total: bytes at the program's peak; XLA's own figure where it refused.
    fits: whether that is within the chip's memory.
    collectives: see `hlo.collectives`.
    flops: of the model by formula, of all chips together.
    seconds: those at the chips' peak, shared out evenly; None without one.
    compile_seconds: measured.
  """

  name: str
  memory: Mapping[str, int]
  total: int
  fits: bool
  collectives: Mapping[str, Mapping[str, int]]
  flops: int
  seconds: float | None
  compile_seconds: float


def architecture(config: ml_collections.ConfigDict) -> ModelConfig:
  """A config's model, without weights.

  That of a hub id comes from the config.json files that ship with the library.
  """
  name = config.model.path
  public = checkpoint.public_config(name)
  model = public or config_json.read(checkpoint.find(name))
  return run_lib.compute_as(config, model)


def _shape(sharding_, *sizes: int, dtype: Any = "int32"):
  return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding_)


def prompt_shapes(
  config: ml_collections.ConfigDict, parts: Parts, prompts: int, rows: int
) -> Prompt:
  """The largest batch of prompts that the config's buckets allow."""
  there, vision = parts.layout.prompts, parts.model_config.vision
  length, group = max(config.data.lengths), prompts // rows
  patches = max(config.data.patches) * group
  windows = slots = None
  if vision.window_patches:
    count = 2 * -(-patches // vision.window_patches)
    windows = _shape(there, rows, count, vision.window_patches)
    slots = _shape(there, rows, patches)
  return Prompt(
    tokens=_shape(there, prompts, length),
    mask=_shape(there, prompts, length, dtype=bool),
    positions=_shape(there, prompts, length, 3),
    visual_index=_shape(there, prompts, length),
    next_position=_shape(there, prompts),
    region=_shape(there, prompts, length, dtype="float32"),
    patches=Patches(
      pixels=_shape(there, rows, patches, vision.patch_values, dtype="float32"),
      rows_columns=_shape(there, rows, patches, 2),
      extent=_shape(there, rows, patches, 2),
      frame=_shape(there, rows, patches, 2),
      windows=windows,
      window_slot=slots,
    ),
  )


class Compiler:
  """Compiles the programs of a config one after the other, from shapes."""

  def __init__(self, config: ml_collections.ConfigDict, devices):
    """Builds everything but weights and data.

    Raises:
      UserError: naming the field of the config that is wrong.
    """
    for field in ("lengths", "patches"):
      if not config.data[field]:
        raise UserError(
          f"config.data.{field}: expected the allowed sizes, found none; a plan"
          " is made for the largest"
        )
    self.config = config
    layout = Layout(
      sharding.make_mesh(config.mesh.to_dict(), devices),
      config.train.minibatches,
    )
    self.parts = run_lib.build_parts(config, architecture(config), layout)
    self.chip = chips.of(layout.mesh.devices.flat[0])
    dtype = jnp.dtype(config.model.param_dtype)
    self.params = jax.tree_util.tree_map_with_path(
      lambda path, x: jax.ShapeDtypeStruct(
        x.shape,
        dtype,
        sharding=layout.parameter(parameters.path_name(path), x.shape),
      ),
      parameters.shapes(self.parts.model_config),
    )
    state = jax.eval_shape(self.parts.first_state, self.params)
    self.state = self._placed(state, layout.of(state))

  def _placed(self, shapes: PyTree, where: PyTree) -> PyTree:
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      where,
    )

  def programs(self) -> Iterator[Program]:
    """All programs of a run, in the order in which it meets them."""
    config, parts = self.config, self.parts
    layout, programs = parts.layout, parts.programs
    prompts, answers = config.rollout.prompts, config.rollout.answers
    batch = -(-config.evaluation.batch // layout.shards) * layout.shards
    prompt = prompt_shapes(config, parts, batch, layout.shards)
    program, _ = self.compile("evaluate", parts.answer, self.params, prompt)
    yield program
    prompt = prompt_shapes(config, parts, prompts, prompts // parts.group)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = self._placed(key, layout.everywhere)
    program, rollout = self.compile(
      "rollout", programs.rollout, self.state, prompt, key
    )
    yield program
    program, probed = self.compile(
      "probe", programs.probe, self.state, self.params, prompt, rollout
    )
    yield program
    fields, _ = probed
    rewards = _shape(layout.prompts, prompts, answers, dtype="float32")
    program, fields = self.compile(
      "prepare", programs.prepare, fields, rewards, rollout.mask
    )
    yield program
    visual = rollout.visual if parts.frozen_vision else None
    batch = Batch(prompt, visual, rollout.tokens, rollout.mask, fields)
    number = _shape(layout.everywhere)
    if config.shares.every:
      program, _ = self.compile(
        "shares", programs.shares, self.state, batch, number
      )
      yield program
    program, _ = self.compile(
      "update", programs.update, self.state, batch, number
    )
    yield program

  def compile(
    self, name: str, function: Callable, *arguments: PyTree
  ) -> tuple[Program, PyTree]:
    """Compiles one program.

    Returns:
      (what it needs, shapes of its output as they lie on the mesh).
    """
    began = time.perf_counter()
    lowered = function.lower(*arguments)
    resident = self._resident(arguments)
    output = jax.eval_shape(function, *arguments)
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      refused = _REFUSED.search(str(error))
      if not refused:
        raise
      total = round(float(refused[1]) * _UNITS[refused[2].upper()]) + resident
      memory = {"resident": resident}
      placed = self._placed(
        output, jax.tree.map(lambda _: self.parts.layout.prompts, output)
      )
      seconds = time.perf_counter() - began
      return self._program(name, memory, total, {}, seconds), placed
    found = compiled.memory_analysis()
    memory = {
      "arguments": found.argument_size_in_bytes,
      "temporaries": found.temp_size_in_bytes,
      "output": found.output_size_in_bytes,
      "alias": found.alias_size_in_bytes,
      "resident": resident,
    }
    total = sum(memory.values()) - 2 * memory["alias"]
    moved = hlo.collectives(compiled.as_text())
    seconds = time.perf_counter() - began
    placed = self._placed(output, compiled.output_shardings)
    return self._program(name, memory, total, moved, seconds), placed

  def _resident(self, arguments: PyTree) -> int:
    """Bytes a chip that the run holds besides a program's arguments.

    State and reference parameters stay all the time; a program that is given
    neither, or one of them, runs beside the other.
    """
    given = {id(leaf) for leaf in jax.tree.leaves(arguments)}
    held = jax.tree.leaves((self.state, self.params))
    return sum(
      int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
      for x in held
      if id(x) not in given
    )

  def _program(self, name, memory, total, moved, seconds) -> Program:
    work = self._flops().get(name, 0)
    peak = None
    if self.chip:
      peak = work / self.chip.flops / self.parts.layout.mesh.devices.size
    return Program(
      name=name,
      memory=memory,
      total=total,
      fits=not self.chip or total <= self.chip.memory,
      collectives=moved,
      flops=work,
      seconds=peak,
      compile_seconds=seconds,
    )

  def _flops(self) -> dict[str, int]:
    """Model FLOPs of the largest batch; one update's for the update."""
    config, parts = self.config, self.parts
    merge = parts.model_config.vision.spatial_merge_size
    side = merge * max(1, round((max(config.data.patches)) ** 0.5) // merge)
    prompts = config.rollout.prompts
    layers = len(parts.scorer.layers)
    reads = any(
      spec["weight"]
      and "attention"
      in inspect.signature(build.lookup(losses, spec, "")).parameters
      for spec in config.losses.to_dict().values()
    )
    work = flops.step(
      parts.model_config,
      grids=[(1, side, side)] * prompts,
      lengths=[max(config.data.lengths)] * prompts,
      answers=config.rollout.answers,
      count=config.rollout.length,
      rows_probed=layers,
      rows_trained=layers if reads else 0,
      reference="reference" in config.probes,
      trains=("layers", "head") if parts.frozen_vision else flops.PARTS,
    )
    return work | {"update": work["update"] // config.train.minibatches}
