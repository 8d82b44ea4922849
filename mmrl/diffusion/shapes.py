"""Pictures of one to three shapes, with masks and prompts, and their measures.

A mask is the condition; a colour and a texture are the prompt. What a picture
says of both can be read from its pixels, so that it is measured without another
model. All are pure functions of a key, on the device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from mmrl.worlds import palette

# With black, stripes are drawn.
COLOURS = tuple(name for name in palette.COLOURS if name != "black")
TEXTURES = ("plain", "rows", "columns")
# By number; the first is none, as where guidance has no prompt.
WORDS = ("", *COLOURS, *TEXTURES)
_SHAPES = 3  # kinds, and most of a picture
_SIDE = 16.0  # of a picture, in the units below
_LEAST, _MOST = 2.5, 4.5  # half of a shape's side
_STRIPE = 2  # pixels


class Drawn(NamedTuple):
  """Pictures with what they were drawn from.

  Attributes:
    pictures: colours in [-1, 1].
    masks: 1 on shapes.
    words: colour and texture, numbers in `WORDS`.
  """

  pictures: Float[Array, "B s s 3"]
  masks: Float[Array, "B s s 1"]
  words: Int[Array, "B 2"]


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(key: Array, count: int, size: int) -> Drawn:
  """Draws pictures of random masks and prompts.

  Args:
    key: of the draw.
    count: of pictures.
    size: their side in pixels.
  """
  keys = jax.random.split(key, 4)
  masks = _masks(keys[0], count, size)
  colour = jax.random.randint(keys[1], (count,), 0, len(COLOURS))
  texture = jax.random.randint(keys[2], (count,), 0, len(TEXTURES))
  grounds = jnp.asarray(_scaled(palette.GROUNDS))
  place = jax.random.randint(keys[3], (count,), 0, len(grounds))
  fill = fills(size)[colour, texture]
  ground = grounds[place][:, None, None]
  return Drawn(
    jnp.where(masks[..., None], fill, ground),
    masks[..., None].astype(jnp.float32),
    1 + jnp.stack([colour, len(COLOURS) + texture], axis=1),
  )


def fills(size: int) -> Float[Array, "colours textures s s 3"]:
  """Draws each colour in each texture over a whole picture."""
  colours = _scaled([palette.COLOURS[name] for name in COLOURS])
  black = _scaled([palette.COLOURS["black"]])[0]
  dark = np.arange(size) // _STRIPE % 2 == 1
  rows, columns = np.meshgrid(dark, dark, indexing="ij")
  patterns = np.stack([np.zeros_like(rows), rows, columns])
  return jnp.where(
    jnp.asarray(patterns)[None, ..., None],
    jnp.asarray(black)[None, None, None, None],
    jnp.asarray(colours)[:, None, None, None],
  )


def read(
  pictures: Float[Array, "B s s 3"], masks: Float[Array, "B s s 1"]
) -> tuple[Bool[Array, "B s s"], Int[Array, "B 2"]]:
  """Reads mask and prompt from pictures.

  A pixel is a shape's where it is nearer to a colour of shapes than to one of
  grounds. The prompt is the fill that is nearest to the picture on the mask
  that it was asked for.

  Returns:
    (masks, words).
  """
  shapes = _scaled([palette.COLOURS[name] for name in palette.COLOURS])
  near = [
    _squared(pictures[..., None, :], jnp.asarray(c)).min(-1)
    for c in (shapes, _scaled(palette.GROUNDS))
  ]
  choice = fills(pictures.shape[1])
  far = [
    jnp.where(masks[..., 0] > 0, _squared(pictures, fill[None]), 0).sum((1, 2))
    for fill in choice.reshape(-1, *choice.shape[2:])
  ]
  colour, texture = jnp.divmod(
    jnp.argmin(jnp.stack(far, axis=1), axis=1), len(TEXTURES)
  )
  words = 1 + jnp.stack([colour, len(COLOURS) + texture], axis=1)
  return near[0] < near[1], words


@jax.jit
def measure(
  pictures: Float[Array, "B s s 3"],
  masks: Float[Array, "B s s 1"],
  words: Int[Array, "B 2"],
) -> dict[str, Float[Array, "B"]]:
  """Measures how well pictures follow masks and prompts.

  Returns:
    For each picture `iou` of the mask that is read from it, and whether colour
    and texture are those of the prompt, `prompt`.
  """
  seen, read_words = read(pictures, masks)
  asked = masks[..., 0] > 0
  common = (seen & asked).sum((1, 2))
  either = (seen | asked).sum((1, 2))
  right = (read_words == words).all(1)
  return {"iou": common / either, "prompt": right.astype(jnp.float32)}


@jax.jit
def psnr(
  pictures: Float[Array, "B s s 3"], others: Float[Array, "B s s 3"]
) -> Float[Array, "B"]:
  """Compares pictures in [-1, 1]: peak signal to noise, in decibels.

  Equal ones have 100.
  """
  clipped = (jnp.clip(x, -1, 1) for x in (pictures, others))
  error = jnp.square(jnp.subtract(*clipped)).mean((1, 2, 3))
  return 10 * jnp.log10(4 / jnp.maximum(error, 4e-10))


def _masks(key: Array, count: int, size: int) -> Bool[Array, "B s s"]:
  """Draws discs, squares and triangles, one to three in a picture."""
  keys = jax.random.split(key, 4)
  shape = (count, _SHAPES)
  kind = jax.random.randint(keys[0], shape, 0, _SHAPES)[..., None, None]
  half = jax.random.uniform(
    keys[1], (*shape, 1, 1, 1), jnp.float32, _LEAST, _MOST
  )
  centre = (
    jax.random.uniform(keys[2], (*shape, 2, 1, 1)) * (_SIDE - 2 * half) + half
  )
  there = jnp.arange(_SHAPES)[None] <= jax.random.randint(
    keys[3], (count, 1), 0, _SHAPES
  )
  middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (_SIDE / size)
  x, y = middles[None, None, None, :], middles[None, None, :, None]
  half = half[:, :, 0]
  dx, dy = x - centre[:, :, 0], y - centre[:, :, 1]
  disc = dx**2 + dy**2 < half**2
  square = jnp.maximum(jnp.abs(dx), jnp.abs(dy)) < 0.85 * half
  triangle = (jnp.abs(dx) < 0.5 * (dy + half)) & (dy < half)
  inside = jnp.where(kind == 0, disc, jnp.where(kind == 1, square, triangle))
  return (inside & there[..., None, None]).any(1)


def _scaled(colours) -> Float[np.ndarray, "n 3"]:
  return np.asarray(colours, np.float32) / 127.5 - 1


def _squared(a: Array, b: Array) -> Array:
  b = b.reshape((1,) * (a.ndim - b.ndim) + b.shape)
  return jnp.square(a - b).sum(-1)
