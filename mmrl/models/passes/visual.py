"""A pass over visual tokens alone, some of them masked.

Pictures are packed as the vision tower has them. Each attends to itself, both
ways, at positions of its own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mmrl.machines import sharding
from mmrl.models import layers, vlm
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import attention, blocked
from mmrl.types import Output, Patches, Prompt, PyTree


def runs(patches: Patches, merge: int) -> Int[Array, "B N 2"]:
  """Returns of each visual token the first of its frame and one past the last.

  Padding has two equal numbers.
  """
  return patches.frame[:, :: merge**2] // merge**2


def run(
  params: PyTree,
  config: ModelConfig,
  visual: Float[Array, "B N E"],
  patches: Patches,
  *,
  mask: Bool[Array, "B N"] | None = None,
  embedding: Float[Array, "D"] | None = None,
) -> Output:
  """Runs the decoder over visual tokens, picture by picture.

  A frame's own positions are (0, row, column).

  Args:
    params: model parameters.
    config: the architecture.
    visual: visual tokens.
    patches: that they are of.
    mask: tokens that are replaced by `embedding`; what DeepStack would add to
      them is left out.
    embedding: of a masked token.

  Returns:
    Final hidden states [B, N, D]; on padding they are meaningless.

  Reference: LaVer, arXiv 2512.06281, the second of its two streams.
  """
  width, merge = config.text.hidden_size, config.vision.spatial_merge_size
  x = visual[..., :width].astype(config.dtype)
  deep = visual[..., width:].astype(config.dtype)
  count = visual.shape[-1] // width - 1
  deep = jnp.moveaxis(deep.reshape(*x.shape[:2], count, width), 2, 0)
  if mask is not None:
    assert embedding is not None
    own = embedding.astype(config.dtype)[None, None]
    x = jnp.where(mask[..., None], own, x)
    deep = jnp.where(mask[None, ..., None], 0, deep)
  cells = patches.rows_columns[:, :: merge**2] // merge
  positions = jnp.pad(cells, ((0, 0), (0, 0), (1, 0)))
  angles = attention.rotary_angles(
    positions, config.text.rotary_axes, config.text.rope_theta
  )
  seen = runs(patches, merge)[:, :, None]
  block = layers.DecoderBlock(config)

  def body(x, layer):
    x = sharding.over_prompts(x)
    layer_params, index = layer

    def attend(queries, keys, values):
      return blocked.attend_runs(queries, keys, values, seen), None

    x, _ = layers.run(block, layer_params, x, angles, attend)
    return vlm.add_deep(x, deep, index), None

  x, _ = vlm.scan_layers(body, params, config, x)
  return Output(hidden=vlm.final_norm(params, config, x))


def at_prompts(
  x: Shaped[Array, "B N *rest"], prompt: Prompt
) -> Shaped[Array, "P S *rest"]:
  """Takes packed visual tokens to the places of their prompts; 0 on text."""
  index = prompt.visual_index
  flat = jnp.maximum(index, 0).reshape(x.shape[0], -1)
  more = (1,) * (x.ndim - 2)
  found = jnp.take_along_axis(x, flat.reshape(*flat.shape, *more), axis=1)
  found = found.reshape(*index.shape, *x.shape[2:])
  there = (index >= 0).reshape(*index.shape, *more)
  return jnp.where(there, found, jnp.zeros_like(found))


def from_prompts(
  x: Shaped[Array, "P S"], prompt: Prompt, tokens: int
) -> Shaped[Array, "B N"]:
  """Takes values at visual tokens of prompts to their packed places.

  Args:
    x: values.
    prompt: the prompts.
    tokens: N.
  """
  rows = prompt.patches.frame.shape[0]
  index = jnp.where(prompt.visual_index >= 0, prompt.visual_index, tokens)

  def one(x, index):
    return jnp.zeros(tokens, x.dtype).at[index].set(x, mode="drop")

  return jax.vmap(one)(x.reshape(rows, -1), index.reshape(rows, -1))


def mean_cosine(
  states: Float[Array, "*batch T D"], is_visual: Bool[Array, "*batch T"]
) -> Float[Array, "*batch"]:
  """Computes the mean cosine of different visual tokens; NaN below two."""
  x = jnp.where(is_visual[..., None], states.astype(jnp.float32), 0.0)
  x = x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))
  count = is_visual.sum(-1)
  pairs = (x.sum(-2) ** 2).sum(-1) - (x * x).sum((-2, -1))
  mean = pairs / jnp.maximum(count * (count - 1), 1)
  return jnp.where(count > 1, mean, jnp.nan)
