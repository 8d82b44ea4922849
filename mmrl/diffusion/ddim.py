"""Noise levels, DDIM's step (arXiv 2010.02502), and sampling by it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mmrl.diffusion.network import unet
from mmrl.diffusion.network.layers import Picture
from mmrl.diffusion.network.unet import Params, UNetConfig
from mmrl.errors import UserError

TIMES = 1000


def signals() -> Float[np.ndarray, "times"]:
  """Returns the share of a picture's variance that is left at each time.

  Stable Diffusion's: the square root of the variance that is added at a time
  grows linearly, from 0.00085 to 0.012.
  """
  added = np.linspace(0.00085**0.5, 0.012**0.5, TIMES) ** 2
  return np.cumprod(1 - added)


def times(steps: int) -> Int[np.ndarray, "T"]:
  """Returns the times of a number of steps, from the noisiest down.

  Equally far apart, the first of them the last of training ("trailing").

  Raises:
    UserError: if there are none, or more than times.
  """
  if type(steps) is not int or not 1 <= steps <= TIMES:
    raise UserError(
      f"steps: expected a whole number from 1 to {TIMES}, found {steps!r:.80}"
    )
  return np.round(TIMES - np.arange(steps) * TIMES / steps).astype(int) - 1


def levels(steps: int) -> Float[np.ndarray, "T 2"]:
  """Returns a step's share of the picture's variance, before and after it."""
  shares = signals()[times(steps)]
  return np.stack([shares, np.append(shares[1:], 1.0)], axis=1)


def guided(without: Array, given: Array, weight: float | Array) -> Array:
  """Exaggerates what the prompt changes: `without + w (given - without)`."""
  return without + weight * (given - without)


def move(x: Picture, noise: Picture, level: Float[Array, "2"]) -> Picture:
  """Goes from one level of noise to the next one, without new noise."""
  now, then = level
  clean = (x - jnp.sqrt(1 - now) * noise) / jnp.sqrt(now)
  return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * noise


def twice(x: Array) -> Array:
  """Stacks what both branches of guidance are given: without prompt, with."""
  return jnp.concatenate([x, x])


def both(words: Int[Array, "B n"]) -> Int[Array, "B2 n"]:
  """Stacks prompts of no words on prompts."""
  return jnp.concatenate([jnp.zeros_like(words), words])


def sample(
  params: Params,
  config: UNetConfig,
  x: Picture,
  condition: Picture,
  words: Int[Array, "B n"],
  *,
  steps: int,
  weight: float,
) -> Picture:
  """Samples pictures by DDIM with guidance, computing everything.

  Args:
    params: of the model.
    config: its sizes.
    x: normal noise, which decides the pictures.
    condition: masks.
    words: of the prompts.
    steps: number of them.
    weight: of guidance; 1 is the prompt alone.

  Returns:
    Pictures, about in [-1, 1].
  """
  condition, words = twice(condition), both(words)

  def step(x, row):
    time, level = row
    time = jnp.full(condition.shape[0], time)
    found = unet.noise(params, config, twice(x), time, condition, words)
    without, given = jnp.split(found, 2)
    return move(x, guided(without, given, weight), level), None

  rows = jnp.asarray(times(steps)), jnp.asarray(levels(steps), jnp.float32)
  return jax.lax.scan(step, x, rows)[0]
