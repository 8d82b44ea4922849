"""Buffers are read from what XLA writes, once that is whole."""

import pytest

from mmrl.plan import assignment

BUFFERS = """\
BufferAssignment:
allocation 0: size 8, page 0, parameter 0, shape |f32[2]| at ShapeIndex {}, \
maybe-live-out:
 value: <1 p (size=8,offset=0): f32[2]>
allocation 1: size 32, page 0, parameter 1, shape |f32[8]| at ShapeIndex {}:
allocation 2: size 64, page 0, output shape is |(f32[8])|, maybe-live-out:
allocation 3: size 128, page 0, preallocated-temp:
allocation 4: size 256, color 1, page 0, preallocated-temp:
allocation 5: size 512, page 0, constant:
"""
PROGRAM = "HloModule jit_f\n\nENTRY %main () -> f32[] {\n}\n\n"
NAME = "module_0001.jit_f.cl_1.after_optimizations"
FILES = {
  f"{NAME}-buffer-assignment.txt": BUFFERS,
  f"{NAME}.txt": PROGRAM,
  f"{NAME}_after_buffer_assignment.txt": PROGRAM,
}


@pytest.mark.parametrize("cut", [0, 10, None])
def test_a_program_is_read_when_its_last_file_is_whole(tmp_path, cut):
  """What is argument and output counts in both; on-chip memory doesn't."""
  for name, text in FILES.items():
    assert assignment.read(str(tmp_path)) is None
    (tmp_path / name).write_text(text)
  last = tmp_path / name
  last.write_text(text[:cut])
  wanted = {"arguments": 40, "temporaries": 640, "output": 72, "alias": 8}
  found = assignment.read(str(tmp_path))
  assert found == (None if cut is not None else (wanted, PROGRAM))
