"""Pictures of packed patches, found and scaled on the device."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models.config import VisionConfig
from mmrl.types import Patches, Prompt, pytree

# Mean and standard deviation of colours by which processors normalise.
_CLIP = (
  (0.48145466, 0.4578275, 0.40821073),
  (0.26862954, 0.26130258, 0.27577711),
)
_HALF = ((0.5,) * 3, (0.5,) * 3)
COLOURS = {"qwen2_vl": _CLIP, "qwen2_5_vl": _CLIP, "qwen3_vl": _HALF}


@pytree
class Frames:
  """Where pictures lie in packed patches.

  Attributes:
    row: of the patches.
    first: its first patch.
    extent: rows and columns, patches.
    there: whether there is such a picture.
  """

  row: Int[Array, "n"]
  first: Int[Array, "n"]
  extent: Int[Array, "n 2"]
  there: Bool[Array, "n"]


def find(
  prompt: Prompt, pictures: Int[Array, "P n"], tower: VisionConfig
) -> Frames:
  """Finds pictures by their number in their prompt; a frame counts as one.

  Args:
    prompt: the prompts.
    pictures: numbers from 0 on; -1 is none.
    tower: of the model.

  Returns:
    P x n frames.
  """
  prompts, patches = len(pictures), prompt.patches
  rows = patches.frame.shape[0]
  own = jnp.arange(prompts) // (prompts // rows)
  index = prompt.visual_index
  cell = jnp.maximum(index, 0) * tower.spatial_merge_size**2
  start = jnp.where(index >= 0, patches.frame[own[:, None], cell, 0], -1)
  before = jnp.pad(start[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  begins = (start >= 0) & (start != before)
  number = jnp.cumsum(begins, axis=-1) - 1
  hit = begins[:, None] & (number[:, None] == pictures[..., None])
  there = hit.any(-1)
  at = jnp.argmax(hit, axis=-1)
  first = jnp.maximum(jnp.take_along_axis(start, at, axis=1), 0)
  row = jnp.broadcast_to(own[:, None], first.shape)
  extent = patches.extent[row, first]
  return Frames(
    row.reshape(-1),
    first.reshape(-1),
    extent.reshape(-1, 2),
    there.reshape(-1),
  )


def resize(
  sample, extent: Int[Array, "n 2"], height: int, width: int
) -> Float[Array, "n height width C"]:
  """Resizes grids of any extent to one, bilinearly, as `segments.upsample`.

  Args:
    sample: maps rows [n, height, width] and columns to values [.., C].
    extent: rows and columns of each grid.
    height, width: of the result.
  """

  def places(size: int, axis: int):
    own = extent[:, axis, None].astype(jnp.float32)
    at = (jnp.arange(size)[None] + 0.5) * own / size - 0.5
    at = jnp.minimum(jnp.maximum(at, 0), own - 1)
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, extent[:, axis, None] - 1)
    return low, high, at - low

  def grid(rows, columns):
    return jnp.broadcast_arrays(rows[:, :, None], columns[:, None, :])

  top, bottom, down = places(height, 0)
  left, right, across = places(width, 1)
  total: Array | float = 0.0
  for rows, vertical in ((top, 1 - down), (bottom, down)):
    for columns, horizontal in ((left, 1 - across), (right, across)):
      share = vertical[:, :, None] * horizontal[:, None, :]
      total += share[..., None] * sample(*grid(rows, columns))
  return jnp.asarray(total)


def pictures(
  patches: Patches,
  frames: Frames,
  tower: VisionConfig,
  family: str,
  height: int,
  width: int,
) -> Float[Array, "n height width 3"]:
  """Puts pictures together from their patches, scaled to one size.

  Args:
    patches: of the batch.
    frames: the pictures.
    tower: of the model.
    family: of the model: how its processor has normalised colours.
    height, width: pixels of the result.

  Returns:
    Colours in [0, 1]. Of a video's patch of two frames it is the first.
  """
  side, merge = tower.patch_size, tower.spatial_merge_size
  columns = jnp.maximum(frames.extent[:, 1, None, None], merge)
  row = frames.row[:, None, None]

  def sample(y, x):
    r, c = y // side, x // side
    block = (r // merge) * (columns // merge) + c // merge
    patch = frames.first[:, None, None] + block * merge**2
    patch += r % merge * merge + c % merge
    within = y % side * side + x % side
    channel = jnp.arange(3) * (tower.temporal_patch_size * side**2)
    channel = channel[None, None, None]
    return patches.pixels[
      row[..., None], patch[..., None], within[..., None] + channel
    ]

  found = resize(sample, frames.extent * side, height, width)
  mean, deviation = COLOURS[family]
  found = found * _colours(deviation) + _colours(mean)
  return jnp.clip(found, 0.0, 1.0)


def _colours(values: tuple[float, ...]) -> Float[Array, "1 1 1 3"]:
  return jnp.array(values)[None, None, None]


def tokens(
  visual: Float[Array, "B N E"], frames: Frames, merge: int, side: int
) -> Float[Array, "n patches E"]:
  """Takes the visual tokens of pictures, resized to a square grid."""
  extent = frames.extent // merge
  first = (frames.first // merge**2)[:, None, None]
  columns = extent[:, 1, None, None]

  def sample(r, c):
    return visual[frames.row[:, None, None], first + r * columns + c]

  found = resize(sample, jnp.maximum(extent, 1), side, side)
  return found.reshape(found.shape[0], side**2, -1).astype(jnp.float32)


def normalised(
  x: Float[Array, "n H W 3"], mean: tuple, deviation: tuple
) -> Float[Array, "n H W 3"]:
  """Normalises colours."""
  return (x - _colours(mean)) / _colours(deviation)
