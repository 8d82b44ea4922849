"""Checksums of arrays, wherever their parts are."""

from collections.abc import Callable, Iterable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, UInt32
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
  """Of each array 64 bits that depend on its values and on their order.

  They are computed on the arrays' own devices, with integers: to the last bit
  the same however an array is divided among them.
  """
  if not leaves:
    return {}
  program = _program(everywhere(leaves.values()))
  words = np.asarray(program(dict(leaves)))
  # As a jitted function sees a dictionary.
  names = sorted(leaves)
  return {n: f"{a:08x}{b:08x}" for n, (a, b) in zip(names, words, strict=True)}


def everywhere(leaves: Iterable[Any]) -> Sharding | None:
  """All devices of the leaves' mesh; None if they have none."""
  for leaf in leaves:
    where = getattr(leaf, "sharding", None)
    if isinstance(where, NamedSharding):
      return NamedSharding(where.mesh, PartitionSpec())
  return None


@functools.cache
def _program(out: Sharding | None) -> Callable:
  def program(leaves: dict[str, Array]):
    return jnp.stack([_checksum(leaves[name]) for name in sorted(leaves)])

  return jax.jit(program, out_shardings=out)


def _checksum(array: Array) -> UInt32[Array, "2"]:
  """Two sums, modulo 2**32: of the bits, and of bits mixed with positions."""
  if array.dtype == bool:
    array = array.astype(jnp.uint8)
  kind = _UNSIGNED[array.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
  position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
  for axis in reversed(range(bits.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position += along * np.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  mixed = _mix(bits + _mix(position))
  return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in (bits, mixed)])


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """The finaliser of MurmurHash3: one to one, and every bit counts."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
