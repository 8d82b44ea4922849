"""Multiplications of a plan (MACs), of one picture.

Matrix products count, convolutions among them; norms, activations and what
DDIM adds, which are a few percent, don't.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from mmrl.diffusion.network import layers, unet
from mmrl.diffusion.network.unet import UNetConfig
from mmrl.diffusion.plan import StepPlan

_PROMPT_WORDS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
  """MACs of the parts of a model, of one picture in one branch of guidance.

  Attributes:
    control, encoder, decoder: the branch, and each block.
    control_cross, encoder_cross, decoder_cross: cross-attention in them.
    decoder_self: self-attention in the decoder's blocks.
    ends: what is computed at each step: the time, and the last convolution.
  """

  control: int | float
  encoder: tuple[int | float, ...]
  decoder: tuple[int | float, ...]
  control_cross: int | float = 0
  encoder_cross: tuple[int | float, ...] = (0,)
  decoder_cross: tuple[int | float, ...] = (0,)
  decoder_self: tuple[int | float, ...] = (0,)
  ends: int | float = 0


def macs(plan: StepPlan, cost: Cost) -> float:
  """Sums what a plan computes."""
  with_prompt = (plan.branches == 2).astype(float)
  before = with_prompt[:, None]

  def array(values: tuple[int | float, ...]) -> np.ndarray:
    return np.asarray(values, float)[None]

  control = cost.control - (1 - with_prompt) * cost.control_cross
  encoder = array(cost.encoder) - (1 - before) * array(cost.encoder_cross)
  decoder = array(cost.decoder) - (1 - before) * array(cost.decoder_cross)
  reused = plan.decoder & ~plan.self_attention
  each = (
    cost.ends
    + plan.control * control
    + (plan.encoder * encoder).sum(1)
    + (plan.decoder * decoder - reused * array(cost.decoder_self)).sum(1)
  )
  return float((plan.branches * each).sum())


def costs(config: UNetConfig) -> Cost:
  """Counts the parts of a model, as they are traced."""
  found: dict[str, int] = {}
  inside: dict[tuple[str, str], int] = {}

  def part(name: str, run: Callable) -> Any:
    def attend(kind: str, place: str, compute: Callable) -> Any:
      del place
      key = name, kind
      inside[key] = inside.get(key, 0) + count(compute)
      return compute()

    found[name] = count(lambda: run(layers.computed))
    return run(attend)

  shape = (1, config.size, config.size)
  x, condition = jnp.zeros((*shape, 3)), jnp.zeros((*shape, 1))
  time, words = jnp.zeros(1, int), jnp.zeros((1, _PROMPT_WORDS), int)
  params = jax.eval_shape(lambda: unet.init(jax.random.key(0), config))

  def noise(params, part):
    return unet.noise(params, config, x, time, condition, words, part)

  jax.eval_shape(lambda params: noise(params, part), params)
  total = count(lambda params: noise(params, unet.whole), params)

  def blocks(which: str, of: Callable[[str], int]) -> tuple[int, ...]:
    names = [name for name in found if name.startswith(which)]
    return tuple(map(of, names))

  return Cost(
    control=found["control"],
    encoder=blocks("encoder", found.__getitem__),
    decoder=blocks("decoder", found.__getitem__),
    control_cross=inside.get(("control", "cross"), 0),
    encoder_cross=blocks("encoder", lambda x: inside.get((x, "cross"), 0)),
    decoder_cross=blocks("decoder", lambda x: inside.get((x, "cross"), 0)),
    decoder_self=blocks("decoder", lambda x: inside.get((x, "self"), 0)),
    ends=total - sum(found.values()),
  )


def count(function: Callable, *arguments: Any) -> int:
  """Counts the MACs of a function's matrix products."""
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (summed, _), _ = equation.params["dimension_numbers"]
      left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += math.prod(out) * math.prod(left[i] for i in summed)
    for inner in core.jaxprs_in_params(equation.params):
      total += _count(inner)
  return total
