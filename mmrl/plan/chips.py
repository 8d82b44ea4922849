"""Peak FLOP/s and memory of accelerators, by JAX's `device_kind`."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import os

import jax
from jax.experimental import topologies

from mmrl.errors import UserError, not_installed


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator, from its vendor's data sheet.

  Attributes:
    flops: dense bfloat16 products with float32 sums, FLOP/s.
    memory: bytes.
  """

  flops: float
  memory: int


_GIB = 2**30
_STDERR = 2  # its number to the system
CHIPS = {
  "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * _GIB),
  "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * _GIB),
  "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * _GIB),
  "NVIDIA H200": Chip(989e12, 141 * 10**9),
  "TPU v4": Chip(275e12, 32 * _GIB),
  "TPU v5 lite": Chip(197e12, 16 * _GIB),
  "TPU v5": Chip(459e12, 95 * _GIB),
  "TPU v5p": Chip(459e12, 95 * _GIB),
  "TPU v6 lite": Chip(918e12, 32 * _GIB),
}


def of(device: jax.Device) -> Chip | None:
  """Looks up the chip of a device; None if it isn't in the table."""
  chip = CHIPS.get(device.device_kind)
  # A v4 chip is two devices to the compiler, unless it joins their cores.
  cores = getattr(device, "num_cores", 1)
  if chip and device.device_kind == "TPU v4" and cores == 1:
    return Chip(chip.flops / 2, chip.memory // 2)
  return chip


def topology(name: str) -> Sequence[jax.Device]:
  """Returns devices of a TPU topology such as "v5p:4x4x4", for compiling only.

  Raises:
    UserError: if libtpu isn't installed or doesn't know the name.
  """
  # libtpu would look for the machine's TPUs, and wait for another process that
  # has them.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    with _quiet():
      return topologies.get_topology_desc(name, "tpu").devices
  except RuntimeError as error:
    reason = " ".join(str(error).split())
    if "not installed" in reason:
      raise not_installed(
        "for --topology the package libtpu", "plan"
      ) from error
    raise UserError(
      f"--topology: expected a TPU topology such as v4:2x2x4, v5e:4x4,"
      f" v5p:4x4x4 or v6e:8x8, found {name!r} ({reason:.100})"
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps libtpu's own lines off stderr: it finds no TPU and says so."""
  kept = os.dup(_STDERR)
  try:
    silence()
    yield
  finally:
    os.dup2(kept, _STDERR)
    os.close(kept)


def silence() -> None:
  """Turns stderr off for this process, libraries that aren't Python's too."""
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, _STDERR)
  os.close(nothing)
