"""Alignment of latent segments with a frozen encoder's features of pictures.

Reference: Vision-aligned Latent Reasoning (VaLR), arXiv 2602.04476.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl import build
from mmrl.errors import UserError
from mmrl.losses.state import Measured, Stateful
from mmrl.models import encoders as encoders_lib
from mmrl.models.config import ModelConfig
from mmrl.models.encoders import packed
from mmrl.models.passes import segments
from mmrl.types import PyTree

# Depth of the aligned layer: block 12 of 28.
_DEPTH = 0.43


def cosines(
  features: Float[Array, "*batch C"], target: Float[Array, "*batch C"]
) -> Float[Array, "*batch"]:
  """Computes cosines, 0 with a gradient of 0 where one of both is zero."""
  features, target = (x.astype(jnp.float32) for x in (features, target))
  squares = (features**2).sum(-1) * (target**2).sum(-1)
  return (features * target).sum(-1) * jax.lax.rsqrt(
    jnp.maximum(squares, 1e-12)
  )


def repa(
  features: Float[Array, "P G N patches C"],
  target: Float[Array, "P G N patches C"],
) -> Float[Array, "P G N"]:
  """Computes the loss of each segment: minus its patches' mean cosine.

      L = - (1 / patches) sum_p cos(features[p], target[p]),    in [-1, 1]

  Args:
    features: of the model, resized to the encoder's patches and projected.
    target: of the encoder; no gradient.

  Reference: arXiv 2602.04476, L_REPA; the mean over segments is the
  reduction's (`segment_mean`), over all those of the minibatch alike.
  """
  return -cosines(features, jax.lax.stop_gradient(target)).mean(-1)


def head(key: Array, width: int, hidden: int, out: int) -> PyTree:
  """Initialises a head of 3 layers: normal kernels, zero biases."""
  sizes = (width, hidden, hidden, out)
  keys = jax.random.split(key, 3)
  return {
    f"fc{i + 1}": {
      "kernel": jax.random.normal(keys[i], sizes[i : i + 2]) * sizes[i] ** -0.5,
      "bias": jnp.zeros(sizes[i + 1]),
    }
    for i in range(3)
  }


def project(params: PyTree, x: Float[Array, "*batch D"]) -> Array:
  """Applies a head: two SiLU layers and a linear one; float32."""
  x = x.astype(jnp.float32)
  for i in range(1, 4):
    own = params[f"fc{i}"]
    x = x @ own["kernel"]
    x = x + jnp.broadcast_to(own["bias"], x.shape)
    x = jax.nn.silu(x) if i < 3 else x
  return x


def layer_of(config: ModelConfig, layer: int) -> int:
  """Returns the index of the aligned layer; 0 is the default depth.

  Raises:
    UserError: if the decoder has no such layer.
  """
  depth = config.text.num_hidden_layers
  chosen = layer or max(1, round(_DEPTH * depth))
  if not 1 <= chosen <= depth:
    raise UserError(
      f"layer: expected one of the decoder's {depth} layers, counted from 1,"
      f" found {layer}"
    )
  return chosen - 1


def latent_alignment(
  *,
  encoders: Sequence[Mapping[str, Any]],
  layer: int = 0,
  hidden: int = 2048,
) -> Stateful:
  """Aligns latent segments with encoders' features of the pictures they are of.

      F_m = MLP_m(upsample(states of the segment's K positions))
      L = (1 / M) sum_m - mean over segments and patches of cos(F_m, target_m)

  The states are a square grid, rows first, resized bilinearly to an encoder's
  patches. Encoders are frozen; their parameters are part of the state. Logged
  are the value of each encoder (`loss_0`, ...).

  Args:
    encoders: specs of `mmrl.models.encoders`; their losses are averaged.
    layer: decoder layer whose output is aligned, from 1; 0 is the nearest to
      0.43 of the depth.
    hidden: width of the heads.

  Returns:
    The term. Its values stand at the tokens that open segments, 0 elsewhere:
    reduce it with `segment_mean`.

  Raises:
    UserError: if there is no encoder, or a spec is wrong; later, if the model
      has no latent segments.

  Reference: arXiv 2602.04476, L_REPA and L_REPA^multi; weight 0.5.
  Reconstructed: geometry of the resize, the head (that of REPA, arXiv
  2410.06940) and the reading of "12-th layer".
  """
  if not encoders:
    raise UserError("encoders: expected at least one spec, found none")
  made = [
    build.construct(encoders_lib, spec, f"encoders[{i}]")
    for i, spec in enumerate(encoders)
  ]

  def init(key, config: ModelConfig):
    if config.latent is None:
      raise UserError(
        "config.models.policy.path: expected a model with latent segments,"
        " found none; make one with python -m experiments.latent_model"
      )
    learned, frozen = {}, {}
    for i, (own, one) in enumerate(
      zip(jax.random.split(key, len(made)), made, strict=True)
    ):
      width = one.width(config)
      learned[f"head_{i}"] = head(own, config.text.hidden_size, hidden, width)
      frozen[f"encoder_{i}"] = one.init(own, config)
    return learned, frozen

  def term(
    learned,
    running,
    forward,
    prompt,
    visual,
    hidden,
    tokens,
    mask,
    segment_pictures,
  ):
    config = forward.config
    start = segments.starts(tokens, config.latent)
    pictures = _at(segment_pictures, start)
    flat = pictures.reshape(len(pictures), -1)
    frames = packed.find(prompt, flat, config.vision)
    states = hidden[layer_of(config, layer)]
    grid = segments.gather(states, start, config.latent.length)
    numbers = {}
    for i, one in enumerate(made):
      target = one.apply(
        running[f"encoder_{i}"], config, prompt, visual, frames
      )
      target = jax.lax.stop_gradient(target)
      target = target.reshape(*start.shape, *target.shape[1:])
      own = segments.upsample(grid.astype(jnp.float32), *one.grid)
      values = repa(project(learned[f"head_{i}"], own), target)
      numbers[f"loss_{i}"] = _scatter(values, start, mask.shape[-1])
    total = sum(numbers.values()) / len(made)
    return Measured(jnp.where(mask, total, 0.0), numbers), {}

  return Stateful(
    init,
    term,
    lambda running, statistics: running,
    lambda config: (layer_of(config, layer),),
  )


def _at(
  x: Int[Array, "P G R"], start: Int[Array, "P G N"]
) -> Int[Array, "P G N"]:
  """Reads values where segments open; -1 where there is none."""
  length = x.shape[-1]
  found = jnp.take_along_axis(x, jnp.minimum(start, length - 1), axis=2)
  return jnp.where(start < length, found, -1)


def _scatter(
  values: Float[Array, "P G N"], start: Int[Array, "P G N"], length: int
) -> Float[Array, "P G R"]:
  """Writes values where segments open; 0 elsewhere."""

  def one(values, start):
    return jnp.zeros(length).at[start].set(values, mode="drop")

  return jax.vmap(jax.vmap(one))(values, start)
