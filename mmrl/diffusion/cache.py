"""Sampling with caches: DDIM with guidance that computes what a plan says.

HGC (arXiv 2511.11031), as far as it could be reconstructed; see
`mmrl.diffusion.plan`. A step reads what it doesn't compute from the last step
that did. Two scans, before the gate and after it, as what is sampled with one
branch of guidance is half as large.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from mmrl.diffusion import ddim
from mmrl.diffusion.network import layers, unet
from mmrl.diffusion.network.layers import Picture
from mmrl.diffusion.network.unet import Params, UNetConfig
from mmrl.diffusion.plan import StepPlan
from mmrl.errors import UserError

# Of each part of the model: what it gave last, "out", and its attentions.
Cache = dict[str, dict[str, Any]]


def fuse_branches(cached: Array) -> Array:
  """Averages both branches of guidance; the first half is without prompt."""
  without, given = jnp.split(cached, 2)
  return (without + given) / 2


def sample(
  params: Params,
  config: UNetConfig,
  x: Picture,
  condition: Picture,
  words: Int[Array, "B n"],
  *,
  plan: StepPlan,
  weight: float,
) -> Picture:
  """Samples pictures as `ddim.sample` does, with the caches of a plan.

  All plans with the same gate are one compiled program.

  Args:
    params: of the model.
    config: its sizes.
    x: normal noise, which decides the pictures.
    condition: masks.
    words: of the prompts.
    plan: what is computed when.
    weight: of guidance.

  Raises:
    UserError: if the plan is of another model.
  """
  plan.check()
  blocks = plan.encoder.shape[1], plan.decoder.shape[1]
  if blocks != (config.encoder_blocks, config.decoder_blocks):
    raise UserError(
      f"plan: expected tables of the model's {config.encoder_blocks} blocks of"
      f" the encoder and {config.decoder_blocks} of the decoder, found"
      f" {blocks[0]} and {blocks[1]}"
    )
  rows = {
    "time": ddim.times(plan.steps),
    "level": ddim.levels(plan.steps).astype(np.float32),
    "parts": {
      "control": plan.control,
      **{f"encoder/{i}": x for i, x in enumerate(plan.encoder.T)},
      **{f"decoder/{i}": x for i, x in enumerate(plan.decoder.T)},
    },
    "self": {f"decoder/{i}": x for i, x in enumerate(plan.self_attention.T)},
  }
  # What is never read isn't kept.
  if (plan.self_attention == plan.decoder).all():
    rows["self"] = {}
  return _sample(
    *(params, x, condition, words, rows, weight), config=config, gate=plan.gate
  )


@functools.partial(jax.jit, static_argnames=("config", "gate"))
def _sample(params, x, condition, words, rows, weight, *, config, gate):
  steps = len(rows["time"])

  def moved(carry, row, single):
    x, cache = carry
    both = (lambda x: x) if single else ddim.twice
    asked = words if single else ddim.both(words)
    part, written = _reading(cache, row, single, keeps=gate < steps)
    time = jnp.full(len(asked), row["time"])
    args = both(x), time, both(condition), asked
    found = unet.noise(params, config, *args, part)
    if not single:
      without, given = jnp.split(found, 2)
      found = ddim.guided(without, given, weight)
    return (ddim.move(x, found, row["level"]), written), None

  rows = jax.tree.map(jnp.asarray, rows)
  first = jax.tree.map(lambda row: row[:gate], rows)
  last = jax.tree.map(lambda row: row[gate:], rows)
  inputs = ddim.twice(x), ddim.twice(condition), ddim.both(words)
  cache = _empty(params, config, *inputs, first, gate < steps)
  before = functools.partial(moved, single=False)
  x, cache = jax.lax.scan(before, (x, cache), first)[0]
  if gate < steps:
    cache = jax.tree.map(fuse_branches, cache)
    after = functools.partial(moved, single=True)
    x, _ = jax.lax.scan(after, (x, cache), last)[0]
  return x


def _reading(
  cache: Cache, row: dict, single: bool, keeps: bool
) -> tuple[unet.Part, Cache]:
  """Returns what computes parts or reads them, and the cache that it writes."""
  written: Cache = {}

  def part(name: str, run: Callable) -> Any:
    refreshed = row["self"].get(name)

    def compute(held: dict[str, Any]) -> dict[str, Any]:
      return _computed(run, held, refreshed, single, keeps)

    written[name] = jax.lax.cond(
      row["parts"][name], compute, lambda held: held, cache[name]
    )
    return written[name]["out"]

  return part, written


def _computed(
  run: Callable, held: dict[str, Any], refreshed, single: bool, keeps: bool
) -> dict[str, Any]:
  """Computes a part, but for attentions that are read; returns its cache.

  Args:
    run: computes it.
    held: its cache.
    refreshed: whether self-attention is computed; None where it isn't cached.
    single: whether the gate is behind, so that cross-attention is read.
    keeps: whether there is a gate.
  """
  new = dict(held)

  def attend(kind: str, place: str, compute: Callable[[], Array]) -> Array:
    if kind == "cross":
      if single:
        return held[place]
      if not keeps:
        return compute()
      new[place] = compute()
    elif refreshed is None:
      return compute()
    elif place in held:
      new[place] = jax.lax.cond(refreshed, compute, lambda: held[place])
    else:  # as the cache is made
      new[place] = compute()
    return new[place]

  new["out"] = run(attend)
  return new


def _empty(params, config, x, condition, words, rows, keeps) -> Cache:
  """Makes a cache of which each number is NaN until it is written."""
  cache: Cache = {}

  def part(name: str, run: Callable) -> Any:
    refreshed = rows["self"].get(name)
    cache[name] = _computed(run, {}, refreshed, False, keeps)
    return cache[name]["out"]

  def visit(params, x, condition, words):
    time = jnp.zeros(len(words), int)
    unet.noise(params, config, x, time, condition, words, part)
    return cache

  shapes = jax.eval_shape(visit, params, x, condition, words)
  return jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), shapes)


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def features(
  params, config: UNetConfig, x, condition, words, *, steps: int, weight
) -> dict[str, Array]:
  """Returns the outputs of control branch and middle at each step.

  Of a few pictures, computing everything; `plan.pick_key_steps` takes them.

  Returns:
    "control" and "encoder", each [T, D].
  """
  condition, words = ddim.twice(condition), ddim.both(words)
  names = {
    "control": "control",
    f"encoder/{config.encoder_blocks - 1}": "encoder",
  }

  def step(x, row):
    found: dict[str, Array] = {}

    def part(name: str, run: Callable) -> Any:
      out = run(layers.computed)
      if name in names:
        found[names[name]] = jnp.concatenate([leaf.ravel() for leaf in out])
      return out

    time = jnp.full(len(words), row[0])
    both = ddim.twice(x)
    noise = unet.noise(params, config, both, time, condition, words, part)
    without, given = jnp.split(noise, 2)
    return ddim.move(x, ddim.guided(without, given, weight), row[1]), found

  rows = (
    jnp.asarray(ddim.times(steps)),
    jnp.asarray(ddim.levels(steps), "float32"),
  )
  return jax.lax.scan(step, x, rows)[1]
