"""Programs of a run, compiled from shapes alone."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.machines import sharding
from mmrl.machines.sharding import Layout
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.plan import chips, flops, hlo
from mmrl.train import method as method_lib
from mmrl.train import model as model_lib
from mmrl.train import run as run_lib
from mmrl.train import teacher as teacher_lib
from mmrl.train.run import Parts
from mmrl.types import Batch, Logits, Patches, Prompt, PyTree, Rollout

# "Used 20.51G of 15.75G hbm", as XLA refuses to compile for a TPU.
_REFUSED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", re.I)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
  """Memory and work of one compiled program on each chip.

  Attributes:
    name: as in `train.step.Programs`.
    memory: bytes of arguments, temporaries, output and (part of the output)
      alias, and of what else of the run stays on the chip meanwhile
      (`resident`).
    total: bytes at the program's peak; XLA's own figure where it refused.
    fits: whether that is within the chip's memory.
    collectives: see `hlo.collectives`; None where XLA can't read the program
      (jaxlib 0.10.2 that of libtpu 0.0.52, of a mesh with a tensor axis).
    flops: of the model by formula, of all chips together.
    seconds: those at the chips' peak, divided evenly; None without one.
    compile_seconds: measured.
  """

  name: str
  memory: Mapping[str, int]
  total: int
  fits: bool
  collectives: Mapping[str, Mapping[str, int]] | None
  flops: int
  seconds: float | None
  compile_seconds: float


def architecture(config: ml_collections.ConfigDict) -> ModelConfig:
  """Reads the architecture of a config's model, without weights.

  For a hub id it is in the config.json files that ship with the library.
  """
  return model_lib.compute_as(config, _read(config.model.path))


def architecture_of_teacher(
  config: ml_collections.ConfigDict,
) -> ModelConfig | None:
  """Reads the architecture of a config's teacher; None if it has none."""
  if not config.teacher.path:
    return None
  return teacher_lib.architecture(config, _read(config.teacher.path))


def _read(name: str) -> ModelConfig:
  public = directory.public_config(name)
  return public or config_json.read(directory.find(name))


def _parameters(model: ModelConfig, layout: Layout, dtype: str) -> PyTree:
  """Returns shapes of a model's parameters, sharded on a mesh."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.ShapeDtypeStruct(
      x.shape,
      jnp.dtype(dtype),
      sharding=layout.parameter(parameters.path_name(path), x.shape),
    ),
    parameters.shapes(model),
  )


def _resharded(layout: Layout, tree: PyTree) -> PyTree:
  """Returns shapes with the shardings that `Layout.reshard` sets."""

  def lay(x, where):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  def one(x):
    if isinstance(x, Logits):
      hidden = lay(x.hidden, layout.prompts)
      head = lay(x.head, layout.everywhere)
      return dataclasses.replace(x, hidden=hidden, head=head)
    return lay(x, layout.prompts)

  return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Logits))


def _bytes(shapes: Iterable[jax.ShapeDtypeStruct]) -> int:
  """Counts the bytes of arrays on each chip."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in shapes
  )


def _shape(sharding_, *sizes: int, dtype: Any = "int32"):
  return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding_)


def prompt_shapes(
  config: ml_collections.ConfigDict, parts: Parts, prompts: int, rows: int
) -> Prompt:
  """Returns shapes of the largest batch of prompts that the buckets allow."""
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
    self.experts = method_lib.expert_rows(config)
    layout = Layout(
      sharding.make_mesh(config.mesh.to_dict(), devices),
      config.train.minibatches,
    )
    model, self.teacher = architecture(config), architecture_of_teacher(config)
    self.parts = run_lib.build_parts(config, model, layout, self.teacher)
    self.chip = chips.of(layout.mesh.devices.flat[0])
    self.params = _parameters(model, layout, config.model.param_dtype)
    self.params_teacher = self.teacher and _parameters(
      self.teacher, self.parts.teacher_layout, config.teacher.param_dtype
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
    """Compiles all programs of a run, in the order in which it runs them."""
    config, parts = self.config, self.parts
    layout, programs = parts.layout, parts.programs
    prompts = config.rollout.prompts
    if config.evaluation.benchmarks:
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
    if config.rollout.refill.rounds:
      # Groups are drawn again while those so far are kept.
      yield self._beside(program, (prompt, rollout))
      pair, source = (prompt, rollout), _shape(layout.prompts, prompts)
      program, pair = self.compile(
        "exchange", programs.exchange, pair, pair, source
      )
      prompt, rollout = pair
    yield program
    if self.experts:
      rollout = self._with_experts(rollout)
    program, probed = self.compile(
      "probe", programs.probe, self.state, self.params, prompt, rollout
    )
    yield program
    fields, _ = probed
    if self.teacher:
      program, taught = self.compile(
        "teach",
        programs.teach,
        self.params_teacher,
        *_resharded(parts.teacher_layout, (prompt, rollout.tokens)),
      )
      yield self._beside(program, (prompt, rollout, fields))
      fields |= _resharded(layout, taught)
    if not all(reward.on_host for reward in parts.rewards):
      program, _ = self.compile(
        "reward", programs.reward, fields, prompt, rollout
      )
      yield self._beside(program, rollout.prefix)
    sizes = rollout.mask.shape[:2]
    rewards = _shape(layout.prompts, *sizes, dtype="float32")
    program, fields = self.compile(
      "prepare", programs.prepare, fields, rewards, rollout.mask, key
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

  def _with_experts(self, rollout: Rollout) -> Rollout:
    """Adds the experts' rows to a rollout's shapes, after the policy's own."""
    there = self.parts.layout.prompts
    prompts, answers, length = rollout.tokens.shape
    group = prompts, answers + self.experts
    return dataclasses.replace(
      rollout,
      tokens=_shape(there, *group, length),
      mask=_shape(there, *group, length, dtype=bool),
      logprobs=_shape(there, *group, length, dtype=rollout.logprobs.dtype),
      expert=_shape(there, *group, dtype=bool),
    )

  def compile(
    self, name: str, function: Any, *arguments: PyTree
  ) -> tuple[Program, PyTree]:
    """Compiles one program from the shapes of its arguments.

    Returns:
      (the program, shapes of its output as sharded on the mesh).
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
      # Too large for a chip is a result, too: XLA's message has the total.
      total = round(float(refused[1]) * _UNITS[refused[2].upper()]) + resident
      memory = {"resident": resident}
      placed = _resharded(self.parts.layout, output)
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
    # Aliased bytes are in arguments and output, and the sum adds them again.
    total = sum(memory.values()) - 2 * memory["alias"]
    try:
      moved = hlo.collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError:
      moved = None
    seconds = time.perf_counter() - began
    placed = self._placed(output, compiled.output_shardings)
    return self._program(name, memory, total, moved, seconds), placed

  def _resident(self, arguments: PyTree) -> int:
    """Counts bytes a chip that the run holds besides a program's arguments.

    State, reference parameters and those of the teacher stay all the time; a
    program runs beside those of them that it isn't given.
    """
    given = {id(leaf) for leaf in jax.tree.leaves(arguments)}
    held = jax.tree.leaves((self.state, self.params, self.params_teacher))
    return _bytes(x for x in held if id(x) not in given)

  def _beside(self, program: Program, held: PyTree) -> Program:
    """Adds to a program the arrays that stay on the chip meanwhile."""
    more = _bytes(jax.tree.leaves(held))
    memory = dict(program.memory)
    memory["resident"] += more
    total = program.total + more
    return dataclasses.replace(
      program, memory=memory, total=total, fits=self._fits(total)
    )

  def _fits(self, total: int) -> bool:
    return not self.chip or total <= self.chip.memory

  def _program(self, name, memory, total, moved, seconds) -> Program:
    work = self._flops.get(name, 0)
    peak = None
    if self.chip:
      peak = work / self.chip.flops / self.parts.layout.mesh.devices.size
    return Program(
      name=name,
      memory=memory,
      total=total,
      fits=self._fits(total),
      collectives=moved,
      flops=work,
      seconds=peak,
      compile_seconds=seconds,
    )

  @functools.cached_property
  def _flops(self) -> dict[str, int]:
    """Model FLOPs on the largest batch; for `update`, of one update."""
    config, parts = self.config, self.parts
    merge = parts.model_config.vision.spatial_merge_size
    side = merge * max(1, round((max(config.data.patches)) ** 0.5) // merge)
    prompts, minibatches = config.rollout.prompts, config.train.minibatches
    answers, count = config.rollout.answers, config.rollout.length
    grids = [(1, side, side)] * prompts
    lengths = [max(config.data.lengths)] * prompts
    layers = len(parts.scorer.layers)
    method = method_lib.bind(config)
    reads = any(term.needs_attention for term in method.terms)
    work = flops.step(
      parts.model_config,
      grids=grids,
      lengths=lengths,
      answers=answers,
      experts=self.experts,
      count=count,
      rows_probed=layers,
      rows_trained=layers if reads else 0,
      reference="reference" in config.probes,
      trains=("layers", "head") if parts.frozen_vision else flops.PARTS,
    )
    if self.teacher:
      sizes = answers + self.experts, count
      read = "attention_teacher" in method.named
      work["teach"] = flops.forward(
        *flops.vision(self.teacher, grids).values(),
        *(flops.prefill(self.teacher, s) for s in lengths),
        *(flops.extend(self.teacher, s, *sizes) for s in lengths),
        *(flops.rows(self.teacher, s, *sizes, layers * read) for s in lengths),
      )
      if "logits_teacher" in method.named:
        # They are computed where they are read.
        tokens = prompts * math.prod(sizes)
        work["update"] += flops.forward(flops.head(self.teacher, tokens))
    return work | {"update": work["update"] // minibatches}
