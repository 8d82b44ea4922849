"""The fastest that a device multiplies matrices, for shares of it.

Published peaks are of dense bfloat16 products with float32 sums. What isn't in
the table, a CPU above all, is measured: the fastest of a few float32 products
of 2048 x 2048 matrices, just before the programs that are compared with it.
"""

import time

import jax
import jax.numpy as jnp

# FLOP/s by JAX's `device_kind`, from the vendor's data sheet of each.
PUBLISHED = {
  "NVIDIA A100-SXM4-40GB": 312e12,  # NVIDIA A100 data sheet
  "NVIDIA A100-SXM4-80GB": 312e12,  # NVIDIA A100 data sheet
  "NVIDIA H100 80GB HBM3": 989e12,  # NVIDIA H100 data sheet, SXM
  "NVIDIA H200": 989e12,  # NVIDIA H200 data sheet, SXM
  "TPU v4": 275e12,  # Google Cloud TPU v4 documentation
  "TPU v5 lite": 197e12,  # Google Cloud TPU v5e documentation
  "TPU v5": 459e12,  # Google Cloud TPU v5p documentation
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,  # Google Cloud TPU v6e documentation
}
_SIDE, _TIMES = 2048, 5


def flops_per_second() -> tuple[float, str]:
  """Peak of the first device, and whether it is "published" or "measured"."""
  kind = jax.devices()[0].device_kind
  if kind in PUBLISHED:
    return PUBLISHED[kind], "published"
  return measure(), "measured"


def measure() -> float:
  """FLOP/s of a large float32 matrix product on the first device."""
  matrix = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE), jnp.float32)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(matrix, matrix))
  seconds = []
  for _ in range(_TIMES):
    began = time.perf_counter()
    jax.block_until_ready(product(matrix, matrix))
    seconds.append(time.perf_counter() - began)
  return 2 * _SIDE**3 / min(seconds)
