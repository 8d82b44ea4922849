"""Checksums tell arrays apart that differ in a bit, or in their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.workdir.checksums import checksums


def changed(array, change):
  bits = np.array(array)
  change(bits)
  return bits


def swap(x):
  x[[0, 1]] = x[[1, 0]]


def flip_sign_of_zero(x):
  x[3, 3] = -0.0


def one_bit(x):
  x.view(np.uint32)[5, 2] ^= 1


def move_a_bit(x):
  """From one number to another: the sum of all bits stays."""
  bits = x.view(np.uint32)
  bits[0, 0] += 1
  bits[6, 1] -= 1


@pytest.mark.parametrize(
  "change", [swap, flip_sign_of_zero, one_bit, move_a_bit]
)
def test_checksums_see(change):
  array = np.array(jax.random.normal(jax.random.key(1), (8, 4)))
  array[3, 3] = 0.0
  other = changed(array, change)
  assert array.tobytes() != other.tobytes()
  one, two = (checksums({"a": jnp.array(x)}) for x in (array, other))
  assert one != two


def test_those_of_many_are_those_of_each_alone():
  """Of equal shapes and of others, whatever their order."""
  sizes = {"d": (8, 4), "c": (3,), "b": (8, 4), "a": (), "e": (200, 100)}
  arrays = {
    name: jax.random.normal(jax.random.key(i), shape)
    for i, (name, shape) in enumerate(sizes.items())
  }
  alone = {name: checksums({name: x})[name] for name, x in arrays.items()}
  assert checksums(arrays) == alone
  assert len({*alone.values()}) == len(alone)


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool"]
)
@pytest.mark.parametrize("shape", [(), (1,), (16, 3, 5)])
def test_checksums_are_defined_for(dtype, shape):
  """The formula, in NumPy's and Python's own words."""
  values = np.asarray(jax.random.normal(jax.random.key(2), shape) * 9)
  # NumPy's casts: old processors' programs have none to float16.
  host = np.asarray(values > 0 if dtype == "bool" else values.astype(dtype))
  words = host.reshape(-1).view(f"u{host.dtype.itemsize}").tolist()

  def mix(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)

  plain = sum(words) % 2**32
  mixed = sum(mix((w + mix(i)) % 2**32) for i, w in enumerate(words)) % 2**32
  wanted = {"a": f"{plain:08x}{mixed:08x}"}
  assert checksums({"a": jnp.array(host)}) == wanted
