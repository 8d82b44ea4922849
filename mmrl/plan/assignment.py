"""Memory of a program as XLA writes it, before it makes machine code.

XLA for TPUs optimises a program, lays its buffers out in memory, and then takes
most of its time for machine code, which a plan has no use for. It can write the
optimised program and its buffers to files (`--xla_dump_to`) once they are
final: what these hold is what the finished program has.
"""

import glob
import os
import re
from typing import NamedTuple

# As in "allocation 3: size 16, parameter 0, shape |f32[4]| at ShapeIndex {0},
# maybe-live-out:"; memory other than a chip's main one has a color.
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(, .*)?:$", re.M)
_BUFFERS = ".after_optimizations-buffer-assignment.txt"
_LAST = ".after_optimizations_after_buffer_assignment.txt"
_END = "}\n\n"  # of a program


class Assignment(NamedTuple):
  """Buffers of an optimised program on one chip.

  Attributes:
    memory: bytes of arguments, temporaries, output and alias, as
      `programs.Program` has them.
    text: the program.
  """

  memory: dict[str, int]
  text: str


def options(folder: str) -> dict[str, str | bool]:
  """Returns the compiler options that make XLA write files to a folder."""
  return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}


def read(folder: str) -> Assignment | None:
  """Reads what XLA has written to a folder; None as long as it isn't whole."""
  for path in glob.glob(os.path.join(folder, f"*{_LAST}")):
    with open(path) as file:
      text = file.read()
    if text.endswith(_END):
      # These are written before.
      with open(path.removesuffix(_LAST) + _BUFFERS) as file:
        return Assignment(_memory(file.read()), text)
  return None


def _memory(text: str) -> dict[str, int]:
  """Sums allocations in a chip's main memory."""
  memory = dict.fromkeys(("arguments", "temporaries", "output", "alias"), 0)
  for size, kind in _ALLOCATION.findall(text):
    if ", color" in kind:
      continue
    argument, output = ", parameter" in kind, ", maybe-live-out" in kind
    memory["arguments"] += int(size) * argument
    memory["output"] += int(size) * output
    memory["alias"] += int(size) * (argument and output)
    memory["temporaries"] += int(size) * (not argument and not output)
  return memory
