"""Figures of one program: memory, FLOPs and collectives."""

from collections.abc import Mapping
import dataclasses
import re
import time
from typing import Any

import jax

from mmrl.plan import chips, hlo

# As XLA refuses to compile for a TPU: "Used 20.51G of 15.75G hbm", or, of
# temporaries alone, "HLO temporaries (20.22G) exceeds available HBM (15.75G)".
_REFUSED = re.compile(
  r"(?:Used |HLO (temporaries) \()([\d.]+)([KMGT])(?: of|\) exceeds)", re.I
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
  """Memory and work of one compiled program on each chip.

  Attributes:
    name: as in `train.step.Programs`.
    memory: bytes of arguments, temporaries, output and (part of the output)
      alias, and of what else of the run stays on the chip meanwhile
      (`resident`).
    total: bytes at the program's peak; XLA's own figure where it refused.
    fits: whether that is within the chip's memory.
    collectives: see `hlo.collectives`; None where XLA can't read the program
      (jaxlib 0.10.2 that of libtpu 0.0.52, of a mesh with a tensor axis).
    flops: of the model by formula, of all chips together.
    seconds: those at the chips' peak, divided evenly; None without one.
    compile_seconds: measured.
  """

  name: str
  memory: Mapping[str, int]
  total: int
  fits: bool
  collectives: Mapping[str, Mapping[str, int]] | None
  flops: int
  seconds: float | None
  compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Measure:
  """What a program's figures are made of, besides the compiled program.

  Attributes:
    name, flops: see `Program`.
    resident: bytes on a chip of what the run holds besides its arguments.
    arguments: bytes on a chip of those that it reads.
    devices: number of chips.
    chip: None if it isn't in the table.
    began: when it was begun to be traced, in seconds of `time.perf_counter`.
  """

  name: str
  resident: int
  arguments: int
  flops: int
  devices: int
  chip: chips.Chip | None
  began: float

  def finished(self, compiled: Any) -> Program:
    """Returns the figures of a compiled program."""
    found = compiled.memory_analysis()
    memory = {
      "arguments": found.argument_size_in_bytes,
      "temporaries": found.temp_size_in_bytes,
      "output": found.output_size_in_bytes,
      "alias": found.alias_size_in_bytes,
    }
    try:
      text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
      text = None
    return self.assigned(memory, text)

  def assigned(self, memory: Mapping[str, int], text: str | None) -> Program:
    """Returns the figures of a program whose buffers are assigned.

    Args:
      memory: see `Program`, without what is resident.
      text: the optimised program; None where it can't be read.
    """
    memory = dict(memory) | {"resident": self.resident}
    # Aliased bytes are in arguments and output, and the sum adds them again.
    total = sum(memory.values()) - 2 * memory["alias"]
    moved = None if text is None else hlo.collectives(text)
    return self._program(memory, total, moved)

  def refused(self, error: Exception) -> Program:
    """Returns the figures of a program that is too large for a chip.

    Raises:
      Exception: the error, if it is another.
    """
    total = refused_bytes(str(error), self.arguments)
    if total is None:
      raise error
    return self._program({"resident": self.resident}, total + self.resident, {})

  def _program(self, memory, total, moved) -> Program:
    chip = self.chip
    return Program(
      name=self.name,
      memory=memory,
      total=total,
      fits=not chip or total <= chip.memory,
      collectives=moved,
      flops=self.flops,
      seconds=self.flops / chip.flops / self.devices if chip else None,
      compile_seconds=time.perf_counter() - self.began,
    )


def refused_bytes(text: str, arguments: int) -> int | None:
  """Reads how much a program would take from XLA's refusal to compile it.

  Args:
    text: of its error.
    arguments: bytes of the program's arguments, where it says temporaries only.

  Returns:
    The bytes; None if it is another error.
  """
  found = _REFUSED.search(text)
  if not found:
    return None
  total = round(float(found[2]) * _UNITS[found[3].upper()])
  return total + arguments if found[1] else total
