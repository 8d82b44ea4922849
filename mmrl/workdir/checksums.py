"""Checksums of arrays, independent of their sharding."""

from collections.abc import Callable, Iterable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, UInt32
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
# Arrays of up to so many numbers are stacked, each with those of its shape: the
# program has their code once. Larger ones would be copied.
_STACKED = 2**14


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
  """Computes a 64-bit checksum of each array, from its values and their order.

  It is computed on the array's own devices with integers, so it is the same,
  bit for bit, for every sharding.
  """
  if not leaves:
    return {}
  program = _program(everywhere(leaves.values()))
  words = np.asarray(program(dict(leaves)))
  # jit sorts the keys of a dictionary.
  names = sorted(leaves)
  return {n: f"{a:08x}{b:08x}" for n, (a, b) in zip(names, words, strict=True)}


def everywhere(leaves: Iterable[Any]) -> Sharding | None:
  """Returns the replicated sharding on the leaves' mesh; None without one."""
  for leaf in leaves:
    where = getattr(leaf, "sharding", None)
    if isinstance(where, NamedSharding):
      return NamedSharding(where.mesh, PartitionSpec())
  return None


@functools.cache
def _program(out: Sharding | None) -> Callable:
  def checksums(leaves: dict[str, Array]):
    groups = _groups(leaves)
    found = [
      jax.vmap(_checksum)(jnp.stack([leaves[name] for name in names]))
      if len(names) > 1
      else _checksum(leaves[names[0]])[None]
      for names in groups
    ]
    order = np.argsort([name for names in groups for name in names])
    return jnp.concatenate(found)[order]

  return jax.jit(checksums, out_shardings=out)


def _groups(leaves: Mapping[str, Array]) -> list[list[str]]:
  """Lists the names of arrays that are stacked; larger ones stand alone."""
  groups: dict[Any, list[str]] = {}
  for name, leaf in leaves.items():
    small = leaf.size <= _STACKED
    kind = (leaf.shape, leaf.dtype) if small else name
    groups.setdefault(kind, []).append(name)
  return list(groups.values())


@jax.jit  # Traced once for all arrays of a shape.
def _checksum(array: Array) -> UInt32[Array, "2"]:
  """Computes two sums mod 2**32: of bits, and of bits mixed with positions."""
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
  """Mixes bits by the finaliser of MurmurHash3: a bijection of all bits."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
