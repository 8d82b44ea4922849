"""Programs of a run, compiled from shapes alone."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import math
import time
from typing import Any

import jax
from jax.extend import core
import ml_collections

from mmrl import build
from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.machines import batches, sharding
from mmrl.models.config import ModelConfig
from mmrl.plan import chips, flops
from mmrl.plan.figures import Measure, Program
from mmrl.rollouts.source import Call, Calls
from mmrl.train import models as models_lib
from mmrl.train import run as run_lib
from mmrl.train import walk
from mmrl.train.parts import build_parts
from mmrl.types import Prompt, PyTree


def read_architecture(name: str) -> ModelConfig:
  """Reads an architecture, without weights.

  For a hub id it is in the config.json files that ship with the library.
  """
  public = directory.public_config(name)
  return public or config_json.read(directory.find(name))


def shard_bytes(shapes: PyTree) -> dict[int, int]:
  """Counts the bytes of each array on each chip, by the identity of its shape.

  One array that two arguments hold is one shape.
  """
  return {
    id(x): math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(shapes)
    if getattr(x, "sharding", None)  # not the random key
  }


def _read(jaxpr: core.Jaxpr, arguments: PyTree) -> list[PyTree]:
  """Returns the arguments that a program reads: JAX takes the others out."""
  used = [x for equation in jaxpr.eqns for x in equation.invars]
  names = {x for x in (*used, *jaxpr.outvars) if isinstance(x, core.Var)}
  leaves = zip(jaxpr.invars, jax.tree.leaves(arguments), strict=True)
  return [leaf for name, leaf in leaves if name in names]


class Compiler:
  """Compiles the programs of a config one after the other, from shapes."""

  def __init__(self, config: ml_collections.ConfigDict, devices):
    """Builds everything but weights and data.

    Raises:
      UserError: naming the field of the config that is wrong.
    """
    if directory.public_config(config.models.policy.path):
      for field in ("lengths", "patches"):
        if not config.data[field]:
          raise UserError(
            f"config.data.{field}: expected the allowed sizes, found none; a"
            " plan is made for the largest, and without the model's files none"
            " can be found in the data"
          )
    config = run_lib.with_sizes(config, devices)
    self.config = config
    mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    layout = batches.layout(mesh, config.rollout, config.train)
    model = read_architecture(config.models.policy.path)
    self.parts = build_parts(
      config,
      models_lib.compute_as(config, model),
      layout,
      models_lib.read_architectures(config, read_architecture),
    )
    self.chip = chips.of(layout.mesh.devices.flat[0])
    self.params = walk.policy_shapes(self.parts)
    # What stays on the chips all the time.
    self.state = walk.state_shapes(self.parts)
    self.fixed = walk.fixed_shapes(self.parts)

  @property
  def answers(self) -> int:
    """Returns the answers per prompt, those that aren't sampled included."""
    return self.parts.source.group

  def _prompt(self, prompts: int, rows: int) -> Prompt:
    """Returns shapes of the largest batch of prompts that the buckets allow."""
    sizes = self.config.data
    return walk.prompt_shapes(
      self.parts,
      prompts,
      rows,
      length=max(sizes.lengths),
      patches=max(sizes.patches),
    )

  def calls(self) -> Calls:
    """Yields the calls of all programs of a run, in order; see `walk.walk`."""
    config, layout = self.config, self.parts.layout
    if config.evaluation.benchmarks:
      batch = -(-config.evaluation.batch // layout.most) * layout.most
      arguments = self.params, self._prompt(batch, layout.most)
      yield Call("evaluate", self.parts.answer.batch, arguments, read=False)
    prompts = config.rollout.prompts
    prompt = self._prompt(prompts, prompts // self.parts.pack)
    return (yield from walk.walk(self.parts, prompt, self.state, self.fixed))

  def programs(self) -> Iterator[Program]:
    """Compiles all programs of a run, in the order in which it runs them."""
    calls = self.calls()
    with contextlib.suppress(StopIteration):
      call = next(calls)
      while True:
        program, result = self.compile(call)
        yield program
        call = calls.send(result)

  def compile(self, call: Call) -> tuple[Program, PyTree]:
    """Compiles one program from the shapes of its arguments.

    Returns:
      (the program, shapes of its output as sharded on the mesh).
    """
    lowered, measure = self.lower(call)
    output = call.traced()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      return measure.refused(error), walk.laid(self.parts.layout, output)
    return measure.finished(compiled), walk.placed(
      output, compiled.output_shardings
    )

  def lower(self, call: Call) -> tuple[Any, Measure]:
    """Lowers a program; returns it and what makes a `Program` of it."""
    began = time.perf_counter()
    function: Any = call.function
    traced = function.trace(*call.arguments)
    lowered = traced.lower()
    read = _read(traced.jaxpr.jaxpr, call.arguments)
    measure = Measure(
      name=call.name,
      resident=self._resident(call, read),
      arguments=sum(shard_bytes(read).values()),
      flops=self._flops.get(call.name, 0),
      devices=self.parts.layout.mesh.devices.size,
      chip=self.chip,
      began=began,
    )
    return lowered, measure

  def _resident(self, call: Call, read: list[PyTree]) -> int:
    """Counts bytes a chip that the run holds besides a program's arguments.

    The state and the models that don't change stay all the time; a program runs
    beside those of them that it doesn't read.

    Args:
      call: of the program.
      read: its arguments that XLA counts as such.
    """
    held = shard_bytes((self.state, self.fixed, call.held))
    return sum(held[x] for x in set(held) - set(shard_bytes(read)))

  def _trains(self) -> Sequence[str]:
    """Returns the parts of the model that train, as FLOPs count them."""
    if self.parts.model_config.lora:
      # No head has a pair; a tower's lie in its blocks and mergers.
      tower = () if self.parts.frozen_vision else ("blocks", "mergers")
      return (*tower, "layers")
    return ("layers", "head") if self.parts.frozen_vision else flops.PARTS

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
    layers, method = len(parts.scorer.layers), parts.method
    reads = any(term.needs_attention for term in method.terms)
    passes = {n for probe in method.probes for n in probe.needs}
    work = flops.step(
      parts.model_config,
      grids=grids,
      lengths=lengths,
      answers=answers,
      others=self.answers - answers,
      count=count,
      rows_probed=layers,
      rows_trained=layers if reads else 0,
      reference="params_reference" in passes,
      trains=self._trains(),
      adapter=parts.model_config.lora is not None,
    )
    for name, probes in method.probes_apart.items():
      model, sizes = method.models[name].config, (self.answers, count)
      # They are computed where they are read.
      added = [f for p in probes for f in build.provides(p.function)]
      kept = [f for f in added if f in method.fields]
      read = any(f.startswith("attention") for f in kept)
      work[name] = flops.forward(
        *flops.vision(model, grids).values(),
        *(flops.prefill(model, s) for s in lengths),
        *(flops.extend(model, s, *sizes) for s in lengths),
        *(flops.rows(model, s, *sizes, layers * read) for s in lengths),
      )
      if any(f.startswith("logits") for f in kept):
        tokens = prompts * math.prod(sizes)
        work["update"] += flops.forward(flops.head(model, tokens))
    return work | {"update": work["update"] // minibatches}
