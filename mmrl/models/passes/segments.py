"""Latent segments of answers: ids, kinds, places. See `models.config.Latent`.

What a token is follows from the ids alone. The id of an inner position, whose
input is a state, is that of `<latent>`.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.models.config import Latent

# Kinds of tokens.
TEXT, OPEN, INNER, END = range(4)


def segment(latent: Latent) -> list[int]:
  """Returns the ids of a whole segment."""
  if latent.length == 1:
    return [latent.token_id]
  return [latent.token_id] * (latent.length - 1) + [latent.end_token_id]


def insert(
  steps: Sequence[Sequence[int]], latent: Latent, where: Sequence[bool]
) -> list[int]:
  """Joins the steps of a text, with a segment before those of `where`."""
  ids: list[int] = []
  for step, opened in zip(steps, where, strict=True):
    ids += segment(latent) if opened else []
    ids += step
  return ids


def whole(
  ids: Sequence[int], latent: Latent | None, length: int, name: str
) -> list[int]:
  """Makes a segment of each `<latent>` of a text.

  Args:
    ids: of the text.
    latent: segments of the model; None if it has none.
    length: most tokens.
    name: what errors call the text.

  Raises:
    UserError: if there are more segments, or tokens, than there may be.
  """
  if latent is None:
    return list(ids)
  count = sum(one == latent.token_id for one in ids)
  if count > latent.segments:
    raise UserError(
      f"{name}: expected at most {latent.segments} latent segments in a text,"
      f" found {count}; make the model with more, or take some out"
    )
  found: list[int] = []
  for one in ids:
    found += segment(latent) if one == latent.token_id else [one]
  if len(found) > length:
    raise UserError(
      f"{name}: expected an answer of at most {length} tokens, found"
      f" {len(found)}, {count} latent segments of {latent.length} among them;"
      " raise the answer length or shorten the answer"
    )
  return found


def _places(tokens: Array, latent: Latent) -> tuple[Array, Array]:
  """Returns which tokens open a segment, and how far behind one each is."""
  is_latent = tokens == latent.token_id
  opens = is_latent
  if latent.length > 1:
    pad = [(0, 0)] * (tokens.ndim - 1) + [(1, 0)]
    opens = is_latent & ~jnp.pad(is_latent[..., :-1], pad)
  opens &= jnp.cumsum(opens, axis=-1) <= latent.segments
  at = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  last = jnp.where(opens, at, -latent.length)
  return opens, at - jax.lax.cummax(last, axis=tokens.ndim - 1)


def kinds(
  tokens: Int[Array, "*batch R"] | Int[np.ndarray, "*batch R"], latent: Latent
) -> Int[Array, "*batch R"]:
  """Tells the kind of each token: TEXT, OPEN, INNER or END."""
  opens, behind = _places(jnp.asarray(tokens), latent)
  last = latent.length - 1
  inner = jnp.where(behind < last, INNER, jnp.where(behind > last, TEXT, END))
  return jnp.where(opens, OPEN, inner)


def chosen(
  tokens: Int[Array, "*batch R"] | Int[np.ndarray, "*batch R"],
  latent: Latent,
) -> Bool[Array, "*batch R"]:
  """Tells which tokens a policy chooses: text and `<latent>`."""
  return kinds(tokens, latent) <= OPEN


def starts(
  tokens: Int[Array, "*batch R"], latent: Latent, most: int = 0
) -> Int[Array, "*batch N"]:
  """Returns where segments open, in order; R where there are fewer.

  Args:
    tokens: of answers.
    latent: their segments.
    most: N, if not `latent.segments`.
  """
  length = tokens.shape[-1]
  opens, _ = _places(tokens, latent)
  at = jnp.broadcast_to(jnp.arange(length), tokens.shape)
  at = jnp.sort(jnp.where(opens, at, length), axis=-1)
  count = most or latent.segments
  pad = [(0, 0)] * (tokens.ndim - 1) + [(0, max(0, count - length))]
  return jnp.pad(at, pad, constant_values=length)[..., :count]


def gather(
  states: Float[Array, "P G R D"], start: Int[Array, "P G N"], length: int
) -> Float[Array, "P G N K D"]:
  """Takes the states of whole segments; anything where there is none."""
  at = start[..., None] + jnp.arange(length)[None, None, None]
  flat = jnp.minimum(at, states.shape[2] - 1)
  flat = flat.reshape(*start.shape[:2], -1, 1)
  found = jnp.take_along_axis(states, flat, axis=2)
  return found.reshape(*at.shape, states.shape[-1])


def upsample(
  x: Float[Array, "*batch K D"], rows: int, columns: int
) -> Float[Array, "*batch patches D"]:
  """Resizes a square grid of states to a grid of patches, rows first.

  Bilinear with half-pixel centres, edges clamped, without antialiasing: torch's
  `align_corners=False`.
  """
  side = math.isqrt(x.shape[-2])

  def matrix(size: int) -> np.ndarray:
    """Returns the weights [size, side] of one axis."""
    at = (np.arange(size) + 0.5) * side / size - 0.5
    at = np.clip(at, 0, side - 1)
    low = np.minimum(np.floor(at).astype(int), max(side - 2, 0))
    share = at - low
    out = np.zeros((size, side), np.float32)
    out[np.arange(size), low] += 1 - share
    out[np.arange(size), np.minimum(low + 1, side - 1)] += share
    return out

  grid = x.reshape(*x.shape[:-2], side, side, x.shape[-1])
  out = jnp.einsum(
    "yr,xc,...rcd->...yxd",
    *(jnp.asarray(matrix(n), x.dtype) for n in (rows, columns)),
    grid,
  )
  return out.reshape(*x.shape[:-2], rows * columns, x.shape[-1])
