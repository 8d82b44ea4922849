"""Steps of a run on an accelerator, with random weights, and their numbers.

The programs are those of `mmrl.train` and `mmrl.plan`. Neither weights nor
data nor a tokenizer are read.
"""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import accelerator_parts as parts_lib
from experiments.bench import clock, random_model
from experiments.bench.accelerator_parts import Row, Sizes
from mmrl import config as config_lib
from mmrl.models import parameters
from mmrl.models.kernels import attention
from mmrl.plan import programs
from mmrl.prompts import packing
from mmrl.train import walk
from mmrl.types import PyTree

_GIB, _REPEATS = 2**30, 3
# What a device may differ by from the CPU, as a share of the largest number:
# float32 sums in another order; bfloat16 keeps 8 bits of each of a few factors.
_FLOAT32, _BFLOAT16 = 1e-3, 3e-2


def make_config(sizes: Sizes, method: str):
  """The config of a run of these sizes: of the model, or of the tiny one."""
  config = config_lib.get_config()
  policy = config.models.policy
  policy.path = sizes.model or "tiny"
  policy.dtype = policy.param_dtype = sizes.dtype
  if sizes.lora:
    targets = {"rank": sizes.lora, "alpha": 32, "targets": "text/layers/.*"}
    policy.lora = targets
  config.rollout.prompts, config.rollout.answers = sizes.prompts, sizes.answers
  config.rollout.length = sizes.count
  config.data.lengths, config.data.patches = (sizes.length,), (sizes.side**2,)
  config.train.minibatches, config.train.accumulate = 1, 2
  config.shares.every = 0
  config.evaluation.benchmarks = {}
  return config_lib.add_ral(config) if method == "RAL" else config


class Step:
  """A step of a run on one device.

  Attributes:
    compiler: of the run's programs.
    state, fixed: of the run, from `start` or from another step.
    batch: that is learned from, once `walk` has ended.
  """

  def __init__(self, sizes: Sizes, method: str, where: jax.Device):
    self.compiler = programs.Compiler(make_config(sizes, method), [where])
    self.state: Any = None
    self.fixed: dict[str, PyTree] = {}
    self.batch: Any = None
    self._sizes, self._where = sizes, where

  def start(self) -> None:
    """Makes random weights, and the state of step 0."""
    parts, shapes = self.compiler.parts, self.compiler.params
    config = parts.model_config

    def make(key):
      base = parameters.flat(parameters.init(key, config))
      pairs = parameters.init_adapter(key, config)
      params = parameters.merge(base, pairs)
      return jax.tree.map(lambda x, to: x.astype(to.dtype), params, shapes)

    def first(params):
      return parts.first_state(jax.tree.map(jnp.copy, params))

    params, state = (
      jax.tree.map(lambda x: x.sharding, tree)
      for tree in (shapes, self.compiler.state)
    )
    weights = jax.jit(make, out_shardings=params)(jax.random.key(0))
    self.state = jax.jit(first, out_shardings=state)(weights)
    self.fixed = dict.fromkeys(self.compiler.fixed, parts.beginning(weights))

  def walk(self) -> Iterator[tuple[programs.Program, Callable]]:
    """Yields each compiled program, and a function that runs it once more.

    Of the update, the last one, it returns the metrics, and replaces the state.
    """
    compiler, known = self.compiler, (self.state, self.fixed)
    compiler.state, compiler.fixed = known
    calls = walk.walk(compiler.parts, self._prompt(), *known)
    call = next(calls)
    while True:
      arguments = self._filled(call.arguments)
      program, _ = compiler.compile(
        dataclasses.replace(call, arguments=arguments)
      )
      if call.name == "update":
        self.batch = arguments[2]
        yield program, self.update
        return

      def run(function=call.function, arguments=arguments):
        return function(*arguments)

      result = run()
      yield program, run
      call = calls.send(result)

  def update(self) -> PyTree:
    """Updates the state; returns the metrics."""
    self.state, metrics = self.compiler.parts.programs.update(
      self.state, self.fixed, self.batch, np.int32(0)
    )
    return metrics

  def _prompt(self):
    sizes, parts = self._sizes, self.compiler.parts
    rng = np.random.default_rng(0)
    encoded = [
      random_model.encoded(parts.model_config, rng, sizes.length, sizes.side)
      for _ in range(sizes.prompts)
    ]
    prompt = packing.collate(
      encoded,
      parts.model_config,
      lengths=(sizes.length,),
      patches=(sizes.side**2,),
      rows=sizes.prompts // parts.pack,
    )
    return jax.device_put(prompt, parts.layout.prompts)

  def _filled(self, tree: PyTree) -> PyTree:
    """Puts arrays in place of shapes: the key, and what a host would add."""
    rng = np.random.default_rng(1)

    def one(x):
      if not isinstance(x, jax.ShapeDtypeStruct):
        return x
      if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.key(0), self._where)
      values = rng.standard_normal(x.shape, np.float32).astype(x.dtype)
      return jax.device_put(values, x.sharding)

    return jax.tree.map(one, tree)


def run_step(sizes: Sizes) -> Iterator[Row]:
  """Programs of a step of each method; their updates in turn."""
  where, best = jax.devices()[0], parts_lib.fastest()
  updates: dict[str, tuple[Step, Row, int]] = {}
  for method in sizes.methods:
    step = Step(sizes, method, where)
    if updates:
      other = updates[sizes.methods[0]][0]
      step.state, step.fixed = other.state, other.fixed
    else:
      step.start()
    for program, run in step.walk():
      row = {
        "work": f"{method}: {program.name}",
        "plan_gib": program.total / _GIB,
        "compile_s": program.compile_seconds,
      }
      if program.name == "update":
        jax.block_until_ready(run())
        updates[method] = step, row, program.flops
      elif not (updates and program.name == "rollout"):  # it is the same one
        row["seconds"] = clock.seconds(run, repeats=_REPEATS)
        row["share"] = program.flops / row["seconds"] / best
        yield row
  yield from _updates(updates, step.state, best)


def _updates(updates, state, best: float) -> Iterator[Row]:
  """Rows of updates that go in turn, from one state to the next."""
  spent: dict[str, list[float]] = {name: [] for name in updates}
  for name in itertools.chain.from_iterable([updates] * _REPEATS):
    step = updates[name][0]
    step.state = state
    began = time.perf_counter()
    jax.block_until_ready(step.update())
    spent[name].append(time.perf_counter() - began)
    state = step.state
  seconds = {name: statistics.median(times) for name, times in spent.items()}
  first = next(iter(updates))
  for name, (_, row, work) in updates.items():
    row |= {"seconds": seconds[name], "share": work / seconds[name] / best}
    if name != first:
      row["note"] = f"{seconds[name] / seconds[first]:.3f} times {first}'s"
    yield row


def values(sizes: Sizes) -> Iterator[Row]:
  """Small shapes on the device and on the CPU: how far numbers differ."""
  del sizes  # the same for all
  yield parts_lib.attempt("attention kernel, bfloat16", kernel_values)
  yield parts_lib.attempt(
    "RAL step of the tiny model, float32", lambda: step_values("RAL")
  )


def judged(found: float, most: float, more: str) -> Row:
  """A row of a difference, and of the most that it may be."""
  verdict = "good" if found <= most else "WRONG"  # as is NaN
  return {"note": f"{verdict}: {found:.1e} apart, at most {most:.0e}; {more}"}


def difference(found: PyTree, wanted: PyTree) -> float:
  """Largest difference, as a share of the largest number of each array."""
  shares = []
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    one, other = (np.asarray(x, np.float32) for x in (one, other))
    shares.append(np.abs(one - other).max() / max(np.abs(other).max(), 1e-6))
  return float(np.max(shares))  # NaN, if there is one


def kernel_values() -> Row:
  """Long attention on the device in bfloat16, whole maps on the CPU."""
  rng, length = np.random.default_rng(0), 1100
  mask = np.arange(length)[None] >= 70
  # Rounded first, so that both see the same numbers.
  arrays = [
    jnp.asarray(rng.standard_normal((1, length, n, 64)), jnp.bfloat16)
    for n in (4, 2, 2)
  ]

  def by_maps(queries, keys, values, mask):
    seen = attention.causal_mask(mask)
    return attention.attend(queries, keys, values, seen)

  def both(function, *arrays):
    """Output and gradients, of real tokens only."""

    def of_real(*given):
      return jnp.where(given[-1][..., None, None], function(*given), 0)

    given = (*arrays, jnp.asarray(mask))
    gradient = parts_lib.gradient(of_real, given)
    return jax.device_get((jax.jit(of_real)(*given), jax.jit(gradient)(*given)))

  found = both(attention.attend_causal, *arrays)
  with jax.default_device(jax.devices("cpu")[0]):
    exact = [jnp.asarray(np.asarray(x, np.float32)) for x in arrays]
    wanted = both(by_maps, *exact)
  name = parts_lib.kernel_name(arrays[0])
  return judged(difference(found, wanted), _BFLOAT16, name)


def step_values(method: str) -> Row:
  """One step on each device: answers, fields, and metrics of the update."""
  found = []
  with jax.default_matmul_precision("float32"):
    for where in (jax.devices()[0], jax.devices("cpu")[0]):
      step = Step(parts_lib.TINY, method, where)
      step.start()
      for _, run in step.walk():
        metrics = run()
      batch = step.batch
      found.append(jax.device_get((batch.tokens, batch.fields, metrics)))
  (tokens, *numbers), (others, *wanted) = found
  same = float((tokens == others).mean())
  if same < 1:
    return {"note": f"WRONG: {same:.0%} of the tokens are the CPU's"}
  return judged(difference(numbers, wanted), _FLOAT32, "tokens are equal")
