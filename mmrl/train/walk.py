"""One step of a run on shapes: every program is called in order.

A run does it while it is built, to find what doesn't fit (options out of range,
terms of another rank) before weights are read, and again in a thread, which
compiles the programs before they are called. A plan compiles them, too.
"""

from collections.abc import Iterator, Mapping
import concurrent.futures
import contextlib
import dataclasses
import itertools
import threading
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from mmrl import console
from mmrl.machines.sharding import Layout, batch_axes
from mmrl.models import parameters
from mmrl.rollouts.source import Call, Calls, answer, trace
from mmrl.train import step as step_lib
from mmrl.train.models import Initial
from mmrl.train.parts import Parts
from mmrl.train.state import State
from mmrl.types import Batch, Logits, Patches, Prefix, Prompt, PyTree

# Pairs of sizes up to which programs of all are compiled ahead.
_FEW_SIZES = 4


def walk(
  parts: Parts, prompt: Prompt, state: State, fixed: Mapping[str, PyTree]
) -> Calls:
  """Yields the calls of all programs of a step, in order, on shapes.

  Args:
    parts: of the run.
    prompt: shapes of the prompts.
    state, fixed: from `state_shapes` and `fixed_shapes`.

  Yields:
    Calls; each is sent the shapes of its result.

  Returns:
    Shapes of the batch that is learned from.
  """
  layout, programs = parts.layout, parts.programs
  key = jax.eval_shape(lambda: jax.random.key(0))
  batch = yield from parts.source.calls(state, prompt, key)
  batch = batch.with_fields(**_host_fields(parts, batch))
  fields, _ = yield Call("probe", programs.probe, (state, fixed, batch))
  batch = batch.with_fields(**fields)
  for name, program in programs.probes_apart.items():
    there = parts.method.models[name].layout
    apart = resharded(there, step_lib.for_probes_apart(batch))
    arguments = fixed[name], apart
    found = yield Call(name, program, arguments, batch)
    batch = batch.with_fields(**resharded(layout, found))
  if not all(reward.on_host for reward in parts.method.rewards):
    values = of_batch(layout, *batch.mask.shape[:2], dtype="float32")
    graded = dict.fromkeys(parts.method.graded, values)
    of_texts = batch.with_fields(**graded)
    yield Call("reward", programs.reward, (state, fixed, of_texts), read=False)
  visual = batch.visual if parts.frozen_vision else None
  batch = dataclasses.replace(batch, prefix=None, visual=visual)
  rewards = of_batch(layout, *batch.mask.shape[:2], dtype="float32")
  mask, fields = yield Call("prepare", programs.prepare, (batch, rewards, key))
  batch = dataclasses.replace(batch.with_fields(**fields), mask=mask)
  learned_from = state, fixed, batch, np.int32(0)
  yield Call("update", programs.update, learned_from)
  # A run that ends before never calls it.
  if 0 < parts.config.shares.every <= parts.config.train.steps:
    yield Call("shares", programs.shares, learned_from, read=False)
  return batch


def _host_fields(parts: Parts, batch: Batch) -> dict[str, Any]:
  """Returns shapes of the fields that the host adds; see `train.collect`."""
  sizes = batch.mask.shape
  known = {
    "draw": of_batch(parts.layout, sizes[0]),
    "epoch": of_batch(parts.layout, sizes[0]),
    "span": of_batch(parts.layout, *sizes, dtype="int8"),
  }
  return {name: x for name, x in known.items() if name in parts.method.fields}


@console.phase("tracing a step, which checks its shapes")
def check(parts: Parts) -> None:
  """Traces a step of a run whose prompts have the smallest sizes.

  Raises:
    UserError: naming the config field that is wrong.
  """
  sizes = parts.config.data
  trace(
    _calls(
      parts, max(sizes.lengths, default=64), max(sizes.patches, default=64)
    ),
    parts.layout,
  )


def _calls(parts: Parts, length: int, patches: int) -> Calls:
  """Walks a step of a run whose prompts have these sizes."""
  prompts = parts.config.rollout.prompts
  rows = prompts // parts.pack
  prompt = prompt_shapes(parts, prompts, rows, length=length, patches=patches)
  return walk(parts, prompt, state_shapes(parts), fixed_shapes(parts))


class Ahead:
  """Compiles the programs of a run in threads, before it calls them.

  JAX finds a program that is compiled here when the run calls it. The largest
  sizes of prompts come first. Others follow while the run goes on, if there are
  few; what isn't compiled when it is called, the call compiles.

  With several processes nothing is compiled ahead, as all of them would have to
  compile in the same order.
  """

  def __init__(self, parts: Parts):
    sizes = parts.config.data
    pairs = [*itertools.product(sizes.lengths, sizes.patches)]
    pairs.sort(reverse=True)
    if len(pairs) > _FEW_SIZES:
      pairs = pairs[:1]
    if jax.process_count() > 1:
      pairs = []
    self._parts, self._ended = parts, threading.Event()
    # One goes from call to call; the other compiles what no call waits for.
    self._chain = concurrent.futures.ThreadPoolExecutor(1)
    self._beside = concurrent.futures.ThreadPoolExecutor(1)
    self._begun = {
      (length, patches * parts.pack): self._chain.submit(
        self._compile, length, patches
      )
      for length, patches in pairs
    }

  def wait(self, prompt: Prompt | None = None, *, shares: bool = False) -> None:
    """Waits until what is begun for prompts of these sizes is compiled.

    Args:
      prompt: the prompts; those of the largest sizes if None.
      shares: whether to wait for what no other program waits for, too.
    """
    sizes = next(iter(self._begun), None)
    if prompt is not None:
      sizes = prompt.tokens.shape[1], prompt.patches.pixels.shape[1]
    compiled = self._begun.get(sizes) if sizes else None
    if compiled and not compiled.cancel():
      beside = compiled.result()
      if shares:
        concurrent.futures.wait(beside)

  def close(self) -> None:
    """Ends the threads, each after the program that it compiles."""
    self._ended.set()
    for pool in (self._chain, self._beside):
      pool.shutdown(cancel_futures=True)

  def _compile(
    self, length: int, patches: int
  ) -> list[concurrent.futures.Future]:
    beside: list[concurrent.futures.Future] = []

    def result(call: Call) -> PyTree:
      if self._ended.is_set():
        raise concurrent.futures.CancelledError
      function: Any = call.function
      lowered = function.lower(*call.arguments)
      if not call.read:
        beside.append(self._beside.submit(lowered.compile))
        return None
      shardings = lowered.compile().output_shardings
      return placed(call.traced(), shardings)

    # What doesn't compile here raises where the run calls it.
    with contextlib.suppress(Exception):
      answer(_calls(self._parts, length, patches), result)
    return beside


@contextlib.contextmanager
def ahead(parts: Parts) -> Iterator[Ahead]:
  """Compiles the programs of a run ahead, as long as the block lasts."""
  compiling = Ahead(parts)
  try:
    yield compiling
  finally:
    compiling.close()


def shape(sharding, *sizes: int, dtype: Any = "int32"):
  """Returns the shape of an array."""
  return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)


def of_batch(layout: Layout, *sizes: int, dtype: Any = "int32"):
  """Returns the shape of an array that leads with P, as it is put."""
  return shape(layout.leading(sizes), *sizes, dtype=dtype)


def placed(shapes: PyTree, where: PyTree) -> PyTree:
  """Returns shapes with other shardings."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    where,
  )


def resharded(layout: Layout, tree: PyTree) -> PyTree:
  """Returns shapes with the shardings that `Layout.reshard` sets."""

  def lay(x, where):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  def one(x):
    if isinstance(x, Logits):
      hidden = lay(x.hidden, layout.leading(x.hidden.shape))
      head = lay(x.head, layout.everywhere)
      return dataclasses.replace(x, hidden=hidden, head=head)
    return lay(x, layout.leading(x.shape))

  return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Logits))


def laid(layout: Layout, tree: PyTree) -> PyTree:
  """Returns shapes of a program's result, sharded as the compiler would.

  Arrays that lead with P or B are sharded by it, and keys and values of
  prompts, which lead with L, by prompts and heads.
  """

  def keys(x):
    tensor = layout.mesh.shape["tensor"]
    heads = "tensor" if tensor > 1 and x.shape[3] % tensor == 0 else None
    axes = batch_axes(x.shape[1], layout.mesh.shape)
    spec = PartitionSpec(None, axes, None, heads)
    where = NamedSharding(layout.mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  def one(x):
    if isinstance(x, Prefix):
      rest = dataclasses.replace(x, keys=x.mask, values=x.mask)
      return dataclasses.replace(
        resharded(layout, rest), keys=keys(x.keys), values=keys(x.values)
      )
    if x.shape and x.shape[0] % layout.shards == 0:
      return resharded(layout, x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.everywhere)

  whole = (Prefix, Logits)
  return jax.tree.map(
    lambda x: resharded(layout, x) if isinstance(x, Logits) else one(x),
    tree,
    is_leaf=lambda x: isinstance(x, whole),
  )


def parameter_shapes(model, layout: Layout, dtype: str) -> PyTree:
  """Returns shapes of a model's parameters, sharded on a mesh."""

  def one(path, x):
    name = parameters.path_name(path)
    own = x.dtype if parameters.is_of_adapter(name) else jnp.dtype(dtype)
    where = layout.parameter(name, x.shape)
    return jax.ShapeDtypeStruct(x.shape, own, sharding=where)

  return jax.tree_util.tree_map_with_path(one, parameters.shapes(model))


def policy_shapes(parts: Parts) -> PyTree:
  """Returns shapes of the policy's parameters."""
  dtype = parts.config.models.policy.param_dtype
  return parameter_shapes(parts.model_config, parts.layout, dtype)


def state_shapes(parts: Parts) -> State:
  """Returns shapes of a run's state."""
  state = jax.eval_shape(parts.first_state, policy_shapes(parts))
  return placed(state, parts.layout.of(state))


def fixed_shapes(parts: Parts) -> Mapping[str, PyTree]:
  """Returns shapes of the models that don't change, by name."""
  found = {}
  for name, model in parts.method.models.items():
    if isinstance(model.source, Initial):
      found[name] = parts.beginning(policy_shapes(parts))
    elif hasattr(model.source, "param_dtype"):
      found[name] = parameter_shapes(
        model.config, model.layout, model.source.param_dtype
      )
  return found


def prompt_shapes(
  parts: Parts, prompts: int, rows: int, *, length: int, patches: int
) -> Prompt:
  """Returns shapes of a batch of prompts.

  Args:
    parts: of the run.
    prompts: P.
    rows: B.
    length: S.
    patches: of a prompt, on average; M is that times P / B.
  """
  there, vision = parts.layout.prompts, parts.model_config.vision
  patches *= prompts // rows
  windows = slots = None
  if vision.window_patches:
    count = 2 * -(-patches // vision.window_patches)
    windows = shape(there, rows, count, vision.window_patches)
    slots = shape(there, rows, patches)
  return Prompt(
    tokens=shape(there, prompts, length),
    mask=shape(there, prompts, length, dtype=bool),
    positions=shape(there, prompts, length, 3),
    visual_index=shape(there, prompts, length),
    next_position=shape(there, prompts),
    region=shape(there, prompts, length, dtype="float32"),
    evidence=shape(there, prompts, length, dtype="float32"),
    patches=Patches(
      pixels=shape(there, rows, patches, vision.patch_values, dtype="float32"),
      rows_columns=shape(there, rows, patches, 2),
      extent=shape(there, rows, patches, 2),
      frame=shape(there, rows, patches, 2),
      windows=windows,
      window_slot=slots,
    ),
  )
