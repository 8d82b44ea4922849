"""Placebos: the same rewards or advantages, given to other answers of a group.

An arm with a placebo has all of a method but what it is said to work by. A
reward or a term of a config has one by `placebo`, beside its weight:

  "random"  values go to the answers of a group in the order of a hash of them
  "length"  the largest value goes to the longest answer, and so on

Within each group the values are the same ones, so mean and spread are matched
exactly. What is logged of a reward stays what it really is.

A term whose region is at a wrong place is another placebo: an option of terms
and probes that read one, see `mmrl.prompts.regions.rolled`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32
import numpy as np

from mmrl.errors import UserError, nearest

PLACEBOS = ("random", "length")


def check(kind: object, where: str) -> None:
  """Checks the kind of a placebo; "" is none.

  Raises:
    UserError: if it is unknown.
  """
  if kind not in ("", *PLACEBOS):
    raise UserError(
      f"{where}.placebo: expected one of {', '.join(PLACEBOS)}, or rolled=True"
      f" beside a function that reads a region, found"
      f" {kind!r}{nearest(kind, PLACEBOS)}"
    )


def permute(
  kind: str,
  values: Float[Array, "P G *rest"],
  tokens: Int[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G *rest"]:
  """Gives the values of each group to its answers in another order.

  Args:
    kind: of `PLACEBOS`.
    values: of answers, or of each token; these are sorted by their mean.
    tokens: ids of the answers.
    mask: True on answer tokens.
  """
  by = hash_answers(tokens, mask)
  if kind == "length":
    # Of equally long ones the hash decides, not the place.
    by = mask.sum(-1).astype(jnp.float32) + by / jnp.float32(2**33)
  size = values if values.ndim == 2 else values.mean(-1)
  rank = by.argsort(-1, stable=True).argsort(-1, stable=True)
  chosen = jnp.take_along_axis(size.argsort(-1, stable=True), rank, axis=-1)
  chosen = chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2))
  return jnp.take_along_axis(values, chosen, axis=1)


def hash_answers(
  tokens: Int[Array, "P G R"], mask: Bool[Array, "P G R"]
) -> UInt32[Array, "P G"]:
  """Hashes answers: the same in any batch, on any device, at any padding."""
  place = jnp.arange(mask.shape[-1], dtype=jnp.uint32)[None, None]
  each = mixed(tokens.astype(jnp.uint32) ^ mixed(place))
  return mixed(jnp.where(mask, each, 0).sum(-1, dtype=jnp.uint32))


def mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """Mixes the bits of uint32 numbers, as MurmurHash3 ends."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
