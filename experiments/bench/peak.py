"""The fastest that a device multiplies matrices, for shares of it.

Published peaks are those of `mmrl.plan.chips`. What isn't in that table, a CPU
above all, is measured: the fastest of a few float32 products
of 2048 x 2048 matrices, just before the programs that are compared with it.
"""

import time

import jax
import jax.numpy as jnp

from mmrl.plan import chips

_SIDE, _TIMES = 2048, 5


def flops_per_second() -> tuple[float, str]:
  """Peak of the first device, and whether it is "published" or "measured"."""
  chip = chips.of(jax.devices()[0])
  if chip:
    return chip.flops, "published"
  return measure(), "measured"


def measure(side: int = _SIDE, dtype: str = "float32") -> float:
  """FLOP/s of a large matrix product on the first device."""
  matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(matrix, matrix))
  seconds = []
  for _ in range(_TIMES):
    began = time.perf_counter()
    jax.block_until_ready(product(matrix, matrix))
    seconds.append(time.perf_counter() - began)
  return 2 * side**3 / min(seconds)
