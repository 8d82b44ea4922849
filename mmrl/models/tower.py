"""Vision tower: packed patches to visual tokens."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.machines import sharding
from mmrl.models import layers
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import attention, blocked
from mmrl.types import Patches, Prompt, PyTree


def vision(
  params: PyTree, config: ModelConfig, patches: Patches
) -> Float[Array, "B N E"]:
  """Computes visual tokens of packed pictures, in the order of their patches.

  Args:
    params: model parameters.
    config: the architecture.
    patches: pictures cut into patches.

  Returns:
    One token per merged block of patches. Its first D values are what the
    decoder embeds; D more follow for each of its first layers that DeepStack
    feeds. Padding holds values that `Prompt.visual_index` never points at.
  """
  tower, params = config.vision, params["vision"]
  patches = jax.tree.map(jnp.asarray, patches)
  block = layers.VisionBlock(tower, config.dtype)
  angles = attention.axial_angles(patches.rows_columns, tower.head_dim)
  # Inside a scan, what is kept is written into slots of the carry.
  stacks = jnp.array(tower.deepstack_visual_indexes, jnp.int32)

  runs = patches.frame[:, :, None]

  def full(queries, keys, values):
    return blocked.attend_runs(queries, keys, values, runs)

  def windowed(queries, keys, values):
    assert patches.windows is not None and patches.window_slot is not None
    return attention.attend_windows(
      queries, keys, values, patches.windows, patches.window_slot
    )

  def body(carry, layer):
    x, kept = carry
    x = sharding.over_prompts(x)
    layer_params, index, is_full = layer

    def attend(*arrays):
      if not tower.window_size:
        return full(*arrays), None
      return jax.lax.cond(is_full, full, windowed, *arrays), None

    x = layers.run(block, layer_params, x, angles, attend)
    if len(stacks):
      kept = jnp.where((stacks == index)[:, None, None, None], x, kept)
    return (x, kept), None

  x = _embed(params, config, patches)
  kept = jnp.zeros((len(stacks), *x.shape), x.dtype)
  indices = jnp.arange(tower.depth)
  is_full = jnp.isin(indices, jnp.array(tower.fullatt_block_indexes, jnp.int32))
  (x, kept), _ = jax.lax.scan(
    jax.checkpoint(body, prevent_cse=False) if config.remat else body,
    (x, kept),
    (params["blocks"], indices, is_full),
  )
  merger = layers.PatchMerger(tower, config.dtype)
  tokens = [layers.run(merger, params["merger"], x)]
  if len(stacks):
    merger = layers.PatchMerger(tower, config.dtype, norm_merged=True)
    deep = jax.vmap(functools.partial(layers.run, merger))
    tokens += list(deep(params["deepstack"], kept))
  return jnp.concatenate(tokens, axis=-1)


def mixed_mask(config: ModelConfig, prompt: Prompt) -> Bool[Array, "P S S"]:
  """Returns which positions each sees: those before, and its own picture.

  Visual tokens of one picture, or one frame, see each other both ways.

  Reference: LaVer, arXiv 2512.06281; per picture is our reading.
  """
  patches, index = prompt.patches, prompt.visual_index
  rows = patches.frame.shape[0]
  own = jnp.arange(len(index)) // (len(index) // rows)
  cell = jnp.maximum(index, 0) * config.vision.spatial_merge_size**2
  first = jnp.where(index >= 0, patches.frame[own[:, None], cell, 0], -1)
  same = (first[:, :, None] == first[:, None]) & (index >= 0)[:, None]
  return attention.causal_mask(prompt.mask) | (same & prompt.mask[:, None])


def _embed(params: PyTree, config: ModelConfig, patches: Patches) -> Array:
  """Embeds patches linearly and adds their learned positions, if any."""
  embed = params["patch_embed"]
  x = layers.matmul(
    patches.pixels.astype(config.dtype), embed["kernel"].astype(config.dtype)
  )
  if config.vision.patch_bias:
    x = x + jnp.broadcast_to(embed["bias"].astype(config.dtype), x.shape)
  if config.vision.position_grid:
    x = x + _positions(params["positions"]["embedding"], patches).astype(
      x.dtype
    )
  return x


def _positions(
  grid: Float[Array, "points width"], patches: Patches
) -> Float[Array, "B M width"]:
  """Interpolates a square grid of learned positions over each frame.

  Bilinear, with the corners of the grid on the corner patches.
  """
  side = round(grid.shape[0] ** 0.5)
  at = patches.rows_columns.astype(jnp.float32) * (side - 1)
  at = at / jnp.maximum(patches.extent - 1, 1)
  low = jnp.floor(at)
  share = (at - low)[..., None]
  low = low.astype(jnp.int32)
  high = jnp.minimum(low + 1, side - 1)

  def corner(rows, columns, weight):
    return jnp.take(grid, rows * side + columns, axis=0) * weight

  down, right = share[..., 0, :], share[..., 1, :]
  return (
    corner(low[..., 0], low[..., 1], (1 - down) * (1 - right))
    + corner(low[..., 0], high[..., 1], (1 - down) * right)
    + corner(high[..., 0], low[..., 1], down * (1 - right))
    + corner(high[..., 0], high[..., 1], down * right)
  )
